"""JSON as values of the types that people annotate: whatever msgspec reads, and pydantic models, which are known by their methods
so that pydantic is never imported here.

msgspec leaves the plain default of a dataclass's field with the class, and writes only what an instance has of its own: a value
that is passed on would lose it. So defaults are put where they belong.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable
from typing import Any, Protocol

import msgspec


class Decoder(Protocol):
    """Reads values of one type. Raises ValueError (of msgspec's), RecursionError."""

    def decode(self, data: bytes, /) -> Any: ...


def decoder(kind: Any) -> Decoder:
    """Raises TypeError for what is no type."""
    plain = msgspec.json.Decoder(kind, dec_hook=_decode_custom)
    return _Completing(plain) if _has_plain_defaults(kind) else plain


def returned_by(function: Callable[..., Any]) -> Any:
    """What ``function`` is annotated to return, if that can be read from JSON; else Any."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        kind = typing.get_type_hints(function).get("return", Any)
        decoder(kind)
    except (NameError, TypeError, AttributeError):  # named where we cannot look, or no type at all
        return Any
    return kind


def is_pydantic(kind: type) -> bool:
    return hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json")


def _decode_custom(kind: type, value: Any) -> Any:
    if not is_pydantic(kind):
        raise NotImplementedError
    return kind.model_validate_json(msgspec.json.encode(value))  # type: ignore[attr-defined]


class _Completing:
    def __init__(self, plain: Decoder) -> None:
        self._plain = plain

    def decode(self, data: bytes, /) -> Any:
        value = self._plain.decode(data)
        _complete(value)
        return value


def _has_plain_defaults(kind: Any) -> bool:
    """Whether a dataclass with such a default is anywhere in ``kind``."""
    seen: set[int] = set()
    left: list[Any] = [msgspec.inspect.type_info(kind)]
    while left:
        part = left.pop()
        if isinstance(part, tuple):
            left.extend(part)
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, msgspec.inspect.DataclassType) and any(_is_plain(field) for field in part.fields):
                return True
            left.extend(getattr(part, name) for name in part.__struct_fields__)
    return False


def _is_plain(field: msgspec.inspect.Field) -> bool:
    return field.default is not msgspec.NODEFAULT


def _complete(value: Any) -> None:
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            left.extend(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            left.extend(part)
        elif isinstance(part, msgspec.Struct):
            left.extend(getattr(part, name) for name in part.__struct_fields__)
        elif dataclasses.is_dataclass(part):
            own = getattr(part, "__dict__", {})  # one with slots has all it needs
            for field in dataclasses.fields(part):
                if field.default is not dataclasses.MISSING:
                    own.setdefault(field.name, field.default)
                left.append(getattr(part, field.name, None))
