"""What stands for something large: a file in the store, or a message's body that does not fit into a message."""

from __future__ import annotations

import msgspec

from comity.model.payload import Stored

REFERENCE = "application/vnd.comity.reference"
"""Content type of a body that is the MessagePack of a ``Stored``, whose content is the JSON body."""


class FileRef(msgspec.Struct, frozen=True):
    """A file in the store, for ``get_file``. Pass it on as it is: in inputs, results and messages it is JSON. ``size`` in bytes,
    ``digest`` is BLAKE2b-128 in hex; the same content by the same sender is stored once."""

    name: str
    size: int
    digest: str
    key: str

    @property
    def stored(self) -> Stored:
        return Stored(self.key, self.size, bytes.fromhex(self.digest))
