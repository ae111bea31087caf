"""A server of etcd that the others cannot reach any more, though its clients can: what it led goes on without it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from log_contract import fill, read_all, take
from registry_contract import Watcher
from test_etcd import EtcdWorld
from test_etcd_faults import append_surely, surely, worlds

from comity.errors import Conflict, Indefinite
from comity.log.etcd import EtcdLog
from comity.remote import endpoints
from crossing import Crossing
from etcds import Etcds
from members import HOST

__all__ = ["worlds"]

pytestmark = pytest.mark.server
AT_ONCE = 8


@pytest.fixture
async def crossing() -> AsyncIterator[Crossing]:
    made = Crossing(3)
    yield made
    await made.stop()


@pytest.fixture
async def trio(tmp_path: Path, crossing: Crossing) -> AsyncIterator[Etcds]:
    servers = Etcds(tmp_path / "trio", 3, dialed=crossing.ports)
    await crossing.start(servers.peers, servers.pid)
    await servers.start()
    yield servers
    await servers.kill()


class Writer:
    """Appends without end, as a leader of a network does: several in flight; after trouble it reads to the tail and goes on.
    No entry is tried twice. ``acknowledged``: by index."""

    def __init__(self, log: EtcdLog) -> None:
        self.acknowledged: dict[int, bytes] = {}
        self._log = log
        self._number = 0
        self._more = asyncio.Event()
        self._work = asyncio.create_task(self._write())

    async def _write(self) -> None:
        while True:
            _, tail = await surely(self._log.bounds)
            done: list[object] = []
            while not any(isinstance(one, BaseException) for one in done):
                done = await asyncio.gather(*(self._one(tail + n) for n in range(AT_ONCE)), return_exceptions=True)
                tail += AT_ONCE
            for one in done:
                if isinstance(one, BaseException) and not isinstance(one, Indefinite | Conflict):
                    raise one

    async def _one(self, after: int) -> None:
        self._number += 1
        entry = b"try %d" % self._number
        self.acknowledged[await self._log.append(entry, after)] = entry
        self._more.set()

    async def goes_on(self, count: int = 100) -> None:
        """Until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(40):
            while len(self.acknowledged) < wanted and not self._work.done():
                self._more.clear()
                await self._more.wait()

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])


@pytest.mark.slow
@pytest.mark.parametrize("which", ["the leader", "a follower"])
async def test_what_one_led_goes_on_without_it_and_nothing_is_there_twice(
    trio: Etcds, crossing: Crossing, worlds: Callable[[str], EtcdWorld], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    leader = await trio.until_led()
    one = leader if which == "the leader" else (leader + 1) % 3
    ports = [trio.ports[one], *(port for n, port in enumerate(trio.ports) if n != one)]
    able, stuck = worlds(f"etcd://{','.join(f'{HOST}:{port}' for port in ports)}"), worlds(f"etcd://{HOST}:{ports[0]}")
    log, alone = await able.log(), await stuck.log()
    registry, lonely = await able.registry(), await stuck.registry()
    await fill(log, 20)
    watcher, far = Watcher(registry, "nodes/"), Watcher(lonely, "nodes/")
    items = alone.follow(20)
    writer = Writer(log)
    await writer.goes_on()

    monkeypatch.setattr(endpoints, "PATIENCE_S", 0.5)
    monkeypatch.setattr(endpoints, "TRY_S", 1.0)
    crossing.cut_off(one)
    began = time.monotonic()
    await writer.goes_on()
    assert time.monotonic() - began < 20
    for work in (alone.append(b"lost", len(writer.acknowledged)), alone.bounds(), lonely.put("nodes/n1", b"lost")):
        with pytest.raises(Indefinite):
            await work
    await surely(lambda: registry.put("nodes/n1", b"1"))
    await watcher.when(lambda: watcher.state == {"nodes/n1": b"1"})
    await writer.goes_on()
    assert far.state == {}, "it has heard nothing of that"

    crossing.heal()
    await writer.goes_on()
    await writer.stop()
    await far.when(lambda: far.state == {"nodes/n1": b"1"})
    await append_surely(alone, b"together again")
    found = await surely(lambda: read_all(alone))
    assert found == await surely(lambda: read_all(log))
    assert writer.acknowledged.items() <= {item.index: item.data for item in found}.items()
    assert [entry for entry, times in Counter(item.data for item in found).items() if times > 1] == []
    assert b"lost" not in {item.data for item in found}
    assert (await take(items, len(found) - 20))[: len(found) - 20] == found[20:]
    await items.aclose()  # type: ignore[attr-defined]
    await watcher.stop()
    await far.stop()
