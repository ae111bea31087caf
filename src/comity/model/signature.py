"""A function's signature as JSON Schema, and typed values in and out of it.

Input is a JSON object of the function's parameters; a function of one parameter also takes that parameter's value alone, if it
is not an object; ``null`` means no arguments. Types are whatever msgspec reads (builtins, dataclasses, Structs, TypedDict,
enums, unions, datetime ...) and pydantic models. Schemas are JSON Schema 2020-12.
"""

from __future__ import annotations

import collections.abc
import contextlib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from comity.errors import BadInput, InvalidInput, InvalidOutput
from comity.model import docstring
from comity.model.codec import to_json
from comity.model.parts import Final
from comity.model.typed import Decoder, decoder, is_pydantic

_ROOT = "Parameters__"
_Parameter = inspect.Parameter
_EMPTY = inspect.Parameter.empty
_UNIONS = (types.UnionType, typing.Union)
_STREAMS = (collections.abc.AsyncIterator, collections.abc.AsyncGenerator, collections.abc.AsyncIterable)


class Arguments(NamedTuple):
    positional: tuple[Any, ...]
    named: dict[str, Any]


_NO_NAMES: dict[str, Any] = {}


class Signature:
    """How to call a function with JSON, and what it gives back.

    ``handles``: the classes, among those offered by name, that its leading parameters want: annotated so, or called so.
    ``takes_input``: it has other parameters too. ``input_schema`` and ``output_schema``: {} means any value. ``is_stream``: it is
    an async generator, whose ``Final`` is the result (``has_final``: its annotation promises one), or else the list of its parts;
    ``output_schema`` then tells of the parts under ``x-parts``.
    """

    __slots__ = (
        "_input", "_named", "_optional", "_output", "_part", "_single", "_whole", "description", "handles", "has_final",
        "input_schema", "is_async", "is_stream", "name", "output_schema", "takes_input",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        handles: Mapping[str, type] | None = None,
        namespace: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> None:
        """Read the signature of ``function``. ``namespace``: where names of local types are looked up. ``whole``: a function of
        one parameter gets the whole body, object or not. Raises BadInput naming the parameter that has no JSON form."""
        target = _target(function)
        self.has_final = False
        self.name = getattr(target, "__name__", type(function).__name__)
        self.is_stream = inspect.isasyncgenfunction(target)
        self.is_async = self.is_stream or inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(target)
        if inspect.isgeneratorfunction(target) or (whole and self.is_stream):
            raise BadInput(f"{self.name}: a generator has no single result: only a capability may be one, and an async one")
        hints = _hints(target, namespace, self.name)
        parameters = list(inspect.signature(function).parameters.values())
        self.handles = _leading(parameters, hints, handles or {}, self.name)
        parameters = parameters[len(self.handles) :]
        self.takes_input = bool(parameters)
        self.description, notes = docstring.parse(inspect.getdoc(function) if target is function else target.__doc__)
        for parameter in parameters:
            self._check(parameter, hints)
        kinds = {p.name: _hint(p, hints) for p in parameters}
        self._named = tuple(p.name for p in parameters if p.kind is _Parameter.KEYWORD_ONLY)
        self._optional = all(p.default is not _EMPTY for p in parameters)
        only = kinds[parameters[0].name] if len(parameters) == 1 else None
        self._single = decoder(only) if len(parameters) == 1 else None
        self._whole = whole and self._single is not None
        self.input_schema, self._input = self._arguments(parameters, kinds, notes)
        if self._whole:
            self.input_schema = _schema(only)
        output = hints.get("return", Any)
        part: Any = Any
        if self.is_stream:
            part, output, self.has_final = _yielded(output)
        self.output_schema = self._schema_of(output, "its result")
        if self.is_stream:
            self.output_schema = {**self.output_schema, "x-parts": self._schema_of(part, "its parts")}
        self._part = None if part is Any else decoder(part)
        self._output = None if output is Any else decoder(output)

    def _check(self, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> None:
        if parameter.kind in (_Parameter.VAR_POSITIONAL, _Parameter.VAR_KEYWORD):
            raise BadInput(f"{self.name}: {parameter} has no schema; name its parameters", parameter=parameter.name)
        self._schema_of(_hint(parameter, hints), f"parameter {parameter.name!r}")

    def _schema_of(self, kind: Any, what: str) -> dict[str, Any]:
        try:
            return _schema(kind)
        except (TypeError, NameError, RecursionError) as error:
            message = f"{self.name}: {what}: {_label(kind)} has no JSON Schema ({str(error).splitlines()[-1]})"
            raise BadInput(f"{message}; use JSON types, a dataclass, a msgspec Struct or a pydantic model") from error

    def _arguments(
        self, parameters: list[inspect.Parameter], kinds: Mapping[str, Any], notes: Mapping[str, str]
    ) -> tuple[dict[str, Any], Decoder]:
        fields = [
            (p.name, kinds[p.name]) if p.default is _EMPTY else (p.name, kinds[p.name], _default(p.default))
            for p in parameters
        ]
        struct = msgspec.defstruct(_ROOT, fields, forbid_unknown_fields=True, kw_only=True)
        schema = _schema(struct)
        for p in parameters:
            about = schema["properties"][p.name]
            if p.default is not _EMPTY and "default" not in about:
                _put_default(about, p.default)
            if notes.get(p.name):
                about.setdefault("description", notes[p.name])
        return schema, decoder(struct)

    def decode(self, data: bytes) -> Arguments:
        """The arguments that ``data`` (JSON) stands for. Raises InvalidInput."""
        try:
            if self._whole or data[:1] != b"{":
                text = data.strip()
                if text == b"null" and self._optional:
                    data = b"{}"
                elif self._single is not None and (self._whole or text[:1] != b"{"):
                    value = self._single.decode(data)
                    return Arguments((), {self._named[0]: value}) if self._named else Arguments((value,), _NO_NAMES)
            values = msgspec.structs.astuple(self._input.decode(data))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{self.name}: {error}") from error
        if not self._named:
            return Arguments(values, _NO_NAMES)
        cut = len(values) - len(self._named)
        return Arguments(values[:cut], dict(zip(self._named, values[cut:], strict=True)))

    def encode(self, value: Any) -> bytes:
        """``value`` as JSON, checked against the annotated result. Raises NotSerializable, InvalidOutput."""
        return self._encode(value, self._output, "returned")

    def encode_part(self, value: Any) -> bytes:
        """As ``encode``, of something it yielded."""
        return self._encode(value, self._part, "yielded")

    def _encode(self, value: Any, reads: Decoder | None, did: str) -> bytes:
        data = to_json(value)
        if reads is not None:
            try:
                reads.decode(data)
            except (ValueError, RecursionError) as error:
                raise InvalidOutput(f"{self.name} {did} what its annotation does not allow: {error}") from error
        return data


def _target(function: Callable[..., Any]) -> Any:
    """The plain function behind partials and callable objects: where annotations and docstring are."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    if inspect.isclass(function) or not callable(function):
        raise BadInput(f"{function!r} is not a function")
    return type(function).__call__


def _hints(target: Any, namespace: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    plain = inspect.unwrap(getattr(target, "__func__", target))
    closed = dict(namespace or {})
    for name_, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet: a local function that calls itself
            closed[name_] = cell.cell_contents
    try:
        return typing.get_type_hints(target, localns=closed, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise BadInput(f"{name}: its annotations cannot be read: {error}") from error


def _leading(
    parameters: list[inspect.Parameter], hints: Mapping[str, Any], offered: Mapping[str, type], name: str
) -> tuple[type, ...]:
    """The handles that the first parameters want. Raises BadInput for one that comes later."""
    wanted = [_handle(hints.get(p.name, offered.get(p.name)), offered) for p in parameters]
    count = next((number for number, handle in enumerate(wanted) if handle is None), len(wanted))
    for parameter, handle in zip(parameters, wanted, strict=True):
        if handle is not None and (parameter.kind is _Parameter.KEYWORD_ONLY or handle in wanted[count:]):
            raise BadInput(f"{name}: make {parameter.name!r} its first parameter", parameter=parameter.name)
    return tuple(handle for handle in wanted[:count] if handle is not None)


def _handle(hint: Any, offered: Mapping[str, type]) -> type | None:
    """The handle that ``hint`` means, optional or not."""
    plain = [part for part in typing.get_args(hint) if part is not type(None)] if typing.get_origin(hint) in _UNIONS else [hint]
    return next((handle for handle in offered.values() if plain == [handle]), None)


def _hint(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """The parameter's type; any value if it says none. A default of None allows null."""
    kind = hints.get(parameter.name, Any)
    return kind | None if parameter.default is None and kind is not Any else kind


def _yielded(hint: Any) -> tuple[Any, Any, bool]:
    """Of an annotation such as ``AsyncIterator[str | Final[Report]]``: the type of parts, of the result, and whether it promises
    a ``Final``."""
    named = typing.get_args(hint) if typing.get_origin(hint) in _STREAMS else ()
    kind = named[0] if named else Any
    kinds = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    finals = [part for part in kinds if (typing.get_origin(part) or part) is Final]
    if not finals:
        return kind, Any if kind is Any else types.GenericAlias(list, (kind,)), False
    parts = [part for part in kinds if part not in finals]
    result = typing.get_args(finals[0])
    return functools.reduce(operator.or_, parts) if parts else Any, result[0] if result else Any, True


def _default(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return msgspec.field(default=value)
    return msgspec.field(default_factory=lambda: value)


def _put_default(about: dict[str, Any], value: Any) -> None:
    """Tell the default in the schema, if it has a JSON form."""
    try:
        about["default"] = msgspec.json.decode(to_json(value))
    except BadInput:
        return


def _label(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or str(kind)


def _schema(kind: Any) -> dict[str, Any]:
    """JSON Schema of ``kind`` with its definitions beside it. Raises TypeError, NameError."""
    lifted: dict[str, Any] = {}

    def custom(model: type) -> dict[str, Any]:
        if not is_pydantic(model):
            raise NotImplementedError
        schema: dict[str, Any] = model.model_json_schema(ref_template="#/$defs/{model}")  # type: ignore[attr-defined]
        lifted.update(schema.pop("$defs", {}))
        return schema

    (root,), definitions = msgspec.json.schema_components([kind], schema_hook=custom)
    definitions.update(lifted)
    if root == {"$ref": f"#/$defs/{_ROOT}"}:
        root = definitions.pop(_ROOT)
        root.pop("title", None)
    for part in definitions.values():
        docstring.clean(part)
    return {**root, "$defs": definitions} if definitions else dict(root)
