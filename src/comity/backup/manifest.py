"""What a backup is made of: one JSON file with a checksum, which names every piece by its digest.

    {"digest": "BLAKE2b-128 of what follows, as it stands there", "manifest": {"format": 1, "name": ...}}
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from comity.backup.targets import Target
from comity.errors import BadInput, Corrupt, ForeignData, NotFound
from comity.model.codec import UNREADABLE, digest
from comity.model.ids import NetworkId

FORMAT = 1
MANIFESTS = "manifests/"


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Some bytes: BLAKE2b-128 in hex, and how many."""

    digest: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> Piece:
        return cls(digest(data).hex(), len(data))

    @property
    def name(self) -> str:
        return f"pieces/{self.digest[:2]}/{self.digest}"


class Object(msgspec.Struct, array_like=True, frozen=True):
    """One value of the network's store; ``pieces`` is empty if it is a single one, which then has the same digest."""

    key: str
    digest: str
    size: int
    pieces: tuple[Piece, ...] = ()

    @property
    def parts(self) -> tuple[Piece, ...]:
        return self.pieces or (Piece(self.digest, self.size),)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One backup: network ``network_id`` after the effective entry ``index``, of digest ``log_digest``.

    ``state``: replicated state as a snapshot, to be joined; ``payloads``: packs of those that lay in the log; ``objects``: the
    store; ``missing``: what state names and was no longer there (it had expired); ``damaged``: what failed its checksum and was
    left out. ``keys`` is there if the keys are.
    """

    format: int = FORMAT
    version: str
    name: str
    network: str
    network_id: NetworkId
    at_ms: int
    index: int
    log_digest: str
    term: int
    generation: int
    last_epoch: int
    entry_ms: int
    state: list[Piece]
    payloads: list[Piece]
    objects: list[Object]
    keys: Piece | None = None
    tasks: dict[str, int] = {}
    missing: list[str] = []
    damaged: list[str] = []

    @property
    def file(self) -> str:
        return f"{MANIFESTS}{self.name}.json"

    @property
    def size(self) -> int:
        """Bytes of all its pieces; some may be other backups' too."""
        return sum(piece.size for piece in {*self.pieces()})

    def pieces(self) -> Iterable[Piece]:
        yield from self.state
        yield from self.payloads
        for held in self.objects:
            yield from held.parts
        if self.keys is not None:
            yield self.keys


class _Sealed(msgspec.Struct):
    digest: str
    manifest: msgspec.Raw


class _Format(msgspec.Struct):
    format: int


def encode(manifest: Manifest) -> bytes:
    body = msgspec.json.encode(manifest)
    return msgspec.json.encode(_Sealed(digest(body).hex(), msgspec.Raw(body))) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Raises Corrupt, or ForeignData if a newer version wrote it; ``where`` names the place."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
    except UNREADABLE as error:
        raise Corrupt(f"{where} is cut short or altered: {error}", place=where) from error
    body = bytes(sealed.manifest)
    if digest(body).hex() != sealed.digest:
        raise Corrupt(f"{where} is altered: it fails its checksum", place=where)
    try:
        number = msgspec.json.decode(body, type=_Format).format
        if number == FORMAT:
            return msgspec.json.decode(body, type=Manifest)
    except UNREADABLE as error:
        raise Corrupt(f"{where} cannot be read: {error}", place=where) from error
    raise ForeignData(f"{where} has format {number}; this version reads {FORMAT}: use a newer Comity", place=where)


def name_for(at_ms: int, index: int, network: NetworkId) -> str:
    """Names sort as the times do, and tell whose they are."""
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y%m%dT%H%M%S.%f}"[:-3] + f"Z-{index}-{network}"


def network_of(name: str) -> str:
    return name.rpartition("-")[2]


async def names(target: Target) -> list[str]:
    """Of all backups, oldest first."""
    listed = await target.list(MANIFESTS)
    return sorted(name.removeprefix(MANIFESTS).removesuffix(".json") for name in listed if name.endswith(".json"))


async def read(target: Target, name: str) -> Manifest:
    """Raises NotFound, Corrupt, ForeignData."""
    file = f"{MANIFESTS}{name}.json"
    manifest = decode(await target.get(file), file)
    if manifest.name != name:
        raise Corrupt(f"{file} holds backup {manifest.name!r}", place=file)
    return manifest


async def find(target: Target, name: str = "") -> Manifest:
    """The backup called so (or whose name begins so), else the newest. Raises NotFound; BadInput if several fit, or the newest is
    wanted where those of several networks lie."""
    fitting = [known for known in await names(target) if known.startswith(name)]
    if not fitting:
        raise NotFound(f"no backup is called {name}" if name else "there are no backups here")
    if name and name not in fitting and len(fitting) > 1:
        raise BadInput(f"{len(fitting)} backups are called {name}..., such as {fitting[-1]}", value=name)
    if name:
        return await read(target, name if name in fitting else fitting[-1])
    networks = {network_of(known) for known in fitting}
    if len(networks) > 1:
        raise BadInput(f"backups of several networks lie here ({', '.join(sorted(networks))}): name one", value="")
    return await read(target, fitting[-1])
