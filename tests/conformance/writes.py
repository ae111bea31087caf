"""One program that writes durably, to be killed at a failpoint: ``writes.py WHAT FOLDER``. It notes each thing that is done,
and run again on the same folder it must find all of that, and finish."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from comity.cli.marking import Mark
from comity.client.files import Depot
from comity.contexts import Context, Contexts
from comity.credentials import Authority, Credentials
from comity.embedded import EmbeddedServer
from comity.errors import NotFound
from comity.log.sqlite import SqliteLog
from comity.model.envelope import Envelope, Performative
from comity.model.ids import ProcessId
from comity.model.raft import Ballot, LogEntry, Snapshot
from comity.raft.records import Record
from comity.raft.wal import Wal
from comity.store.folder import FolderStore

ENTRIES = [b"one", b"two", b"three"]


class Said:
    """What was done, in this life and those before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.before = path.read_text().split("\n") if path.exists() else []

    def __call__(self, word: str) -> None:
        with self._path.open("a") as file:
            file.write(word + "\n")


async def sqlite(folder: Path, said: Said) -> None:
    log = await SqliteLog.open(folder / "log.sqlite")
    first, last = await log.bounds()
    assert last >= sum(word.startswith("entry") for word in said.before), "an acknowledged entry is gone"
    assert first == 2 or "trimmed" not in said.before
    for number in range(last, len(ENTRIES)):
        await log.append(ENTRIES[number], number)
        said(f"entry {number + 1}")
    await log.trim(1)
    said("trimmed")
    assert [item.data for item in await log.read(1)] == ENTRIES[1:]
    await log.close()


async def raft(folder: Path, said: Said) -> None:
    """A member's write-ahead log, in segments so small that each write begins one; at the end, a write that a crash cut short."""
    wal = Wal.open(folder / "raft", "net", "m1", segment_size=1)
    assert wal.ballot.term >= said.before.count("vote"), "a vote that was cast is gone"
    last = wal.snapshot.index + len(wal.entries)
    assert [entry.index for entry in wal.entries] == [*range(wal.snapshot.index + 1, last + 1)]
    assert last >= sum(word.startswith("entry") for word in said.before), "an acknowledged entry is gone"
    for number in range(last, len(ENTRIES)):
        wal.save([Record(None, [LogEntry(number + 1, 1, ENTRIES[number])], None)])
        said(f"entry {number + 1}")
    wal.save([Record(Ballot(wal.ballot.term + 1, "m1"), [], None)])
    said("vote")
    wal.save([Record(None, [], Snapshot(2, 1))])
    wal.close()
    with max((folder / "raft").glob("*.wal")).open("ab") as file:
        file.write(b"CR")
    wal = Wal.open(folder / "raft", "net", "m1")
    assert wal.torn is not None
    wal.close()


async def folder(folder: Path, said: Said) -> None:
    moment = 1000.0
    await FolderStore.join(folder / "store", network_id="net")
    await FolderStore.join(folder / "store")
    store = await FolderStore.open(folder / "store", wall=lambda: moment)
    for key, lifetime_s in (("n/kept", None), ("n/short", 10.0), ("n/gone", None)):
        if key in said.before and f"no {key}" not in said.before and lifetime_s is None:
            try:
                await store.read(key)
            except NotFound:
                assert key == "n/gone", "an acknowledged value is gone"
        await store.put(key, key.encode() * 1000, ttl_s=lifetime_s)
        said(key)
    await store.delete("n/gone")
    said("no n/gone")
    moment = 2000.0
    assert [stored.key for stored in await store.list("n/")] == ["n/kept"]
    assert await store.read("n/kept") == b"n/kept" * 1000
    assert not (folder / "store" / "values" / "n" / "short=").exists()


async def files(folder: Path, said: Said) -> None:
    try:
        authority = Authority.load(folder)
    except NotFound:
        assert "keys" not in said.before, "acknowledged keys are gone"
        authority = Authority.create(folder, "main")
    said("keys")
    path = folder / "one.creds"
    if "credentials" in said.before:
        assert Credentials.load(path).process == "one"
    authority.mint("client", "one").save(path)
    said("credentials")
    Context(urls=("nats://127.0.0.1:1",)).write_local(folder)
    assert Context.read_local(folder) is not None
    saved = Contexts(folder)
    assert "context" not in said.before or saved.names() == ["here"]
    saved.put("here", Context(urls=("nats://127.0.0.1:1",)))
    said("context")
    assert Contexts(folder).names() == ["here"]
    mark = Mark.load(folder)
    assert mark is not None or "mark" not in said.before
    Mark(network_id="n", index=mark.index + 1 if mark is not None else 1).save(folder)
    said("mark")


async def large(folder: Path, said: Said) -> None:
    store = await FolderStore.open(folder / "store", "me")
    depot = Depot(store, ProcessId("me"), wall=lambda: 1000.0, patience_s=10.0)
    body, kind = await depot.carried(b'"' + b"x" * 600_000 + b'"')
    about = Envelope(id="1", performative=Performative.INFORM, sender="me", body=body, content_type=kind)
    assert len((await depot.fetched(about)).body) == 600_002
    source, target = folder / "source", folder / "target"
    source.write_bytes(b"content" * 400_000)
    ref = await depot.put(source, 600.0)
    assert f"file {ref.key}" in said.before or not any(word.startswith("file") for word in said.before)
    said(f"file {ref.key}")
    assert not target.exists() or target.read_bytes() == source.read_bytes(), "it is there whole, or not at all"
    await depot.get(ref, target)
    assert target.read_bytes() == source.read_bytes()
    assert len(await store.list("me/")) == 2, "each is stored once, in however many lives"


async def server(folder: Path, said: Said) -> None:
    started = await EmbeddedServer.start(folder / "data", network="main", port=0)
    known = [word for word in said.before if word.startswith("network")]
    assert not known or known[0] == f"network {started.network_id}", "it is another network now"
    said(f"network {started.network_id}")
    await started.stop()
    assert json.loads((folder / "data" / "network.json").read_text())["network_id"] == started.network_id


WHAT: dict[str, Callable[[Path, Said], Awaitable[None]]] = {
    "sqlite": sqlite, "raft": raft, "folder": folder, "files": files, "large": large, "server": server,
}  # fmt: skip


async def main(what: str, place: Path) -> None:
    await WHAT[what](place, Said(place / "said"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
