"""What is too large for a message goes by the store, and nobody notices; files go by a reference."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from node_stage import Caller, Stage, staged_on, until
from stand_in import ground

from comity import Agent, FileRef, Message
from comity.errors import BadInput, Conflict, Corrupt, NotFound, TimedOut, TooLarge, Unreachable
from comity.model import wire
from comity.model.envelope import Performative
from comity.model.files import BODY_LIMIT, REFERENCE
from comity.model.payload import Stored
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

staged = staged_on(VirtualLoop)
LARGE = "x" * 400_000


def echo(name: str = "a") -> Agent:
    agent = Agent(name)

    @agent.on("echo")
    async def back(text: str) -> str:
        return text + "!"

    @agent.on("twice")
    async def twice(message: Message) -> None:
        message.reply(message.body + "?")

    @agent.capability
    async def length(text: str) -> int:
        return len(text)

    return agent


@staged
async def test_large_bodies_arrive_whole_both_ways(stage: Stage) -> None:
    await stage.started(echo())
    other = stage.node("n2", [Agent("b")])
    await other.start()
    net = other.client
    assert await net.request("n1/a", LARGE, topic="echo") == LARGE + "!"
    assert await net.request("n1/a", LARGE, topic="twice") == LARGE + "?"
    assert await net.request("n1/a", {"text": LARGE}, topic="length") == len(LARGE)
    with pytest.raises(TooLarge, match="put_file"):
        await net.request("n1/a", "x" * BODY_LIMIT, topic="echo")


@staged
async def test_a_broadcast_is_stored_once_however_many_read_it(stage: Stage) -> None:
    heard: list[tuple[str, int]] = []

    def hearing(name: str) -> Agent:
        agent = Agent(name)

        @agent.on("news")
        async def hear(message: Message) -> None:
            heard.append((name, len(message.body)))

        return agent

    await stage.started(hearing("a"), hearing("b"))
    other = stage.node("n2", [Agent("c")])
    await other.start()
    for _ in range(2):
        await other.client.broadcast(LARGE, topic="news")
    await until(lambda: len(heard) == 4)
    assert sorted(set(heard)) == [("a", len(LARGE)), ("b", len(LARGE))]
    assert len(await MemoryStore(stage.store).list("n2/bodies/")) == 1


@staged
async def test_a_reference_to_what_is_not_the_senders_is_refused(stage: Stage) -> None:
    await stage.started(echo())
    caller = await Caller.join(stage)
    foreign = await MemoryStore(stage.store).put("n1/results/t/1", b'"secret"')
    own = await MemoryStore(stage.store).put("c1/bodies/1", b'"mine"')
    cases: list[tuple[bytes, str]] = [
        (msgspec.msgpack.encode(foreign), "invalid-input"),
        (b"\xff\x00", "invalid-input"),
        (msgspec.msgpack.encode(Stored("c1/bodies/none", 4, b"d" * 16)), "not-found"),
        (msgspec.msgpack.encode(Stored("c1/bodies/1", 6, b"d" * 16)), "invalid-input"),
        (msgspec.msgpack.encode(Stored("c1/bodies/1", BODY_LIMIT + 1, own.digest)), "too-large"),
    ]
    for body, code in cases:
        asked = msgspec.structs.replace(caller.envelope("n1/a", topic="echo"), body=body, content_type=REFERENCE)
        await caller.bus.send("to/n1", wire.encode([wire.Message(asked)]))
        await until(lambda asked=asked: any(e.in_reply_to == asked.id for e in caller.got))  # type: ignore[misc]
        assert caller.got[-1].performative is Performative.FAILURE
        assert msgspec.json.decode(caller.got[-1].body)["code"] == code


async def test_clients_send_each_other_large_things() -> None:
    async with ground() as g:
        server, client = await g.client("c2"), await g.client()
        heard: list[int] = []

        @server.on("news")
        def hear(body: str) -> None:
            heard.append(len(body))

        @server.on("grow")
        async def grow(n: int) -> str:
            return "x" * n

        await client.broadcast(LARGE, topic="news")
        asked = asyncio.ensure_future(client.request("c2/", 400_000, topic="grow"))
        assert len(await asked) == 400_000
        assert heard == [len(LARGE)]


async def test_a_file_is_stored_once_and_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 9_000)
    (tmp_path / "copy.bin").write_bytes((tmp_path / "a.bin").read_bytes())
    (tmp_path / "empty").touch()
    (tmp_path / "there").mkdir()
    async with ground() as g:
        client, other = await g.client(), await g.client("c2")
        ref = await client.put_file(tmp_path / "a.bin")
        again = await client.put_file(tmp_path / "copy.bin")
        assert (ref.key, ref.size, ref.name, again.name) == (again.key, 2_304_000, "a.bin", "copy.bin")
        assert len(await MemoryStore(g.values).list("c1/files/")) == 1
        as_json: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ref))
        got = await other.get_file(as_json, tmp_path / "there")
        assert got == tmp_path / "there" / "a.bin"
        assert got.read_bytes() == (tmp_path / "a.bin").read_bytes()
        nothing = await other.get_file(await client.put_file(tmp_path / "empty"), tmp_path / "there" / "e")
        assert nothing.read_bytes() == b""
        assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["a.bin", "e"]


async def test_a_file_that_cannot_be_had_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1000)
    async with ground() as g:
        client = await g.client()
        ref = await client.put_file(tmp_path / "a")
        target = tmp_path / "there"
        target.mkdir()
        with pytest.raises(NotFound):
            await client.put_file(tmp_path / "none")
        with pytest.raises(BadInput, match="cannot read"):
            await client.put_file(target)
        with pytest.raises(NotFound):
            await client.get_file(msgspec.structs.replace(ref, key="c1/files/none"), target)
        with pytest.raises(BadInput, match="not what a refers to"):
            await client.get_file(msgspec.structs.replace(ref, digest="00" * 16), target)
        with pytest.raises(BadInput, match="cannot write"):
            await client.get_file(ref, tmp_path / "nowhere" / "a")
        with pytest.raises(BadInput, match="not a reference"):
            await client.get_file({"name": "a"}, target)
        assert list(target.iterdir()) == []
        evil = msgspec.structs.replace(ref, name="../../evil")
        assert await client.get_file(evil, target) == target / "evil"


class Shaky(MemoryStore):
    """Fails each first time."""

    failed = 0

    async def put(self, key: str, data: Any, *, ttl_s: float | None = None) -> Stored:
        if not self.failed:
            self.failed += 1
            raise Unreachable("not now")
        return await super().put(key, data, ttl_s=ttl_s)


async def test_what_may_have_happened_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1000)
    async with ground() as g:
        client = await g.client()
        client._exchange.depot._store = shaky = Shaky(g.values)
        assert (await client.put_file(tmp_path / "a")).size == 1000
        assert shaky.failed == 1


async def test_a_store_that_does_not_answer_holds_no_request_up() -> None:
    class Dead(MemoryStore):
        async def put(self, key: str, data: Any, *, ttl_s: float | None = None) -> Stored:
            await asyncio.Event().wait()
            raise AssertionError

    async with ground() as g:
        client = await g.client()
        client._exchange.depot._store = Dead(g.values)
        with pytest.raises(TimedOut, match="not stored within"):
            await client.request("n1/a", LARGE, timeout=0.05)


async def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 1000)

    class Slow(MemoryStore):
        async def list(self, prefix: str) -> list[Stored]:
            path.write_bytes(b"b" * 1000)
            return await super().list(prefix)

    async with ground() as g:
        client = await g.client()
        client._exchange.depot._store = Slow(g.values)
        with pytest.raises(Conflict, match="changed"):
            await client.put_file(path)
        assert await MemoryStore(g.values).list("c1/") == []


async def test_a_damaged_file_is_never_given_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a" * 1000)

    class Damaged(MemoryStore):
        async def get(self, key: str) -> Any:  # type: ignore[override]
            raise Corrupt("flipped")
            yield b""

    async with ground() as g:
        client = await g.client()
        ref = await client.put_file(path)
        client._exchange.depot._store = Damaged(g.values)
        with pytest.raises(Corrupt):
            await client.get_file(ref, tmp_path / "b")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a"] or not (tmp_path / "b").exists()


def test_a_reference_is_json_and_typed() -> None:
    ref = FileRef("a", 3, "00" * 16, "c1/files/x")
    assert msgspec.json.decode(msgspec.json.encode(ref), type=FileRef) == ref
