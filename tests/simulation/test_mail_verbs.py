"""Durable mail and groups as users have them, with everybody real but time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import pytest

from comity import Agent, Attempt, Client, Message, errors
from comity.sim import World
from comity.sim.hosts import Host

Work = Callable[[World, Client, list[Any]], Awaitable[None]]
Got = list[tuple[str, Any, bool]]


def crew(got: Got) -> list[Agent]:
    reader = Agent("reader", tags={"t"})
    other = Agent("other", tags={"t", "rare"})

    async def news(message: Message, body: Any) -> None:
        got.append((message.envelope.receiver, body, message.is_repeat))
        assert message.fence > 0 and message.id

    reader.on("news")(news)
    other.on("news")(news)
    reader.join("ops")

    @reader.on("slow")
    async def slow(message: Message, body: float) -> None:
        got.append((message.envelope.receiver, body, message.is_repeat))
        await asyncio.sleep(body)

    @reader.on("bad")
    async def bad(body: int) -> None:
        got.append(("bad", body, False))
        raise ValueError("no")

    @reader.on("refused")
    async def refused() -> None:
        raise errors.Refuse("not for me")

    @reader.on("ask")
    async def ask(body: int) -> int:
        return body + 1

    @reader.capability
    async def count(value: int) -> int:
        got.append(("count", value, False))
        return value

    async def one(attempt: Attempt) -> int:
        await attempt.send("other-1", "in a step", topic="news", durable=True)
        return 1

    @other.capability(retries=3)
    async def tell(attempt: Attempt, to: str) -> int:
        assert await attempt.send(to, f"try {attempt.number}", topic="news", durable=True) == ""
        await attempt.step("one", step)
        await attempt.broadcast("after", topic="news", group="ops", durable=True)
        if attempt.number == 1:
            raise ConnectionError("again")
        await attempt.send(to, "end", topic="news", durable=True)
        await attempt.send("nobody/here", "lost?", topic="news", durable=True, ttl_s=1)
        return attempt.number

    async def step() -> int:
        return 1

    return [reader, other]


def live(work: Work, **options: Any) -> list[Any]:
    got: Got = []
    settings = {"retries": 3, "max_waiting": 1000, **options.pop("settings", {})}
    options = {"controllers": 1, "nodes": 1, "clients": 1, "torture_s": 0.0, "faults": {}} | options
    world = World(1, agents=lambda: crew(got), settings=settings, **options)

    async def run(client: Client) -> None:
        await client.ready()
        while not await client.groups.list():  # noqa: ASYNC110 - the world's time is virtual
            await asyncio.sleep(0.1)
        await work(world, client, got)

    world.run(run)
    return got


async def quiet(client: Client, left: int = 0) -> None:
    """Until no more than ``left`` mails wait."""
    while (await client.stats())["mail"]["waiting"] > left:  # noqa: ASYNC110 - the world's time is virtual
        await asyncio.sleep(0.1)


def later(call: Callable[[], None], after_s: float = 0.01) -> None:
    asyncio.get_running_loop().call_later(after_s, call, context=Context())


async def restart(host: Host) -> None:
    later(lambda: host.kill(noticed=True))
    later(host.revive, 1.0)
    await asyncio.sleep(3.0)


def test_mail_reaches_one_any_a_tag_a_group_and_all() -> None:
    async def work(_: World, client: Client, got: Got) -> None:
        ids = [
            await client.send("n1/reader", "by id", topic="news", durable=True),
            await client.send("reader", "by name", topic="news", durable=True),
            await client.send("count", {"value": 7}, topic="count", durable=True),
            await client.broadcast("rare", topic="news", tags=["t", "rare"], durable=True),
            await client.broadcast("group", topic="news", group="ops", durable=True),
            await client.broadcast("all", topic="news", durable=True),
            await client.broadcast("nobody listens", topic="other", durable=True),
            await client.send("n1/reader", 4, topic="ask", performative="request", durable=True),
        ]
        await quiet(client)
        assert len(set(ids)) == len(ids)
        shown = await client.receipts(ids[5])
        assert sorted(shown["has"]) == ["n1/other", "n1/reader"] and shown["state"] == "delivered" and not shown["has_not"]
        assert (await client.receipts(ids[0]))["state"] == "delivered"
        assert await client.mail.dead() == [] and await client.mail.list() == [] and await client.mail.boxes() == []
        figures = (await client.stats())["mail"]
        assert figures["posted"] == 8 and figures["boxes"] == 0

    got = live(work)
    assert sorted(got) == sorted([
        ("n1/reader", "by id", False), ("n1/reader", "by name", False), ("count", 7, False), ("n1/other", "rare", False),
        ("n1/reader", "group", False), ("n1/reader", "all", False), ("n1/other", "all", False),
    ])  # fmt: skip


def test_mail_that_cannot_be_sent_is_a_typed_error() -> None:
    async def refused(kind: type[errors.ComityError], sent: Awaitable[Any]) -> None:
        with pytest.raises(kind) as caught:
            await sent
        assert caught.type is kind

    async def work(_: World, client: Client, got: Got) -> None:
        await refused(errors.UnknownAgent, client.send("nobody", 1, durable=True))
        await refused(errors.NotFound, client.broadcast(1, group="none", durable=True))
        await refused(errors.NoAgent, client.broadcast(1, tags=["none"], durable=True))
        await refused(errors.BadInput, client.send("n 1/x", 1, durable=True))
        await refused(errors.BadInput, client.broadcast(1, group="ops", tags=["t"], durable=True))
        await refused(errors.BadInput, client.send("reader", 1, durable=True, ttl_s=-1))
        await refused(errors.TooLarge, client.send("reader", "x" * 17_000_000, durable=True))
        await refused(errors.NotFound, client.receipts("what"))
        await refused(errors.NotFound, client.mail.drop("what"))
        await refused(errors.NotFound, client.groups.members("none"))
        for number in range(3):
            await client.send("away/agent", number, durable=True)
        await refused(errors.MailboxFull, client.send("away/agent", 4, durable=True))
        await refused(errors.MailboxFull, client.send("away/agent", 5, durable=True))
        await client.send("reader", "others have room", topic="news", durable=True)
        await quiet(client, 3)
        for number in range(2):
            await client.send(f"away/other-{number}", 4, durable=True)
        await refused(errors.Overloaded, client.send("away/other-3", 4, durable=True))
        waiting = await client.mail.list("away/agent")
        assert [one["body"] for one in waiting] == [0, 1, 2]
        assert (await client.mail.boxes())[0] == {"agent": "away/agent", "waiting": 3}
        assert await client.mail.drop(*[one["id"] for one in waiting])
        assert await client.send("away/agent", 6, durable=True)

    live(work, settings={"max_mailbox": 3, "max_mail": 5})


def test_mail_waits_for_who_is_away_and_a_repeat_is_marked() -> None:
    async def work(world: World, client: Client, got: Got) -> None:
        await client.send("n1/reader", 2.0, topic="slow", durable=True)
        await client.send("n1/reader", "behind it", topic="news", durable=True)
        await asyncio.sleep(0.5)
        later(lambda: world.nodes[0].kill(noticed=True))
        await asyncio.sleep(1.0)
        id = await client.send("n1/reader", "while it is away", topic="news", durable=True)
        await asyncio.sleep(10.0)
        assert (await client.receipts(id))["has_not"] == ["n1/reader"]
        later(world.nodes[0].revive)
        await quiet(client)

    assert live(work) == [
        ("n1/reader", 2.0, False), ("n1/reader", 2.0, True), ("n1/reader", "behind it", True),
        ("n1/reader", "while it is away", False),
    ]  # fmt: skip


def test_mail_that_is_not_taken_is_dead() -> None:
    async def work(_: World, client: Client, got: Got) -> None:
        ids = [
            await client.send("n1/reader", 1, topic="bad", durable=True),
            await client.send("n1/reader", 1, topic="refused", durable=True),
            await client.send("n1/reader", 1, topic="unheard-of", durable=True),
            await client.send("n1/reader", "text", topic="slow", durable=True),
            await client.send("away/agent", 1, durable=True, ttl_s=2),
        ]
        await quiet(client)
        dead = {letter["id"]: letter["code"] for letter in await client.mail.dead()}
        assert [dead[id] for id in ids] == ["ValueError", "refused", "not-understood", "not-understood", "expired"]
        assert [letter["body"] for letter in await client.mail.dead("away/agent")] == [1]
        shown = await client.mail.show(ids[0])
        assert shown["state"] == "dead" and shown["dead"][0]["receiver"] == "n1/reader"
        await client.mail.drop(*ids)
        assert await client.mail.dead() == []

    assert live(work).count(("bad", 1, False)) == 3, "a function that fails is tried again"


def test_a_large_body_goes_by_the_store_and_leaves_it() -> None:
    large = "x" * 5000

    async def work(world: World, client: Client, got: Got) -> None:
        await client.broadcast(large, topic="news", tags="t", durable=True)
        await quiet(client)
        while any("/mail/" in key for key in world.servers.store.values):  # noqa: ASYNC110 - the world's time is virtual
            await asyncio.sleep(0.1)

    assert sorted(live(work)) == [("n1/other", large, False), ("n1/reader", large, False)]


def test_mail_of_an_attempt_goes_with_its_records() -> None:
    async def work(_: World, client: Client, got: Got) -> None:
        task = await client.submit("tell", {"to": "n1/reader"})
        assert await task.result() == 2
        await quiet(client)
        (dead,) = await client.mail.dead()
        assert dead["id"] == f"{task.id}/end/3" and dead["code"] == "expired"

    assert [(body, repeat) for _, body, repeat in live(work)] == [("try 1", False), ("after", False), ("end", False)]


def test_groups_are_joined_left_listed_and_watched() -> None:
    async def work(world: World, client: Client, got: Got) -> None:
        assert await client.groups.list() == [{"name": "ops", "members": 1}]
        assert await client.groups.members("ops") == ("n1/reader",)
        seen: list[tuple[str, str, str]] = []

        async def watch() -> None:
            async for event in client.groups.watch():
                seen.append((event["type"], event["group"], event["agent"]))

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.5)
        await client.groups.remove("ops", "n1/reader")
        with pytest.raises(errors.NotFound):
            await client.groups.remove("ops", "n1/reader")
        await restart(world.nodes[0])
        assert await client.groups.members("ops") == ("n1/reader",), "an agent says again in which groups it is"
        watching.cancel()
        assert seen == [("group.left", "ops", "n1/reader"), ("group.joined", "ops", "n1/reader")]

    live(work)


def test_an_agent_leaves_a_group_while_it_is_hosted() -> None:
    async def work(world: World, client: Client, got: Got) -> None:
        node = world.nodes[0].running
        reader = next(agent for agent in node.agents if agent.name == "reader")  # type: ignore[union-attr]
        reader.join("dev")
        reader.leave("ops")
        reader.leave("never")
        assert reader.groups == ("dev",) and reader.twin("twin").groups == ("dev",)
        while [group["name"] for group in await client.groups.list()] != ["dev"]:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        with pytest.raises(errors.BadInput):
            reader.join("no such name")

    live(work)


def test_a_new_leader_goes_on() -> None:
    async def work(world: World, client: Client, got: Got) -> None:
        await client.send("away/agent", "kept", durable=True)
        await client.send("n1/reader", 3.0, topic="slow", durable=True)
        await restart(world.controllers[0])
        assert len(await client.mail.list("away/agent")) == 1
        await client.send("n1/reader", "after", topic="news", durable=True)
        await quiet(client, 1)

    assert live(work) == [("n1/reader", 3.0, False), ("n1/reader", "after", False)]
