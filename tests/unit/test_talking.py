"""Subscriptions, queries, brokers, what is lent, collaborations, and news of the network: how they go, and how they end."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from bargain import by_hand, events, open_at, refusals
from node_stage import Caller, Stage, staged_on, until
from test_node_network import Net

from comity.agent import Agent
from comity.errors import (
    BadInput,
    Conflict,
    InvalidOutput,
    NoAgent,
    Overloaded,
    PeerLost,
    Refuse,
    ShuttingDown,
    TaskFailed,
    TimedOut,
    UnknownAgent,
    UnknownCapability,
)
from comity.message import Message
from comity.model.capability import AgentRecord
from comity.model.envelope import Performative
from comity.sim.loop import VirtualLoop
from comity.talking import Invitation

staged = staged_on(VirtualLoop)


def clock(name: str = "clock") -> Agent:
    """It tells the time, every second, ``count`` times."""
    agent = Agent(name)

    @agent.on("time")
    async def time(message: Message, count: int) -> None:
        if count < 0:
            raise Refuse("time does not run backwards")
        for number in range(count):
            message.reply(number)
            await asyncio.sleep(1)
        if count == 13:
            raise ValueError("unlucky")

    return agent


# Subscriptions


@staged
async def test_a_subscription_tells_until_there_is_no_more(stage: Stage) -> None:
    net = await Net(stage).up(n1=[clock()])
    assert [told async for told in net.client.subscribe("clock", 3, topic="time")] == [0, 1, 2]
    assert [told async for told in net.client.subscribe("clock", 0, topic="time")] == []
    assert not open_at(net)
    await net.down()


@staged
async def test_a_subscription_ends_when_its_reader_has_enough(stage: Stage) -> None:
    net = await Net(stage).up(n1=[clock()])
    async with events(net) as seen:
        async with aclosing(net.client.subscribe("clock", 1000, topic="time", timeout=5)) as news:
            async for told in news:
                if told == 60:  # later than its time-out, which was for the first word
                    break
        await until(lambda: not open_at(net) and not stage.nodes[0].messages.calls)
        await asyncio.sleep(3)
        assert not refusals(seen)
    await net.down()


@staged
async def test_a_subscription_ends_typed_whatever_ends_it(stage: Stage) -> None:
    net = await Net(stage).up(n1=[clock()], n2=[clock("far")])
    with pytest.raises(NoAgent, match="backwards"):
        await anext(net.client.subscribe("clock", -1, topic="time"))
    with pytest.raises(TaskFailed, match="unlucky"):
        assert [told async for told in net.client.subscribe("clock", 13, topic="time")]
    with pytest.raises(BadInput, match="no function"):
        await anext(net.client.subscribe("clock", 1, topic="weather"))
    with pytest.raises(BadInput, match="int"):
        await anext(net.client.subscribe("clock", "x", topic="time"))
    with pytest.raises(UnknownAgent):
        await anext(net.client.subscribe("nobody", 1, topic="time"))
    news = net.client.subscribe("far", 100, topic="time")
    assert await anext(news) == 0
    stage.network.disconnect(stage.nodes[1].node)
    with pytest.raises(PeerLost):
        assert [told async for told in news]
    await net.down()


@staged
async def test_a_publisher_stops_for_a_subscriber_that_is_gone(stage: Stage) -> None:
    quiet, stopped = Agent("quiet"), asyncio.Event()

    @quiet.on("time")
    async def wait(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    net = await Net(stage).up(n1=[quiet])
    raw = await Caller.join(stage, "raw")
    await raw.send("n1/quiet", None, **by_hand("subscribe", topic="time", protocol="fipa-subscribe"))
    await until(lambda: [envelope.performative for envelope in raw.got] == [Performative.AGREE])
    stage.network.disconnect(raw.bus.process)
    await stopped.wait()
    assert not open_at(net)
    await net.down()


@staged
async def test_a_publisher_learns_that_its_subscriber_has_given_it_up(stage: Stage) -> None:
    """Whether what would have told it was never sent, or was lost on the way."""
    net = await Net(stage).up(n2=[clock("far")])
    for quits in (False, True):
        news = net.client.subscribe("far", 10_000, topic="time")
        assert await anext(news) == 0
        stage.network.disconnect("n2")
        if quits:
            await news.aclose()
        else:
            with pytest.raises(PeerLost):
                assert [told async for told in news]
        assert open_at(net) == 1
        stage.network.reconnect("n2")
        await until(lambda: not open_at(net) and not stage.nodes[0].messages.calls)
    await net.down()


@staged
async def test_a_subscription_outlives_a_short_break_and_ends_after_a_long_one(stage: Stage) -> None:
    net = await Net(stage).up(n1=[clock()])
    news = net.client.subscribe("clock", 10_000, topic="time")
    assert await anext(news) == 0
    stage.network.disconnect("c1")
    await asyncio.sleep(2)
    stage.network.reconnect("c1")
    assert await anext(news) > 0
    await asyncio.sleep(60)
    assert open_at(net) == 1
    stage.network.disconnect("c1")
    await until(lambda: not open_at(net) and not stage.nodes[0].messages.calls)
    stage.network.reconnect("c1")
    with pytest.raises(PeerLost, match="said nothing"):
        assert [told async for told in news]
    await net.down()


@staged
async def test_a_publisher_may_end_it_itself(stage: Stage) -> None:
    agent, messages = Agent("a"), []

    @agent.on("time")
    async def keep(message: Message) -> None:
        messages.append(message)
        message.reply(1)
        await asyncio.Event().wait()

    net = await Net(stage).up(n1=[agent])
    news = net.client.subscribe("a", topic="time")
    assert await anext(news) == 1
    messages[0].leave()
    with pytest.raises(StopAsyncIteration):
        await anext(news)
    with pytest.raises(Conflict, match="over"):
        messages[0].reply(2)
    await net.down()


@staged
async def test_a_reader_that_is_too_slow_is_told_so(stage: Stage) -> None:
    agent = Agent("a")

    @agent.on("flood")
    async def flood(message: Message) -> None:
        for number in range(10_100):
            message.reply(number)

    net = await Net(stage).up(n1=[agent])
    news = net.client.subscribe("a", topic="flood")
    assert await anext(news) == 0
    with pytest.raises(Overloaded):
        assert [told async for told in news if not await asyncio.sleep(0.01)]
    assert not open_at(net)
    await net.down()


@staged
async def test_whoever_speaks_with_an_agent_that_leaves_is_told(stage: Stage) -> None:
    ann, owner = Member("ann"), clock("owner")
    owner.lend("gpu", 1)
    net = await Net(stage).up(n1=[ann.agent, owner])
    news = net.client.subscribe("owner", 100, topic="time")
    assert await anext(news) == 0
    async with (
        net.client.invite("review", ["ann"]) as group,
        net.client.borrow("owner", "gpu", for_s=100) as held,
    ):
        for agent in (ann.agent, owner):
            stage.nodes[0].remove(agent)
        await until(lambda: not group.members and not held.left_s)
        assert group.declined == {"n1/ann": "agent ann has left"}
    with pytest.raises(ShuttingDown, match="owner has left"):
        assert [told async for told in news]
    await until(lambda: not open_at(net) and not stage.nodes[0].messages.calls)
    await net.down()


# Queries, brokers, pings


@staged
async def test_queries(stage: Stage) -> None:
    agent = Agent("oracle")

    @agent.on("even")
    async def even(number: int) -> bool | str:
        return number % 2 == 0 if number else "nothing"

    net = await Net(stage).up(n1=[agent])
    assert await net.client.query_if("oracle", 2, topic="even") is True
    assert await net.client.query_if("oracle", 3, topic="even") is False
    assert await net.client.query_ref("oracle", 0, topic="even") == "nothing"
    with pytest.raises(InvalidOutput):
        await net.client.query_if("oracle", 0, topic="even")
    await net.down()


def greeter(name: str, **options: Any) -> Agent:
    agent = Agent(name, **options)

    @agent.capability
    async def greet(whom: str) -> str:
        if whom == "Nobody":
            raise ValueError("there is nobody")
        return f"{name} greets {whom}"

    return agent


@staged
async def test_a_broker_finds_the_right_one(stage: Stage) -> None:
    finder = Agent("finder")

    @finder.broker
    def nearest(capability: str, agents: list[AgentRecord]) -> AgentRecord:
        return min(agents, key=lambda agent: agent.region)

    net = await Net(stage).up(n1=[finder, greeter("far", region="z"), greeter("near", region="a")])
    assert await net.client.request_via("finder", "greet", {"whom": "Ada"}) == "near greets Ada"
    with pytest.raises(UnknownCapability, match="knows nobody"):
        await net.client.request_via("finder", "fly")
    with pytest.raises(TaskFailed, match="nobody"):
        await net.client.request_via("finder", "greet", {"whom": "Nobody"})
    with pytest.raises(BadInput, match="no function"):
        await net.client.request_via("near", "fly")
    assert not open_at(net)
    await net.down()


@staged
async def test_a_ping_comes_back_from_here_and_from_an_agent(stage: Stage) -> None:
    agent = greeter("ann")
    net = await Net(stage).up(n1=[agent], n2=[greeter("bob")])
    assert 0 <= await net.client.ping("ann") < 1
    assert 0 <= await agent.ping("n2/bob") < 1
    with pytest.raises(PeerLost):
        await net.client.ping("n7/nobody")
    await net.down()


# What is lent


@staged
async def test_what_is_lent_is_given_back_or_taken_back(stage: Stage) -> None:
    owner = Agent("owner")
    owner.lend("gpu", 4)
    net = await Net(stage).up(n1=[owner])
    async with net.client.borrow("owner", "gpu", 3, for_s=60) as held:
        assert (held.owner, held.amount) == ("n1/owner", 3)
        assert 59 < held.left_s <= 60
        with pytest.raises(NoAgent, match="1 of 4 gpu is left"):
            async with net.client.borrow("owner", "gpu", 2, for_s=1):
                pass
        async with net.client.borrow("owner", "gpu", 1, for_s=1) as other:
            await asyncio.sleep(1.5)
            assert other.left_s == 0
            async with net.client.borrow("owner", "gpu", 1, for_s=1):
                assert open_at(net) == 2
    await until(lambda: not open_at(net))
    async with net.client.borrow("owner", "gpu", 4, for_s=60):
        pass
    await net.down()


@staged
async def test_what_cannot_be_lent_is_refused(stage: Stage) -> None:
    owner = Agent("owner")
    owner.lend("gpu", 4)
    net = await Net(stage).up(n1=[owner])
    for resource, amount, for_s, error in [("cpu", 1, 1, NoAgent), ("gpu", -1, 1, BadInput), ("gpu", 1, 0, BadInput)]:
        with pytest.raises(error):
            async with net.client.borrow("owner", resource, amount, for_s=for_s):
                pass
    raw = await Caller.join(stage, "raw")
    how = by_hand("request", topic="gpu", protocol="comity-resource")
    assert (await raw.ask("n1/owner", {"amount": 1}, **how))[0] is Performative.NOT_UNDERSTOOD
    odd = {"amount": -1, "for_s": 5}
    assert (await raw.ask("n1/owner", odd, **{**how, "conversation": "d"}))[0] is Performative.NOT_UNDERSTOOD
    assert not open_at(net)
    await net.down()


@staged
async def test_what_a_borrower_that_dies_holds_comes_back_in_its_time(stage: Stage) -> None:
    """No sooner: it may only be out of touch, and go on using it."""
    owner = Agent("owner")
    owner.lend("gpu", 4)
    net = await Net(stage).up(n1=[owner])
    raw = await Caller.join(stage, "raw")
    how = by_hand("request", topic="gpu", protocol="comity-resource")
    says, offer = await raw.ask("n1/owner", {"amount": 4, "for_s": 30}, **how)
    assert (says, offer["amount"]) == (Performative.PROPOSE, 4)
    stage.network.disconnect(raw.bus.process)
    await asyncio.sleep(29)
    assert open_at(net) == 1
    await until(lambda: not open_at(net))
    async with net.client.borrow("owner", "gpu", 4, for_s=60):
        pass
    await net.down()


# Collaborations


class Member:
    """An agent that offers ``can``, joins what it is invited to unless it ``declines``, and notes what it is told."""

    def __init__(self, name: str, *can: str, declines: str = "") -> None:
        self.agent = Agent(name)
        self.invitations: list[tuple[Message, Invitation]] = []
        self.told: list[tuple[str, Any]] = []
        for capability in can:

            @self.agent.capability(name=capability)
            async def do() -> str:
                return name

        @self.agent.on("collaboration.invite")
        async def invited(message: Message, invitation: Invitation) -> None:
            self.invitations.append((message, invitation))
            if declines:
                raise Refuse(declines)

        for topic in ("collaboration.join", "collaboration.leave", "collaboration.news"):
            self.agent.on(topic)(self.note)

    async def note(self, message: Message) -> None:
        self.told.append((message.topic, message.body))


@staged
async def test_agents_join_and_leave_a_collaboration(stage: Stage) -> None:
    ann, bob, cid = Member("ann"), Member("bob"), Member("cid", declines="no time")
    net = await Net(stage).up(n1=[ann.agent, cid.agent], n2=[bob.agent])
    async with net.client.invite("review", ["ann", "bob", "cid"], description="look at the plans") as group:
        assert sorted(group.members) == ["n1/ann", "n2/bob"]
        assert group.declined == {"n1/cid": "no time"}
        assert ann.invitations[0][1] == Invitation(group.id, "review", "look at the plans")
        group.tell("begin")
        bob.invitations[0][0].leave("tired")
        await until(lambda: group.declined.get("n2/bob") == "tired")
        assert group.members == ("n1/ann",)
        await until(lambda: bool(ann.told) and ann.told[-1][0] == "collaboration.leave")
        assert ("collaboration.news", "begin") in ann.told
        assert ann.told[-1][1] == {"id": group.id, "agent": "n2/bob", "members": ["n1/ann"]}
        with pytest.raises(Conflict):
            bob.invitations[0][0].leave()
    await until(lambda: not open_at(net))
    await net.down()


@staged
async def test_whoever_offers_all_that_is_required_is_invited(stage: Stage) -> None:
    ann, bob = Member("ann", "plan", "draw"), Member("bob", "plan")
    net = await Net(stage).up(n1=[ann.agent, bob.agent])
    async with net.client.invite("house", requires=("plan", "draw")) as group:
        assert group.members == ("n1/ann",)
        assert ann.invitations[0][1].requires == ("plan", "draw")
    for given, error in [({"requires": ("fly",)}, NoAgent), ({}, BadInput), ({"agents": ["zoe"]}, UnknownAgent)]:
        with pytest.raises(error):
            async with net.client.invite("house", **given):
                pass
    await net.down()


@staged
async def test_a_member_that_dies_has_left_and_one_that_is_silent_never_joined(stage: Stage) -> None:
    ann, bob, deaf = Member("ann"), Member("bob"), Agent("deaf")

    @deaf.on("collaboration.invite")
    async def think(invitation: Invitation) -> None:
        await asyncio.Event().wait()

    net = await Net(stage).up(n1=[ann.agent, deaf], n2=[bob.agent])
    async with net.client.invite("review", ["ann", "bob", "deaf"], deadline_s=2) as group:
        assert "did not reply" in group.declined["n1/deaf"]
        stage.network.disconnect(stage.nodes[1].node)
        await until(lambda: group.members == ("n1/ann",))
        await until(lambda: bool(ann.told) and ann.told[-1][0] == "collaboration.leave")
    with pytest.raises(NoAgent, match="nobody joined"):
        async with net.client.invite("review", ["deaf"], deadline_s=1):
            pass
    await until(lambda: not len(stage.nodes[0].messages.conversing))
    await net.down()


@staged
async def test_members_are_free_when_their_organiser_dies(stage: Stage) -> None:
    ann = Member("ann")
    net = await Net(stage).up(n1=[ann.agent])
    raw = await Caller.join(stage, "raw")
    how = by_hand("propose", topic="collaboration.invite", protocol="comity-collaboration")
    said = await raw.ask("n1/ann", {"id": "c", "kind": "review"}, **how)
    assert said[0] is Performative.ACCEPT_PROPOSAL
    assert open_at(net) == 1
    stage.network.disconnect(raw.bus.process)
    await until(lambda: not open_at(net))
    await net.down()


# The network itself


@staged
async def test_agents_hear_who_joins_and_leaves_and_of_the_end(stage: Stage) -> None:
    watcher, heard = Agent("watcher"), []
    for topic in ("agent.joined", "agent.left", "system.shutdown"):

        @watcher.on(topic)
        async def note(message: Message) -> None:
            body = message.body
            heard.append((message.topic, body.get("agent") if isinstance(body, dict) else body))

    net = await Net(stage).up(n1=[watcher])
    node = await net.join("n2", [greeter("ann")])
    await until(lambda: ("agent.joined", "n2/ann") in heard)
    node.remove("ann")
    await until(lambda: ("agent.left", "n2/ann") in heard)
    await net.client.shutdown(timeout=0)
    await until(lambda: heard[-1][0] == "system.shutdown")
    await net.client.close()


@staged
async def test_a_request_times_out_in_a_conversation_too(stage: Stage) -> None:
    net = await Net(stage).up(n1=[])
    raw = await Caller.join(stage, "n9")
    with pytest.raises(TimedOut):
        await net.client.request_via("n9/raw", "greet", timeout=2)
    assert [envelope.performative for envelope in raw.got] == [Performative.REQUEST]
    await net.down()
