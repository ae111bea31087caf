"""Example inputs made from schemas are inputs. (A ``datetime`` that may be naive is any text to its schema.)"""

from __future__ import annotations

import datetime
import decimal
import enum
import shlex
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import jsonschema_rs
import msgspec
import pydantic
import pytest

from comity.cli.capabilities import typed
from comity.model.example import example
from comity.model.signature import Signature


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: float
    y: float
    name: str = "here"


class Tree(msgspec.Struct):
    value: int
    left: Tree | None
    children: list[Tree]


class Leaf(msgspec.Struct, tag="leaf"):
    value: int


class Branch(msgspec.Struct, tag="branch"):
    parts: list[Leaf]


class Order(pydantic.BaseModel):
    item: str = pydantic.Field(min_length=3, max_length=4, examples=["tea"])
    count: int = pydantic.Field(gt=5, le=9, multiple_of=3)
    price: float = pydantic.Field(gt=0, lt=1)
    to: Point


class Options(TypedDict, total=False):
    deep: bool


class Pair(NamedTuple):
    first: int
    second: str


KINDS = [
    str, int, float, bool, None, Any, bytes, list[int], dict[str, int], tuple[int, str], set[str], Colour, Point, Tree, Order,
    Options, Pair, Leaf | Branch, int | None, Literal["a", 3], Annotated[datetime.datetime, msgspec.Meta(tz=True)], datetime.date,
    Annotated[datetime.time, msgspec.Meta(tz=True)],
    datetime.timedelta, uuid.UUID, decimal.Decimal, list[Point], Annotated[int, msgspec.Meta(ge=10, lt=12)],
    Annotated[str, msgspec.Meta(min_length=9)], Annotated[float, msgspec.Meta(gt=-3, lt=-1)],
    Annotated[list[str], msgspec.Meta(min_length=2)], dict[str, list[Point]],
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_function_takes_the_example(kind: Any) -> None:
    def work(what: kind, how: int = 3) -> None: ...

    work.__annotations__ = {"what": kind, "how": int, "return": None}
    signature = Signature(work)
    made = example(signature.input_schema)
    assert jsonschema_rs.validator_for(signature.input_schema).is_valid(made), made
    arguments = signature.decode(msgspec.json.encode(made))
    assert len(arguments.positional) == 2


def test_only_what_is_required_is_given_and_texts_are_called_as_their_parameter() -> None:
    @dataclass
    class Size:
        width: int = field(default=3)

    def work(path: str, size: Size, depth: int = 2) -> None: ...

    assert example(Signature(work, namespace=locals()).input_schema) == {"path": "path", "size": {}}
    assert example({}) == "text"


def test_it_is_shown_so_that_it_can_be_typed() -> None:
    assert shlex.split(typed("it's", {"a": "it's \"so\""})) == ["comity", "submit", "it's", '{"a":"it\'s \\"so\\""}']
