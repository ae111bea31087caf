"""Whatever bytes come, the codec reads what was written, or says that it cannot; it never fails in another way."""

from __future__ import annotations

import contextlib
import typing

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import CASES, ITEMS, JSON, VALUES, damaged, items, struct

from comity.errors import Corrupt, ForeignData, InvalidInput, NotSerializable
from comity.model import published, wire
from comity.model.capability import AgentRecord, Capability, NodeRecord
from comity.model.codec import MAGIC, decode_envelope, digest, encode_envelope, from_json, seal, to_json, unseal
from comity.model.envelope import Envelope
from comity.model.item import Item
from comity.model.task import Entry

pytestmark = [pytest.mark.slow] if CASES > 1000 else []
tried = settings(max_examples=CASES, suppress_health_check=list(HealthCheck))


@tried
@given(items)
def test_what_is_written_is_read(said: list[Item]) -> None:
    data = wire.encode(said)
    assert wire.decode(data) == said
    assert wire.decode(wire.join([wire.encode_one(item) for item in said])) == said


@tried
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    registered = published.decode_agents, published.decode_node, published.decode_capability
    for read in (wire.decode, *registered, decode_envelope, from_json):
        with contextlib.suppress(InvalidInput):
            read(data)
    for entry in (data, MAGIC + data, MAGIC + digest(data) + data):
        with contextlib.suppress(Corrupt, ForeignData):
            unseal(entry)


@tried
@given(damaged())
def test_almost_right_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = wire.decode(data)
    except InvalidInput:
        return
    assert wire.decode(wire.encode(found)) == found or "nan" in str(found)


@tried
@given(st.sampled_from(ITEMS), st.lists(VALUES, max_size=12))
def test_items_with_anything_in_them_are_read_or_refused(kind: type[Item], values: list[typing.Any]) -> None:
    tag = msgspec.inspect.type_info(kind).tag  # type: ignore[attr-defined]
    data = msgspec.msgpack.encode([[tag, *values]])
    try:
        (found,) = wire.decode(data)
    except InvalidInput:
        return
    assert type(found) is kind


@tried
@given(VALUES)
def test_any_message_pack_is_read_or_refused(value: typing.Any) -> None:
    with contextlib.suppress(InvalidInput):
        wire.decode(msgspec.msgpack.encode(value))


@tried
@given(struct(Envelope), struct(AgentRecord), struct(NodeRecord), struct(Entry))
def test_nouns_are_read_as_they_were_written(envelope: Envelope, agent: AgentRecord, node: NodeRecord, entry: Entry) -> None:
    assert decode_envelope(encode_envelope(envelope)) == envelope
    assert published.decode_agents(published.encode_agents([agent])) == [agent]
    assert published.decode_node(published.encode_node(node)) == node
    data, mark = seal(entry)
    assert unseal(data) == (entry, mark)


@tried
@given(struct(Capability))
def test_a_capability_is_read_as_it_was_written(capability: Capability) -> None:
    name, data = published.encode_capability(capability)
    assert published.encode_capability(published.decode_capability(data))[0] == name


@tried
@given(JSON)
def test_json_is_read_as_it_was_written(value: typing.Any) -> None:
    assert from_json(to_json(value)) == value


@tried
@given(st.recursive(st.floats() | st.none() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)))
def test_what_json_cannot_say_is_refused(value: typing.Any) -> None:
    try:
        data = to_json(value)
    except NotSerializable:
        assert any(word in str(value) for word in ("nan", "inf")) or not _is_text(str(value))
    else:
        assert from_json(data) == value


def _is_text(text: str) -> bool:
    return text.isprintable() and all(ord(letter) < 0xD800 or ord(letter) > 0xDFFF for letter in text)
