"""What a server of a cluster says of itself in the registry, under ``servers/NAME``."""

from __future__ import annotations

import msgspec

from comity.errors import InvalidInput
from comity.model.codec import UNREADABLE


class Damage(msgspec.Struct, frozen=True):
    """The server's copy of ``stream`` is damaged at entry ``index``, or was: ``mended`` once it is rebuilt."""

    stream: str
    index: int
    reason: str
    mended: bool = False

    @property
    def place(self) -> str:
        return f"{'log ' if self.stream.endswith('_LOG') else ''}entry {self.index}"


class ServerRecord(msgspec.Struct, frozen=True):
    """For the others' next start, for clients and for the leader. ``damages``: what was found since the server started,
    the last of each stream."""

    route: str
    url: str
    version: str
    damages: tuple[Damage, ...] = ()


_record = msgspec.json.Decoder(ServerRecord)


def decode_server(data: bytes) -> ServerRecord:
    try:
        return _record.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not a server's record: {error}") from error
