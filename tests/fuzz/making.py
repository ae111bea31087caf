"""Values to try the codec with: items of every kind with any content that their types allow, and bytes that are almost theirs."""

from __future__ import annotations

import os
import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

from comity.model import wire
from comity.model.item import Item

CASES = int(os.environ.get("COMITY_CASES", "100"))
"""Of each property; ``make test-long`` tries 100,000 in all."""
ITEMS: tuple[type[Item], ...] = typing.get_args(wire.Any_)

_PLAIN: dict[type, st.SearchStrategy[Any]] = {
    msgspec.inspect.IntType: st.integers(-(2**63), 2**64 - 1),
    msgspec.inspect.FloatType: st.floats(allow_nan=False, allow_infinity=False),
    msgspec.inspect.StrType: st.text(st.characters(codec="utf-8"), max_size=20),
    msgspec.inspect.BytesType: st.binary(max_size=40),
    msgspec.inspect.BoolType: st.booleans(),
    msgspec.inspect.NoneType: st.none(),
}
_KEYS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | _KEYS | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=30,
)
"""Anything MessagePack can say."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | _KEYS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=30,
)


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    """Values of what ``msgspec.inspect`` says a type is."""
    plain = _PLAIN.get(type(kind))
    if plain is not None:
        return plain
    match kind:
        case msgspec.inspect.StructType():
            return struct(kind.cls)
        case msgspec.inspect.VarTupleType() | msgspec.inspect.ListType():
            of = st.lists(of_type(kind.item_type), max_size=3)
            return of.map(tuple) if isinstance(kind, msgspec.inspect.VarTupleType) else of
        case msgspec.inspect.TupleType():
            return st.tuples(*map(of_type, kind.item_types))
        case msgspec.inspect.DictType():
            return st.dictionaries(of_type(kind.key_type), of_type(kind.value_type), max_size=3)
        case msgspec.inspect.UnionType():
            return st.one_of(*map(of_type, kind.types))
        case msgspec.inspect.EnumType():
            return st.sampled_from(list(kind.cls))
        case msgspec.inspect.AnyType():
            return JSON
    raise AssertionError(f"no values for {kind}: say here how to make some")


def struct(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Instances of a Struct."""
    fields = {field.name: of_type(msgspec.inspect.type_info(field.type)) for field in msgspec.structs.fields(cls)}
    return st.fixed_dictionaries(fields).map(lambda given: cls(**given))


items = st.lists(st.one_of(*map(struct, ITEMS)), max_size=4)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message's bytes with some changed, left out, doubled or cut off."""
    data = bytearray(wire.encode(draw(items)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 8))]
            case 2:
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                del data[at:]
    return bytes(data)
