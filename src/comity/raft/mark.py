"""Whose a log is: the first network to use it leaves its name and id, and another one is turned away."""

from __future__ import annotations

import msgspec

from comity.errors import Corrupt, ForeignData

FORMAT = 1


class Mark(msgspec.Struct, frozen=True):
    network: str
    id: str
    format: int = FORMAT

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Mark:
        """Raises Corrupt, ForeignData (a later version's)."""
        try:
            found = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise Corrupt(f"what says whose the log is cannot be read: {error}") from error
        if found.format != FORMAT:
            raise ForeignData(f"the log's mark is of format {found.format}, which this version does not know")
        return found
