"""What stands for something large: a file in the store, or a message's body that does not fit into a message."""

from __future__ import annotations

import msgspec

BODY_LIMIT = 64 * 1024 * 1024
"""Bytes of a message's body; it is held in memory."""
REFERENCE = "application/vnd.comity.reference"
"""Content type of a body that is the MessagePack of a ``Stored``, whose content is the JSON body."""


class FileRef(msgspec.Struct, frozen=True):
    """A file in the store, for ``get_file``. Pass it on as it is: in inputs, results and messages it is JSON. ``size`` in bytes,
    ``digest`` is BLAKE2b-128 in hex; the same content by the same sender is stored once."""

    name: str
    size: int
    digest: str
    key: str
