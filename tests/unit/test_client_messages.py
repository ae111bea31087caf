"""Live messages: a request ends in a reply or a typed error, whatever becomes of the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from peers import virtually
from stand_in import Ground, StandIn, ground, record, until

from comity.errors import (
    BadInput,
    Conflict,
    InvalidInput,
    NoAgent,
    PeerLost,
    Refuse,
    TaskFailed,
    TimedOut,
    TooLarge,
    UnknownAgent,
    UnknownCapability,
    Unreachable,
)
from comity.message import Message
from comity.model import published, wire
from comity.model.capability import Capability, NodeRecord, Requirements, Strategy
from comity.model.envelope import Envelope, Performative
from comity.model.files import BODY_LIMIT
from comity.model.ids import AgentId, ProcessId, TaskId

Answer = Callable[[Envelope], tuple[Performative, Any] | None]


def reply(node: StandIn, process: str, to_this: Envelope, performative: Performative, body: Any) -> None:
    answer = Envelope(
        id=f"re-{to_this.id}-{performative}", performative=performative, sender=to_this.receiver, receiver=process,
        in_reply_to=to_this.id, body=msgspec.json.encode(body),
    )  # fmt: skip
    node.say(process, wire.Message(answer))


async def agent(g: Ground, answer: Answer, node: str = "n1", name: str = "a", *offers: Capability) -> StandIn:
    """A node with one agent, which answers what it is asked by ``answer``."""
    made = await g.node(node)
    await g.offer(node, name, *offers)

    def take(item: wire.Message, sender: ProcessId) -> None:
        said = answer(item.envelope)
        if said is not None:
            reply(made, sender, item.envelope, *said)

    made.answers[wire.Message] = take
    return made


def echo(envelope: Envelope) -> tuple[Performative, Any]:
    return Performative.INFORM, {"echo": msgspec.json.decode(envelope.body)}


@virtually()
async def test_by_id_and_by_name() -> None:
    async with ground() as g:
        node, client = await agent(g, echo), await g.client()
        assert await client.request("n1/a", {"q": 1}, topic="ask", timeout=5) == {"echo": {"q": 1}}
        assert await client.request("a", 2) == {"echo": 2}
        first, second = (item.envelope for item in node.all(wire.Message))
        assert (first.receiver, first.sender, first.reply_to, first.topic) == ("n1/a", "c1", "c1", "ask")
        assert first.performative is Performative.REQUEST
        assert 4_000 < first.remaining_ms <= 5_000
        assert first.reply_by == first.sent_at + first.remaining_ms
        assert first.conversation != second.conversation
        assert second.receiver == "n1/a"


@virtually()
async def test_an_agent_speaks_in_its_own_name() -> None:
    async with ground() as g:
        node, client = await agent(g, echo), await g.client()
        child = client.child(sender="c1/me", parent=TaskId("t"), deadline=asyncio.get_running_loop().time() + 2)
        await child.request("n1/a")
        envelope = node.all(wire.Message)[0].envelope
        assert (envelope.sender, envelope.reply_to) == ("c1/me", "c1")
        assert envelope.remaining_ms <= 2_000


@pytest.mark.parametrize(
    ("performative", "body", "error", "word"),
    [
        (Performative.FAILURE, {"code": "ValueError", "message": "seven"}, TaskFailed, "seven"),
        (Performative.FAILURE, {"code": "unknown-agent", "message": "who"}, UnknownAgent, "who"),
        (Performative.FAILURE, "odd", TaskFailed, "odd"),
        (Performative.FAILURE, {"code": "x", "message": "seven", "details": [1]}, TaskFailed, "seven"),
        (Performative.FAILURE, {"code": "x", "message": "seven", "details": {"message": 1, "self": 2}}, TaskFailed, "seven"),
        (Performative.REFUSE, {"message": "not now"}, NoAgent, "not now"),
        (Performative.NOT_UNDERSTOOD, {"code": "invalid-input", "message": "what"}, InvalidInput, "what"),
        (Performative.NOT_UNDERSTOOD, {"message": "what"}, BadInput, "what"),
    ],
)
async def test_what_the_peer_says_is_typed(performative: Performative, body: Any, error: type, word: str) -> None:
    async with ground() as g:
        await agent(g, lambda _: (performative, body))
        client = await g.client()
        with pytest.raises(error, match=word) as caught:
            await client.request("n1/a")
        assert caught.value.details["agent"] == "n1/a"


async def test_agree_is_not_yet_the_answer() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: (Performative.AGREE, None)), await g.client()
        request = asyncio.ensure_future(client.request("n1/a"))
        asked = (await node.first(wire.Message)).envelope
        await node.outbox.drain()
        assert not request.done()
        reply(node, "c1", asked, Performative.INFORM, "now")
        assert await request == "now"


async def test_only_the_process_asked_can_answer() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        thief = await g.node("thief")
        request = asyncio.ensure_future(client.request("n1/a"))
        asked = (await node.first(wire.Message)).envelope
        reply(thief, "c1", asked, Performative.INFORM, "forged")
        await thief.outbox.drain()
        reply(node, "c1", asked, Performative.INFORM, "true")
        assert await request == "true"


async def test_answers_that_are_not_json_are_an_error() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        request = asyncio.ensure_future(client.request("n1/a"))
        asked = (await node.first(wire.Message)).envelope
        broken = Envelope(
            id="1", performative=Performative.INFORM, sender="n1/a", receiver="c1", in_reply_to=asked.id, body=b"{"
        )
        node.say("c1", wire.Message(broken))
        with pytest.raises(InvalidInput):
            await request


@virtually()
async def test_silence_times_out_and_a_late_reply_is_nothing() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        with pytest.raises(TimedOut, match="n1/a"):
            await client.request("n1/a", timeout=0.02)
        reply(node, "c1", node.all(wire.Message)[0].envelope, Performative.INFORM, "late")
        await node.outbox.drain()
        assert client._exchange.messages._by_node == {}


async def test_an_interrupted_request_is_called_off() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        request = asyncio.ensure_future(client.request("n1/a"))
        asked = (await node.first(wire.Message)).envelope
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        called_off = (await node.first(wire.Message, 2)).envelope
        assert (called_off.performative, called_off.in_reply_to) == (Performative.CANCEL, asked.id)


@virtually()
async def test_nobody_there() -> None:
    async with ground(request_timeout_s=0.3) as g:
        client = await g.client()
        await client.discover()
        with pytest.raises(UnknownAgent):
            await client.request("n9/a")
        await g.register("n1", record("n1", "a"))
        await until(lambda: "n1" in client.directory.nodes)
        with pytest.raises(PeerLost):
            await client.request("n1/a")
        with pytest.raises(Unreachable):  # no leader that could route it
            await client.request("nothing")
        with pytest.raises(UnknownAgent):
            await client.send("nothing")
        with pytest.raises(BadInput):
            await client.request("")


@virtually()
async def test_a_peer_that_dies_is_noticed_by_probing() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        request = asyncio.ensure_future(client.request("n1/a", timeout=30))
        await node.first(wire.Message)
        await node.bus.close()
        started = asyncio.get_running_loop().time()
        with pytest.raises(PeerLost):
            await request
        assert asyncio.get_running_loop().time() - started < 1.5


async def test_a_peer_whose_record_goes_or_changes_is_lost() -> None:
    async with ground() as g:
        node, client = await agent(g, lambda _: None), await g.client()
        await client.discover()
        request = asyncio.ensure_future(client.request("n1/a"))
        await node.first(wire.Message)
        await g.registry.put("nodes/n1", published.encode_node(NodeRecord(id=ProcessId("n1"), incarnation=2)))
        with pytest.raises(PeerLost, match="anew"):
            await request
        request = asyncio.ensure_future(client.request("n1/a"))
        await node.first(wire.Message, 2)
        await g.registry.delete("nodes/n1")
        with pytest.raises(PeerLost, match="left"):
            await request


async def test_a_name_of_several_is_ambiguous() -> None:
    async with ground() as g:
        client = await g.client()
        await agent(g, echo, "n1", "twin")
        await agent(g, echo, "n2", "twin")
        with pytest.raises(BadInput, match="n1/twin, n2/twin"):
            await client.request("twin")
        assert await client.request("n2/twin", 1) == {"echo": 1}


async def test_a_capability_is_routed_by_the_leader() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        node = await agent(g, echo)
        leader.answers[wire.Route] = lambda item, sender: leader.say(sender, wire.Routed(item.ref, AgentId("n1/a")))
        assert await client.request("review>=2", 5, strategy="best_fit", timeout=60) == {"echo": 5}
        route = leader.all(wire.Route)[0]
        assert (route.capability, route.strategy) == ("review", Strategy.BEST_FIT)
        assert route.requirements == Requirements(version=">=2")
        assert 40_000 < route.for_ms <= 60_000
        assert node.all(wire.Message)[0].envelope.topic == "review"
        ended = await leader.first(wire.CallEnded)
        assert (ended.ref, ended.ok) == (route.ref, True)
        assert 0 < ended.took_ms < 60_000


async def test_a_capability_goes_before_an_agent_of_the_same_name() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        node = await agent(g, echo, "n1", "review", Capability(name="review"))
        leader.answers[wire.Route] = lambda item, sender: leader.say(
            sender, wire.Routed(item.ref, AgentId("n1/review"))
        )
        assert await client.request("review", 5) == {"echo": 5}
        assert len(leader.all(wire.Route)) == 1
        await client.send("review", 6)
        assert (await node.first(wire.Message, 2)).envelope.receiver == "n1/review"


async def test_a_refused_call_goes_to_the_next_agent() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await agent(g, lambda _: (Performative.REFUSE, {"message": "busy"}))
        await agent(g, echo, "n2", "b")

        def route(item: wire.Route, sender: str) -> None:
            leader.say(sender, wire.Routed(item.ref, AgentId("n2/b" if "n1/a" in item.asked else "n1/a")))

        leader.answers[wire.Route] = route
        assert await client.request("review", 1) == {"echo": 1}
        await leader.first(wire.CallEnded, 2)


async def test_if_all_refuse_that_is_the_answer() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await agent(g, lambda _: (Performative.REFUSE, {"message": "busy"}))
        leader.answers[wire.Route] = lambda item, sender: leader.say(sender, wire.Routed(item.ref, AgentId("n1/a")))
        with pytest.raises(NoAgent, match="busy"):
            await client.request("review", 1)
        leader.answers[wire.Route] = lambda item, sender: leader.say(
            sender, wire.Routed(item.ref, AgentId(""), "unknown-capability", "nobody offers it")
        )
        with pytest.raises(UnknownCapability, match="nobody"):
            await client.request("review", 1)


async def test_a_route_is_asked_for_again_after_a_change_of_leader() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        await agent(g, echo)
        request = asyncio.ensure_future(client.request("review", 1))
        await old.first(wire.Route)
        await old.bus.close()
        new = await g.leader("k2", term=2)
        new.answers[wire.Route] = lambda item, sender: new.say(sender, wire.Routed(item.ref, AgentId("n1/a")))
        assert await request == {"echo": 1}


async def test_send_and_broadcast() -> None:
    async with ground() as g:
        node, client, other = await agent(g, lambda _: None), await g.client(), await g.client("c2")
        await node.listen("topic/all")
        await client.send("a", {"x": 1}, topic="news", conversation="c", in_reply_to="r")
        envelope = (await node.first(wire.Message)).envelope
        assert (envelope.performative, envelope.topic, envelope.conversation) == (Performative.INFORM, "news", "c")
        heard: list[Any] = []

        @other.on("news")
        def hear(body: dict[str, int]) -> None:
            heard.append(body)

        @client.on("news")
        def echoed(body: Any) -> None:
            heard.append("echo")

        await client.broadcast({"x": 2}, topic="news")
        await client.broadcast({"x": 3}, topic="news", tags={"t", "s"})
        tagged = (await node.first(wire.Message, 3)).envelope
        assert (tagged.receiver, tagged.tags) == ("", ("s", "t"))
        await until(lambda: bool(heard))
        assert heard == [{"x": 2}]
        await client.broadcast({"x": 4}, topic="news", group="ops")
        assert (await node.first(wire.Message, 4)).envelope.group == "ops"
        with pytest.raises(TooLarge):
            await client.broadcast("x" * BODY_LIMIT)
        said: list[Callable[[], Awaitable[Any]]] = [
            lambda: client.broadcast("x", performative="say"),
            lambda: client.broadcast("x", performative="say", durable=True),
            lambda: client.send("a", "x", performative="say"),
            lambda: client.request("a", "x", performative="say"),
            lambda: client.broadcast("x", group="ops", tags={"t"}),
            lambda: client.broadcast("x", group="no such name"),
        ]
        for wrong in said:
            with pytest.raises(BadInput):
                await wrong()
        await asyncio.sleep(0)
        assert heard == [{"x": 2}], "a client is in no group"


async def test_a_client_answers_too() -> None:
    async with ground() as g:
        server, client = await g.client("c2"), await g.client()

        @server.on("double")
        async def double(message: Message, n: int) -> int:
            assert message.sender == "c1"
            return n * 2

        @server.on("query")
        def ask(message: Message) -> None:
            message.reply("by hand")

        @server.on("no")
        def refuse(n: int) -> int:
            raise Refuse("never")

        @server.on("bad")
        def fail(n: int) -> int:
            raise ValueError("bad")

        async def request(topic: str, body: Any, performative: str = "request") -> Any:
            return await client.request("c2/any", body, topic=topic, performative=performative)

        assert await request("double", 4) == 8
        assert await request("whatever", None, "query") == "by hand"
        with pytest.raises(InvalidInput):
            await request("double", "four")
        with pytest.raises(NoAgent, match="never"):
            await request("no", 1)
        with pytest.raises(TaskFailed, match="bad"):
            await request("bad", 1)
        with pytest.raises(BadInput, match="listens"):
            await request("other", 1)
        with pytest.raises(Conflict):
            server.on("double")(double)
        with pytest.raises(BadInput):
            server.on("")
        server.off("double")
        with pytest.raises(BadInput, match="listens"):
            await request("double", 1)


async def test_nobody_speaks_in_anothers_name() -> None:
    async with ground() as g:
        node, client = await g.node(), await g.client()
        heard: list[Any] = []

        @client.on("news")
        def hear(body: Any) -> None:
            heard.append(body)

        for sender in ("k1", "n1/a"):
            envelope = Envelope(
                id=sender, performative=Performative.INFORM, sender=sender, receiver="c1", topic="news", body=b"1"
            )
            node.say("c1", wire.Message(envelope))
        await until(lambda: bool(heard))
        assert heard == [1]
        assert client._exchange.malformed == 1


async def test_a_failing_function_that_nobody_asked_is_reported() -> None:
    async with ground() as g:
        server, client = await g.client("c2"), await g.client()
        seen: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))

        @server.on("bad")
        def fail(n: int) -> int:
            raise ValueError("bad")

        await client.send("c2/any", 1, topic="bad")
        await until(lambda: bool(seen))
        assert "bad" in seen[0]["message"]


async def test_a_client_answers_probes_and_ignores_noise() -> None:
    async with ground() as g:
        node, client = await g.node(), await g.client()
        node.say("c1", wire.Ping(7), wire.Pong(8), wire.Settled(()))
        assert await node.first(wire.Pong) == wire.Pong(7)
        await node.bus.send("to/c1", b"noise")
        node.say("c1", wire.Ping(9))
        assert (await node.first(wire.Pong, 2)).ref == 9
        assert client._exchange.malformed == 1


async def test_hosted_by_a_node_it_takes_only_what_is_its_own() -> None:
    from random import Random

    from comity.bus.memory import MemoryBus
    from comity.bus.outbox import Outbox
    from comity.client import Client
    from comity.registry.memory import MemoryRegistry
    from comity.store.memory import MemoryStore

    async with ground() as g:
        bus = MemoryBus(g.network, ProcessId("n1"))
        outbox = Outbox(bus)
        hosted = Client(
            bus, MemoryRegistry(g.records), MemoryStore(g.values), g.settings,
            wall=lambda: 0.0, rng=Random(1), outbox=outbox,
        )  # fmt: skip
        g.clients.append(hosted)
        await hosted.open()
        leader = await g.leader()
        passed: list[wire.Item] = []

        def receive(delivery: Any) -> None:
            passed.extend(item for item in wire.decode(delivery.data) if not hosted.handle(item, delivery.sender))

        await bus.subscribe("to/n1", receive)
        task = await hosted.submit("x")
        envelope = Envelope(id="1", performative=Performative.INFORM, sender="k1", receiver="n1/a", in_reply_to="none")
        leader.say(
            "n1", wire.Message(envelope), wire.Ping(1), wire.Leading(1, leader.process, 0), wire.Answer(5, "", b"1")
        )
        leader.complete("n1", task.id, "yes")
        assert await task.result() == "yes"
        assert [type(item) for item in passed] == [wire.Message, wire.Ping, wire.Leading, wire.Answer]
        hosted.set_time(5_000)
        assert 5_000 <= hosted._exchange.contact.now_ms() < 6_000
