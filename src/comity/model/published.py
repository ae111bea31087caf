"""A capability as the registry has it: once, under the hash of its JSON."""

from __future__ import annotations

import hashlib

import msgspec

from comity.errors import InvalidInput
from comity.model.capability import Capability
from comity.model.codec import UNREADABLE

_sorted_json = msgspec.json.Encoder(order="deterministic")


def encode_capability(capability: Capability) -> tuple[str, bytes]:
    """A capability as a node publishes it once, under ``schemas/NODE/HASH``: the hash, and its JSON."""
    data = _sorted_json.encode(capability)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data


def decode_capability(data: bytes) -> Capability:
    try:
        return msgspec.json.decode(data, type=Capability)
    except UNREADABLE as error:
        raise InvalidInput(f"not a capability: {error}") from error
