"""Pieces: written once, read with their checksum."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from comity.backup.manifest import Object, Piece
from comity.backup.targets import Target
from comity.errors import Corrupt, NotFound
from comity.model.codec import digest
from comity.model.task import Stored

PIECE = 8 * 1024 * 1024
"""Bytes of a piece, at most."""


class Writer:
    """Writes what is not there yet. ``known``: objects of earlier backups; what they say is used if their pieces are there."""

    def __init__(self, target: Target, there: dict[str, int], known: Iterable[Object]) -> None:
        self._target = target
        self._there = there
        self._known = {(held.digest, held.size): held.parts for held in known}
        self.wrote = 0
        self.wrote_bytes = 0
        self.reused = 0

    def has(self, pieces: Iterable[Piece]) -> bool:
        return all(self._there.get(piece.name) == piece.size for piece in pieces)

    async def put(self, data: bytes) -> Piece:
        piece = Piece.of(data)
        if self.has([piece]):
            self.reused += 1
            return piece
        await self._target.put(piece.name, data)
        self._there[piece.name] = piece.size
        self.wrote += 1
        self.wrote_bytes += piece.size
        return piece

    def reuse(self, stored: Stored) -> Object | None:
        """What ``stored`` is in the target already, found without reading it."""
        mark = stored.digest.hex()
        pieces = self._known.get((mark, stored.size), (Piece(mark, stored.size),))
        if not self.has(pieces):
            return None
        self.reused += len(pieces)
        return Object(stored.key, mark, stored.size, pieces if len(pieces) > 1 else ())

    async def copy(self, stored: Stored, chunks: AsyncIterator[bytes]) -> Object:
        """Write an object, piece by piece. Raises what reading it raises; then what was written belongs to nobody yet."""
        pieces: list[Piece] = []
        rest = bytearray()
        async for chunk in chunks:
            rest += chunk
            while len(rest) > PIECE:
                pieces.append(await self.put(bytes(rest[:PIECE])))
                del rest[:PIECE]
        pieces.append(await self.put(bytes(rest)))
        return Object(stored.key, stored.digest.hex(), stored.size, tuple(pieces) if len(pieces) > 1 else ())


async def read(target: Target, piece: Piece, what: str) -> bytes:
    """The bytes of ``piece``, which is part of ``what``. Raises Corrupt, with its place, if they are missing, cut short or
    altered."""
    try:
        data = await target.get(piece.name)
    except NotFound:
        raise Corrupt(f"{what}: {piece.name} is missing", place=piece.name) from None
    if len(data) != piece.size:
        message = f"{what}: {piece.name} has {len(data)} bytes, not {piece.size}: cut short or altered"
        raise Corrupt(message, place=piece.name)
    if digest(data).hex() != piece.digest:
        raise Corrupt(f"{what}: {piece.name} is altered: it fails its checksum", place=piece.name)
    return data


async def stream(target: Target, pieces: Iterable[Piece], what: str) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield await read(target, piece, what)
