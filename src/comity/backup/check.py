"""Reads every byte of a backup, and says where it is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from comity.backup import contents, pieces
from comity.backup.create import referred
from comity.backup.manifest import Manifest, Piece
from comity.backup.targets import Target
from comity.controller.snapshot import load
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import Corrupt

SAID = 5
"""Places that an error's message names; its details name all."""


class Checked(msgspec.Struct):
    """``bytes`` that were read, in so many pieces."""

    pieces: int
    bytes: int


async def check(target: Target, manifest: Manifest) -> Checked:
    """Raises Corrupt, with all ``places``, if anything is missing, cut short or altered, and ForeignData for a newer format."""
    faults: list[Corrupt] = []
    seen: dict[Piece, None] = {}
    packed: set[str] = set()
    for piece, what in _pieces(manifest):
        if piece in seen:
            continue
        seen[piece] = None
        try:
            data = await pieces.read(target, piece, what)
            if what == "payloads":
                packed.update(pack.key for pack in contents.unpack(data, piece.name))
        except Corrupt as error:
            faults.append(error)
    if not faults:
        try:
            state, _ = await state_of(target, manifest)
            faults += _gaps(manifest, state, packed)
        except Corrupt as error:
            faults.append(error)
    if faults:
        places = [str(fault.details.get("place", fault.message)) for fault in faults]
        said = "; ".join(fault.message for fault in faults[:SAID]) + ("; ..." if len(faults) > SAID else "")
        raise Corrupt(f"backup {manifest.name} is damaged in {len(faults)} places: {said}", places=places)
    return Checked(len(seen), sum(piece.size for piece in seen))


def _pieces(manifest: Manifest) -> list[tuple[Piece, str]]:
    found = [(piece, "state") for piece in manifest.state]
    found += [(piece, "payloads") for piece in manifest.payloads]
    found += [(piece, held.key) for held in manifest.objects for piece in held.parts]
    return found + ([(manifest.keys, "keys")] if manifest.keys is not None else [])


async def state_of(target: Target, manifest: Manifest) -> tuple[Tasks, Ledger]:
    """The state that a backup holds, and the ledger of the log it came from. Raises Corrupt, ForeignData (a newer format)."""
    state, ledger = await load(_joined(target, manifest), manifest.network_id)
    try:
        state.check()
    except AssertionError as error:
        raise Corrupt(f"backup {manifest.name}: its state contradicts itself: {error}", place="state") from error
    if (ledger.effective_index, ledger.digest.hex()) != (manifest.index, manifest.log_digest):
        raise Corrupt(f"backup {manifest.name}: its state is not that after entry {manifest.index}", place="state")
    return state, ledger


async def _joined(target: Target, manifest: Manifest) -> AsyncIterator[bytes]:
    async for data in pieces.stream(target, manifest.state, "state"):
        yield data


def _gaps(manifest: Manifest, state: Tasks, packed: set[str]) -> list[Corrupt]:
    """What state refers to and the backup neither holds nor says it lacks."""
    held = {held.key for held in manifest.objects} | packed.union(manifest.missing, manifest.damaged)
    lost = [key for key in referred(state) if key not in held]
    return [Corrupt(f"backup {manifest.name} lacks {key}", place=key) for key in lost]
