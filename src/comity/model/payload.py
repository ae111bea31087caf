"""What tasks carry: inputs, results and records, as bytes or as the place where the bytes are."""

from __future__ import annotations

import msgspec

INLINE_LIMIT = 1024
"""Bytes of payload that replicated state may hold; a larger one stays in the log or the store."""
LOG_LIMIT = 256 * 1024
"""Bytes of payload that a command may carry; a larger one goes to the store first."""


class Stored(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="s"):
    """A payload in the store, by key. ``size`` in bytes, ``digest`` is BLAKE2b-128."""

    key: str
    size: int
    digest: bytes


class Logged(msgspec.Struct, array_like=True, frozen=True, gc=False, tag="l"):
    """A payload inside log entry ``index``, in its ``ordinal``-th command."""

    index: int
    ordinal: int
    size: int


Payload = bytes | Stored | Logged


def size_of(payload: Payload) -> int:
    """Bytes, wherever they are."""
    return len(payload) if isinstance(payload, bytes) else payload.size


def placed(payload: Payload, index: int, ordinal: int) -> Payload:
    """As replicated state holds it: what came with the ``ordinal``-th command of entry ``index`` and is large stays there."""
    if isinstance(payload, bytes) and len(payload) > INLINE_LIMIT:
        return Logged(index, ordinal, len(payload))
    return payload
