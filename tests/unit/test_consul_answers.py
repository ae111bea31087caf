"""What answers in Consul's place, or of what a network is called, is no fault that nobody understands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from comity.consul import Consul
from comity.errors import BadSettings, Conflict, Unreachable
from comity.registry.consul import ConsulRegistry
from comity.remote import endpoints
from comity.remote.address import Where

PAGE = (200, {}, b"<html>Back soon</html>")
SELF = (200, {}, b'{"Config": {"Version": "1.8.7", "NodeName": "c"}}')


class Place:
    """Answers each request by the first of ``answers`` whose path it begins with."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {"/": PAGE}
        self.asked = 0

    async def __aenter__(self) -> Place:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.where = Where.parse(f"consul://127.0.0.1:{self._server.sockets[0].getsockname()[1]}", "consul")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
        status, headers, body = next(answer for start, answer in self.answers.items() if path.startswith(start))
        lines = [f"HTTP/1.1 {status} So", f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(endpoints, "PATIENCE_S", 0.1)
    monkeypatch.setattr(endpoints, "CONNECT_S", 20.0)
    monkeypatch.setattr(endpoints, "TRY_S", 20.0)
    return iter([None])


async def test_a_page_in_its_place_is_no_consul_at_first_and_unreachable_later() -> None:
    async with Place() as place:
        with pytest.raises(BadSettings, match="is no Consul"):
            await Consul.open(place.where)
        place.answers = {"/v1/agent/self": SELF, "/v1/txn": (200, {}, b"{}"), "/": PAGE}
        consul = await Consul.open(place.where)
        registry = await ConsulRegistry.open(consul, "net", create=True, network_id="id")
        place.answers["/v1/txn"] = PAGE
        puts = [registry.put("nodes/n", b"x", ttl_s=ttl_s) for ttl_s in (None, 9)]
        for ask in (registry.get("nodes/n"), registry.list(""), *puts):
            with pytest.raises(Unreachable, match="no Consul would"):
                await ask
        watch = registry.watch("nodes/")
        first = asyncio.ensure_future(anext(watch))
        place.answers = {"/v1/kv": (404, {"X-Consul-Index": "7"}, b"")}
        assert await asyncio.wait_for(first, 20) == []
        await watch.aclose()
        await consul.close()


async def test_an_answer_without_an_index_is_not_asked_for_again_and_again() -> None:
    async with Place() as place:
        place.answers = {"/v1/agent/self": SELF, "/v1/txn": (200, {}, b"{}"), "/v1/kv": (200, {}, b"[]")}
        consul = await Consul.open(place.where)
        registry = await ConsulRegistry.open(consul, "net", create=True, network_id="id")
        with pytest.raises(Unreachable, match="without an index"):
            await registry.list("nodes/")
        await consul.close()


async def test_a_network_called_like_what_consul_says_of_sessions() -> None:
    async with Place() as place:
        place.answers = {"/v1/agent/self": SELF, "/v1/txn": (200, {}, b"{}")}
        consul = await Consul.open(place.where)
        registry = await ConsulRegistry.open(consul, "Sessions", create=True, network_id="id")
        refusal = b'{"Errors": [{"OpIndex": 0, "What": "key \\"comity/Sessions/reg/nodes/n\\" exists"}]}'
        place.answers["/v1/txn"] = (409, {}, refusal)
        with pytest.raises(Conflict):
            await asyncio.wait_for(registry.put("nodes/n", b"x", expect=0), 20)
        await consul.close()


async def test_a_node_that_cannot_be_shown_as_a_service_is_registered(caplog: pytest.LogCaptureFixture) -> None:
    async with Place() as place:
        done = b'{"Results": [{"KV": {"Key": "comity/net/reg/nodes/n1", "ModifyIndex": 7}}]}'
        place.answers = {"/v1/agent/self": SELF, "/v1/txn": (200, {}, done), "/": (500, {}, b"no")}
        consul = await Consul.open(place.where)
        registry = await ConsulRegistry.open(consul, "net", create=True)
        assert await registry.put("nodes/n1", b"here") == 7
        assert "does not show n1 as a service" in caplog.text
        place.answers["/v1/txn"] = (500, {}, b"no")
        with pytest.raises(Unreachable):
            await registry.put("nodes/n1", b"here")
        await registry.close()
        await consul.close()
