"""What a backend costs beside its raw client, which does the same in the same run:
``python -m bench.backends etcd://HOST:PORT``, or ``consul://HOST:PORT`` for the registry (for the bus: ``bench.rabbitmq``).

Only on servers whose other users do not mind: it writes under the prefix ``comity-bench``, and takes away what it wrote.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import httpx2

from comity.consul import Consul
from comity.etcd.client import Etcd
from comity.log.etcd import EtcdLog
from comity.registry.consul import ConsulRegistry
from comity.registry.etcd import EtcdRegistry
from comity.remote.address import Where

TIMES = 500
ENTRY = bytes(range(256)) * 4
IN_FLIGHT = 64
ROUNDS = 3


async def one_by_one(work: Callable[[int], Awaitable[object]]) -> tuple[float, float, float]:
    """Calls a second; median and 99th percentile in milliseconds."""
    took = []
    began = time.perf_counter()
    for n in range(TIMES):
        at = time.perf_counter()
        await work(n)
        took.append((time.perf_counter() - at) * 1000)
    rate = TIMES / (time.perf_counter() - began)
    took.sort()
    return rate, statistics.median(took), took[int(TIMES * 0.99)]


class Raw:
    """The same transactions, by hand."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.AsyncClient(base_url=url, trust_env=False)
        self._tail = 0

    async def call(self, path: str, body: object) -> None:
        reply = await self._http.post(f"/v3/{path}", content=json.dumps(body).encode())
        assert reply.status_code == 200, reply.text

    async def begin(self) -> None:
        self._tail = 0
        await self.call("kv/put", {"key": text(b"comity-bench/raw/tail"), "value": text(b"0")})

    async def append(self, _: int) -> None:
        before, self._tail = self._tail, self._tail + 1
        tail = text(b"comity-bench/raw/tail")
        entry = {"key": text(b"comity-bench/raw/%016x" % self._tail), "value": text(ENTRY)}
        compare = [{"key": tail, "target": "VALUE", "result": "EQUAL", "value": text(b"%d" % before)}]
        success = [{"request_put": entry}, {"request_put": {"key": tail, "value": text(b"%d" % self._tail)}}]
        await self.call("kv/txn", {"compare": compare, "success": success})

    async def put(self, n: int) -> None:
        record = {"key": text(b"comity-bench/raw/n%d" % (n % 50)), "value": text(ENTRY)}
        await self.call("kv/txn", {"compare": [], "success": [{"request_put": record}]})

    async def close(self) -> None:
        await self._http.aclose()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def measure_consul(address: str) -> None:
    consul = await Consul.open(Where.parse(address, "consul")._replace(prefix="comity-bench"))
    registry = await ConsulRegistry.open(consul, "bench", create=True, network_id="bench")
    async with httpx2.AsyncClient(base_url=consul.url, trust_env=False) as http:

        async def raw(n: int) -> None:
            key = f"comity-bench/raw/n{n % 50}"
            operations = [{"KV": {"Verb": "delete", "Key": key}}, {"KV": {"Verb": "set", "Key": key, "Value": text(ENTRY)}}]
            reply = await http.put("/v1/txn", content=json.dumps(operations).encode())
            assert reply.status_code == 200, reply.text

        for _ in range(ROUNDS):
            show("register, raw client", await one_by_one(raw))
            show("register", await one_by_one(lambda n: registry.put(f"agents/n{n % 50}/0", ENTRY)))
    await consul.txn([{"Verb": "delete-tree", "Key": "comity-bench/"}])
    await registry.close()
    await consul.close()


async def measure(address: str) -> None:
    if address.startswith("consul"):
        await measure_consul(address)
        return
    where = Where.parse(address)._replace(prefix="comity-bench")
    etcd = await Etcd.open(where)
    raw = Raw(etcd.url)
    log = await EtcdLog.open(etcd, "bench", create=True, new_id="bench")
    registry = await EtcdRegistry.open(etcd, "bench", create=True, network_id="bench")
    for _ in range(ROUNDS):
        _, tail = await log.bounds()
        await raw.begin()
        show("append, raw client", await one_by_one(raw.append))
        show("append", await one_by_one(lambda n, tail=tail: log.append(ENTRY, tail + n)))
        show("register, raw client", await one_by_one(raw.put))
        show("register", await one_by_one(lambda n: registry.put(f"nodes/n{n % 50}", ENTRY)))
        _, tail = await log.bounds()
        began = time.perf_counter()
        flight = asyncio.Semaphore(IN_FLIGHT)

        async def append(n: int, flight: asyncio.Semaphore = flight, tail: int = tail) -> None:
            async with flight:
                await log.append(ENTRY, tail + n)

        await asyncio.gather(*(append(n) for n in range(4 * TIMES)))
        print(f"{'append, 64 in flight':24}{4 * TIMES / (time.perf_counter() - began):10,.0f}/s")
    await etcd.txn([], [{"request_delete_range": {"key": b"comity-bench/", "range_end": b"comity-bench0"}}])
    await log.close()
    await registry.close()
    await etcd.close()
    await raw.close()


def show(what: str, figures: tuple[float, float, float]) -> None:
    rate, median, last = figures
    print(f"{what:24}{rate:10,.0f}/s   p50 {median:6.2f} ms   p99 {last:6.2f} ms")


if __name__ == "__main__":
    asyncio.run(measure(sys.argv[1]))
