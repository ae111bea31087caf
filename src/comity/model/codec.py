"""Bytes and values. One place knows the formats: MessagePack arrays inside, JSON where users look.

A sealed entry is ``b"C1" + BLAKE2b-128(body) + body``; the digest is the checksum and what the next entry names as parent.
"""

from __future__ import annotations

import hashlib
from math import isfinite
from typing import Any

import msgspec

from comity.errors import Corrupt, ForeignData, InvalidInput, NotSerializable
from comity.model.envelope import Envelope
from comity.model.task import Entry

MAGIC = b"C1"
DIGEST_SIZE = 16
ROOT_DIGEST = bytes(DIGEST_SIZE)
"""Parent of a network's first entry."""


def _to_builtin(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return None  # JSON already: nothing to look for
    dump = getattr(value, "model_dump", None)
    if dump is not None and hasattr(type(value), "model_fields"):
        return dump(mode="json")
    raise NotImplementedError(f"{type(value).__name__} is not JSON")


UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding bytes from outside may raise."""

_json = msgspec.json.Encoder(enc_hook=_to_builtin)
_entries = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


def digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def to_json(value: Any) -> bytes:
    """``value`` as JSON: builtins, dataclasses, msgspec Structs, pydantic models. NotSerializable otherwise, and for NaN and
    infinity."""
    try:
        data = _json.encode(value)
        if b"null" in data and value is not None:  # what msgspec writes for NaN and infinity too
            _check_finite(msgspec.to_builtins(value, str_keys=True, enc_hook=_to_builtin))
        return data
    except (TypeError, ValueError, NotImplementedError, RecursionError, OverflowError) as error:
        raise NotSerializable(f"cannot write {type(value).__name__} as JSON: {error}") from error


def _check_finite(value: Any) -> None:
    left = [value]
    for part in left:
        if type(part) is dict:
            left.extend(part.values())
        elif type(part) is list or type(part) is tuple:
            left.extend(part)
        elif type(part) is float and not isfinite(part):
            raise ValueError(f"{part} is not JSON")


def from_json(data: bytes) -> Any:
    """JSON bytes as builtins; InvalidInput if they are not JSON."""
    try:
        return msgspec.json.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not JSON: {error}") from error


def seal(entry: Entry) -> tuple[bytes, bytes]:
    """The bytes of an entry, and its digest."""
    body = _entries.encode(entry)
    mark = digest(body)
    return MAGIC + mark + body, mark


def unseal(data: bytes) -> tuple[Entry, bytes]:
    """The entry and its digest. ForeignData if it was not written by Comity, Corrupt if its checksum fails."""
    if data[:2] != MAGIC:
        raise ForeignData("this log entry is not one of Comity's, or of a newer format")
    mark = data[2 : 2 + DIGEST_SIZE]
    body = data[2 + DIGEST_SIZE :]
    if digest(body) != mark:
        raise Corrupt("a log entry fails its checksum")
    try:
        return _entry_decoder.decode(body), mark
    except UNREADABLE as error:
        raise ForeignData(f"a log entry of a newer or foreign format: {error}") from error


def is_intact(data: bytes | memoryview) -> bool:
    """Whether these are a sealed entry's bytes, as they were sealed."""
    return data[:2] == MAGIC and digest(data[2 + DIGEST_SIZE :]) == data[2 : 2 + DIGEST_SIZE]


def encode_envelope(envelope: Envelope) -> bytes:
    return _entries.encode(envelope)


def decode_envelope(data: bytes) -> Envelope:
    """InvalidInput for foreign bytes."""
    try:
        return _envelope_decoder.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not an envelope: {error}") from error
