"""A function's signature: its schemas, what it accepts and refuses, and what may come back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from comity.errors import BadInput, InvalidInput, InvalidOutput, NotSerializable
from comity.model import docstring
from comity.model.signature import Signature


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


@dataclasses.dataclass(frozen=True)
class Order:
    item: str
    count: int = 1
    at: Point = dataclasses.field(default_factory=lambda: Point(0))


@dataclasses.dataclass(slots=True)
class Tight:
    x: int = 7


class Cart(msgspec.Struct):
    orders: dict[str, list[Order]]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Options(TypedDict, total=False):
    depth: int


class Leaf(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=2)


class Tree(pydantic.BaseModel):
    leaves: list[Leaf]
    planted: dt.date


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


class Handle: ...


def call(function: Callable[..., Any], data: bytes) -> Any:
    signature = Signature(function)
    arguments = signature.decode(data)
    return function(*arguments.positional, **arguments.named)


def test_types_become_a_schema_and_come_back_typed() -> None:
    def survey(
        point: Point, colour: Colour, when: dt.datetime, options: Options, limit: int | None = None, *, tags: list[str] = ["a"]  # noqa: B006
    ) -> dict[str, Point]:
        """Look at a point."""
        assert isinstance(point, Point) and colour is Colour.BLUE and when.tzinfo is not None and options == {"depth": 2}
        assert limit is None and tags == ["a"]
        return {"seen": point}

    signature = Signature(survey)
    schema = signature.input_schema
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert schema["required"] == ["point", "colour", "when", "options"]
    assert schema["properties"]["limit"] == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    assert schema["properties"]["tags"]["default"] == ["a"]
    assert set(schema["$defs"]) == {"Point", "Colour", "Options"}
    assert signature.output_schema["additionalProperties"] == {"$ref": "#/$defs/Point"}
    data = b'{"point": {"x": 1, "y": 2}, "colour": "blue", "when": "2026-01-02T03:04:05Z", "options": {"depth": 2}}'
    assert signature.encode(call(survey, data)) == b'{"seen":{"x":1,"y":2.0}}'


def test_a_dataclass_passed_on_keeps_its_defaults() -> None:
    def on(order: Order, cart: Cart, pair: tuple[Point, Tight]) -> list[Any]:
        return [order, cart, pair]

    data = b'{"order": {"item": "a"}, "cart": {"orders": {"b": [{"item": "c", "count": 2}]}}, "pair": [{"x": 1}, {}]}'
    at = {"x": 0, "y": 0.5}
    assert msgspec.json.decode(Signature(on).encode(call(on, data))) == [
        {"item": "a", "count": 1, "at": at},
        {"orders": {"b": [{"item": "c", "count": 2, "at": at}]}},
        [{"x": 1, "y": 0.5}, {"x": 7}],
    ]


def test_pydantic_models_work_with_their_own_rules() -> None:
    def plant(tree: Tree, spare: Leaf | None = None) -> Tree:
        return tree

    signature = Signature(plant)
    assert "Leaf" in signature.input_schema["$defs"]
    (tree, spare), _ = signature.decode(b'{"tree": {"leaves": [{"name": "oak"}], "planted": "2026-05-01"}}')
    assert tree == Tree(leaves=[Leaf(name="oak")], planted=dt.date(2026, 5, 1)) and spare is None
    assert signature.encode(tree) == b'{"leaves":[{"name":"oak"}],"planted":"2026-05-01"}'
    with pytest.raises(InvalidInput, match="at least 2 characters"):
        signature.decode(b'{"tree": {"leaves": [{"name": "o"}], "planted": "2026-05-01"}}')


def test_a_strict_pydantic_model_reads_json() -> None:
    class Strict(pydantic.BaseModel, strict=True):
        at: dt.datetime

    def mark(strict: Strict) -> None: ...

    (strict,), _ = Signature(mark, namespace={"Strict": Strict}).decode(b'{"strict": {"at": "2026-01-01T00:00:00Z"}}')
    assert strict.at.year == 2026


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{", "truncated"),
        (b'{"a": "x"}', r"Expected `int`, got `str` - at `\$.a`"),
        (b"{}", "missing required field `a`"),
        (b'{"a": 1, "c": 2}', "unknown field `c`"),
        (b"[1]", "Expected `object`"),
        (b"7", "Expected `object`"),
        (b'{"a": 1, "b": "\xff"}', "utf-8|UTF-8"),
        (b'{"a": ' + b"[" * 10_000, "."),
    ],
)
def test_input_that_breaks_the_schema_is_invalid(data: bytes, complaint: str) -> None:
    def add(a: int, b: str = "") -> int:
        return a

    with pytest.raises(InvalidInput, match=f"add: (.|\n)*{complaint}"):
        Signature(add).decode(data)


def test_a_function_of_one_parameter_takes_its_value_alone() -> None:
    def shout(text: str) -> str:
        return text.upper()

    def keyword(*, text: str) -> str:
        return text

    assert call(shout, b'"hi"') == call(shout, b' {"text": "hi"}') == "HI"
    assert call(keyword, b'"hi"') == "hi"
    with pytest.raises(InvalidInput):
        call(shout, b"3")
    with pytest.raises(InvalidInput):
        call(shout, b"null")


def test_null_means_no_arguments_where_none_are_needed() -> None:
    def nothing() -> str:
        return "done"

    def some(a: int = 3) -> int:
        return a

    def maybe(a: int | None) -> str:
        return repr(a)

    assert call(nothing, b"null") == call(nothing, b"{}") == "done"
    assert call(some, b"null") == 3
    assert call(maybe, b"null") == "None"


def test_kinds_of_parameters_and_defaults() -> None:
    def mixed(a: int, /, b: str = None, *, c: Colour = Colour.RED, d: Any = Ellipsis) -> Any:  # type: ignore[assignment] # noqa: RUF013
        return a, b, c, d

    assert call(mixed, b'{"a": 1}') == (1, None, Colour.RED, Ellipsis)
    assert call(mixed, b'{"a": 1, "b": null, "c": "blue", "d": {"e": []}}') == (1, None, Colour.BLUE, {"e": []})
    properties = Signature(mixed).input_schema["properties"]
    assert properties["c"]["default"] == "red"
    assert "default" not in properties["d"]


def test_handles_lead_and_are_no_input() -> None:
    async def work(handle: Handle, n: int) -> None: ...

    async def named(handle, n: int) -> None: ...  # type: ignore[no-untyped-def]

    assert Signature(named, handles={"handle": Handle}).handles == (Handle,)
    assert list(Signature(named).input_schema["properties"]) == ["handle", "n"]
    signature = Signature(work, handles={"other": bool, "handle": Handle})
    assert signature.handles == (Handle,) and signature.is_async
    assert list(signature.input_schema["properties"]) == ["n"]
    assert signature.decode(b"4").positional == (4,)

    async def maybe(handle: Handle | None = None, n: int = 0) -> None: ...
    async def late(n: int, handle: Handle) -> None: ...
    async def by_name(*, handle: Handle) -> None: ...

    assert Signature(maybe, handles={"handle": Handle}).handles == (Handle,)
    for function in (late, by_name):
        with pytest.raises(BadInput, match=f"{function.__name__}: make 'handle' its first parameter"):
            Signature(function, handles={"handle": Handle})


def test_a_whole_body_may_be_an_object() -> None:
    def note(point: Point) -> None: ...

    signature = Signature(note, whole=True)
    assert signature.decode(b'{"x": 4}').positional == (Point(4),)
    assert signature.input_schema["$ref"] == "#/$defs/Point"
    with pytest.raises(InvalidInput):
        signature.decode(b'{"point": {"x": 4}}')


def test_methods_partials_and_callable_objects() -> None:
    class Scale:
        """Not this."""

        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, n: int) -> int:
            """Scale a number."""
            return n * self.by

        async def slowly(self, n: int) -> int:
            return n * self.by

    assert call(Scale(3), b"4") == 12
    assert Signature(Scale(3)).description == "Scale a number."
    assert Signature(Scale(2).slowly).is_async

    def add(a: int, b: int) -> int:
        return a + b

    assert call(functools.partial(add, 1), b"2") == 3
    assert Signature(functools.partial(add, 1)).name == "add"


def test_a_recursive_type_has_a_schema() -> None:
    def walk(node: Node) -> int:
        return node.value

    signature = Signature(walk)
    assert signature.input_schema["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert call(walk, b'{"node": {"value": 1, "children": [{"value": 2}]}}') == 1


def test_constraints_are_kept() -> None:
    def take(n: Annotated[int, msgspec.Meta(ge=1, description="how many")], mode: Literal["fast", "slow"] = "fast") -> None: ...

    signature = Signature(take)
    assert signature.input_schema["properties"]["n"] == {"type": "integer", "minimum": 1, "description": "how many"}
    with pytest.raises(InvalidInput, match=">= 1"):
        signature.decode(b'{"n": 0}')
    with pytest.raises(InvalidInput, match="Invalid enum value"):
        signature.decode(b'{"n": 1, "mode": "x"}')


def test_what_has_no_schema_is_refused_by_name() -> None:
    def variadic(*args: int) -> None: ...
    def loose(**options: int) -> None: ...
    def odd(callback: Callable[[], int]) -> None: ...
    def opaque(a: int) -> Handle: ...
    def unknown(a: Missing) -> None: ...  # type: ignore[name-defined] # noqa: F821

    def stream(a: int):  # type: ignore[no-untyped-def]
        yield a

    for function, complaint in [
        (variadic, r"variadic: \*args: 'int' has no schema"),
        (loose, r"loose: \*\*options"),
        (odd, "odd: parameter 'callback': .*has no JSON Schema"),
        (opaque, "opaque: its result: Handle has no JSON Schema"),
        (unknown, "unknown: its annotations cannot be read: name 'Missing'"),
        (stream, "stream: a generator"),
        (3, "3 is not a function"),
        (Handle, "is not a function"),
    ]:
        with pytest.raises(BadInput, match=complaint):
            Signature(function)  # type: ignore[arg-type]


def test_what_is_returned_must_fit_the_annotation() -> None:
    def count() -> int:
        return 1

    def points() -> list[Point]:
        return []

    def anything():  # type: ignore[no-untyped-def]
        return None

    def ratio() -> float:
        return 0.0

    assert Signature(count).encode(3) == b"3"
    assert Signature(points).encode([Point(1)]) == Signature(points).encode([{"x": 1, "y": 0.5}])
    assert Signature(anything).encode({"at": uuid.UUID(int=1)}) == b'{"at":"00000000-0000-0000-0000-000000000001"}'
    for function, value in [(count, "3"), (count, True), (points, [Point("a")])]:  # type: ignore[arg-type]
        with pytest.raises(InvalidOutput, match="returned what its annotation does not allow"):
            Signature(function).encode(value)
    for value in (Handle(), {1, object()}, float, {(1, 2): 3}, [float("nan"), None]):
        with pytest.raises(NotSerializable):
            Signature(anything).encode(value)
    with pytest.raises(NotSerializable, match="nan is not JSON"):
        Signature(ratio).encode(float("nan"))


GOOGLE = """Do it
well.

More words.

Args:
    first (int): the first,
        and more
    second: the second

Returns:
    what: not a parameter
"""
NUMPY = """Do it well.

Parameters
----------
first : int
    the first,
    and more
second, third
    the second

Returns
-------
what
    not a parameter
"""
REST = """Do it well.
:param int first: the first,
    and more
:param second: the second
:returns: what
"""


@pytest.mark.parametrize("text", [GOOGLE, NUMPY, REST])
def test_docstrings(text: str) -> None:
    summary, notes = docstring.parse(text)
    assert summary == "Do it well."
    assert notes.pop("third", "the second") == "the second"
    assert notes == {"first": "the first, and more", "second": "the second"}
    assert docstring.parse(None) == ("", {})


@dataclasses.dataclass
class Told:
    """A place to go.

    It is far:
        a day's walk.
    """

    name: str


def test_a_types_docstring_comes_without_the_sources_indentation() -> None:
    """As Python 3.13 compiles it: the same schema on every Python."""

    def go(to: Told) -> None: ...

    told = "A place to go.\n\nIt is far:\n    a day's walk."
    assert Signature(go).input_schema["$defs"]["Told"]["description"] == told


def test_docstring_reaches_the_schema() -> None:
    def pick(first: int, second: Point) -> None:
        """Pick two.

        Args:
            first: the first
            second: the second
        """

    signature = Signature(pick)
    assert signature.description == "Pick two."
    assert signature.input_schema["properties"]["first"] == {"type": "integer", "description": "the first"}
    assert signature.input_schema["properties"]["second"]["description"] == "the second"
