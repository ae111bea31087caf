"""Messages to the agents of a node: who gets them, what goes back, and what never hangs."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import msgspec
import pytest
from node_stage import Caller, Stage, staged_on, until

from comity.agent import Agent
from comity.bus.base import to
from comity.errors import Conflict, NoAgent, Refuse, TimedOut, UnknownAgent
from comity.handles import Attempt
from comity.message import Message
from comity.model import wire
from comity.model.capability import AgentStatus
from comity.model.envelope import Performative
from comity.model.files import BODY_LIMIT
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


@dataclasses.dataclass
class Point:
    x: int
    y: int


@staged
async def test_a_request_is_answered_with_what_the_function_returns(stage: Stage) -> None:
    agent = Agent("a")

    @agent.on("add")
    async def add(message: Message, body: Point) -> int:
        assert message.topic == "add" and message.sender == "c1" and message.body == {"x": 1, "y": 2}
        assert message.sent_at.year == 1970 and message.performative == "request" and message.id == "m1"
        return body.x + body.y

    await stage.started(agent)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", {"x": 1, "y": 2}, topic="add", conversation="talk", trace="t") == ("inform", 3)
    reply = caller.got[-1]
    assert (reply.sender, reply.receiver, reply.conversation, reply.topic, reply.trace) == ("n1/a", "c1", "talk", "add", "t")
    assert reply.in_reply_to == "m1" and not reply.reply_to


@staged
async def test_functions_are_found_by_topic_then_capability_then_performative(stage: Stage) -> None:
    agent = Agent("a")

    @agent.on("both")
    async def topic() -> str:
        return "topic"

    @agent.capability(name="both")
    async def shadowed() -> str:
        return "capability"

    @agent.capability
    async def double(attempt: Attempt, n: int) -> int:
        attempt.progress(0.5)
        assert attempt.id == "" and attempt.epoch == 0 and attempt.capability == "double" and attempt.agent == "n1/a"
        assert attempt.number == 1 and attempt.parent is None and attempt.remaining_s == pytest.approx(5.0)
        assert attempt.deadline is not None
        return 2 * n

    @agent.on("request")
    async def request(message) -> str:  # type: ignore[no-untyped-def]
        return f"request about {message.topic}"

    await stage.started(agent)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", topic="both") == ("inform", "topic")
    assert await caller.ask("n1/a", {"n": 4}, topic="double", remaining_ms=5000) == ("inform", 8)
    assert await caller.ask("n1/a", topic="other") == ("inform", "request about other")
    performative, said = await caller.ask("n1/a", topic="other", performative=Performative.QUERY)
    assert performative == "not-understood" and "no function for topic 'other'" in said["message"]


@staged
async def test_what_goes_wrong_is_told(stage: Stage) -> None:
    agent = Agent("a")

    @agent.on("work")
    async def work(kind: str) -> int:
        match kind:
            case "error":
                raise ValueError("no")
            case "ours":
                raise NoAgent("nobody", thing=object())
            case "refuse":
                raise Refuse("busy")
            case "cancel":
                raise asyncio.CancelledError
            case "large":
                return "x" * 1_000_000  # type: ignore[return-value]
        return "text"  # type: ignore[return-value]

    @agent.on("large")
    async def large() -> str:
        return "x" * BODY_LIMIT

    await stage.started(agent)
    caller = await Caller.join(stage)

    async def ask(body: Any, topic: str = "work") -> tuple[str, str]:
        performative, said = await caller.ask("n1/a", body, topic=topic)
        return performative, said.get("code", said["message"])

    assert await ask("error") == ("failure", "ValueError")
    assert await ask("ours") == ("failure", "no-agent")
    assert await ask("refuse") == ("refuse", "busy")
    assert await ask("cancel") == ("failure", "CancelledError")
    assert await ask("other") == ("failure", "invalid-output")
    assert await ask({}, "large") == ("failure", "too-large")
    assert await ask(7) == ("not-understood", "invalid-input")
    asked = await caller.send("n1/a", "x", topic="work", content_type="text/plain")
    await until(lambda: any(e.in_reply_to == asked.id for e in caller.got))
    assert caller.got[-1].performative == "not-understood"


@staged
async def test_an_unknown_agent_is_told_at_once(stage: Stage) -> None:
    await stage.started(Agent("a"))
    caller = await Caller.join(stage)
    before = asyncio.get_running_loop().time()
    for receiver in ("n1/b", "n1"):
        performative, said = await caller.ask(receiver, topic="x")
        assert (performative, said["code"]) == ("failure", "unknown-agent")
    assert asyncio.get_running_loop().time() - before < 0.1
    await caller.send("n1/b", performative=Performative.INFORM)
    await caller.send("n1", performative=Performative.INFORM, in_reply_to="long ago")
    await asyncio.sleep(1)
    assert len(caller.got) == 2
    assert stage.nodes[0].messages.late == 1


@staged
async def test_informs_are_not_answered_even_if_they_fail(stage: Stage) -> None:
    agent = Agent("a")
    got: list[Any] = []

    @agent.on("inform")
    async def note(message: Message, body: Any) -> str:
        got.append(body)
        if body == "bad":
            raise ValueError("bad")
        return "not sent"

    await stage.started(agent)
    caller = await Caller.join(stage)
    for body in ("good", "bad"):
        await caller.send("n1/a", body, performative=Performative.INFORM)
    await until(lambda: len(got) == 2)
    await asyncio.sleep(1)
    assert not caller.got


@staged
async def test_a_function_may_answer_by_itself_and_in_other_words(stage: Stage) -> None:
    agent = Agent("a")

    @agent.on("cfp")
    async def offer(message: Message) -> None:
        message.reply({"price": 3}, "propose")

    @agent.on("stream")
    async def stream(message: Message, n: int) -> str:
        for i in range(n):
            message.reply(i)
        return "not sent"

    @agent.on("wrong")
    async def wrong(message: Message) -> None:
        message.reply("x" * BODY_LIMIT)

    await stage.started(agent)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", performative=Performative.CFP) == ("propose", {"price": 3})
    await caller.ask("n1/a", 3, topic="stream")
    await asyncio.sleep(1)
    assert [msgspec.json.decode(e.body) for e in caller.got[1:]] == [0, 1, 2]
    assert (await caller.ask("n1/a", topic="wrong"))[1]["code"] == "too-large"


@staged
async def test_a_broadcast_reaches_those_with_its_tags_but_not_its_sender(stage: Stage) -> None:
    got: list[str] = []

    def hearing(name: str, *tags: str) -> Agent:
        agent = Agent(name, tags=tags)

        @agent.on("news")
        async def hear(message: Message) -> str:
            got.append(f"{name} {message.topic} {message.body}")
            return name

        return agent

    agents = [hearing("a", "red", "big"), hearing("b", "red"), hearing("c", "red", "big"), Agent("d", tags={"red", "big"})]
    await stage.started(*agents)
    caller = await Caller.join(stage)
    await caller.send("", "one", performative=Performative.INFORM, topic="news", tags=("red",))
    await until(lambda: len(got) == 3)
    await agents[0].broadcast("two", topic="news", tags={"big", "red"})
    await until(lambda: len(got) == 4)
    await asyncio.sleep(1)
    assert got == ["a news one", "b news one", "c news one", "c news two"]
    assert not caller.got

    await caller.send("", "three", topic="news", tags=("big",))
    await until(lambda: len(caller.got) == 2)
    assert {e.sender for e in caller.got} == {"n1/a", "n1/c"}

    agents[1].join("ops")
    agents[0].join("ops")
    agents[0].leave("ops")
    await agents[2].broadcast("four", topic="news", group="ops")
    await until(lambda: "b news four" in got)
    await asyncio.sleep(1)
    assert len([said for said in got if said.endswith("four")]) == 1, "those in the group, and nobody else"


@staged
async def test_functions_are_added_and_taken_away_at_run_time(stage: Stage) -> None:
    agent = Agent("a")
    got: list[Any] = []
    node, _ = await stage.started(agent)
    caller = await Caller.join(stage)
    assert (await caller.ask("n1/a", topic="ping"))[0] == "not-understood"

    @agent.on("ping")
    async def ping() -> str:
        return "pong"

    @agent.on("inform")
    async def any_inform(body: Any) -> None:
        got.append(body)

    assert await caller.ask("n1/a", topic="ping") == ("inform", "pong")
    await caller.send("", "to all", performative=Performative.INFORM, topic="system.shutdown")
    await until(lambda: got == ["to all"])
    with pytest.raises(Conflict):
        agent.on("ping")(ping)
    agent.off("ping")
    agent.off("inform")
    assert (await caller.ask("n1/a", topic="ping"))[0] == "not-understood"
    await caller.send("", "to nobody", performative=Performative.INFORM)
    await asyncio.sleep(1)
    assert got == ["to all"]
    node.remove(agent)
    assert (await caller.ask("n1/a", topic="ping"))[1]["code"] == "unknown-agent"


@staged
async def test_expired_and_forged_messages_are_dropped_and_counted(stage: Stage) -> None:
    agent = Agent("a")
    got: list[str] = []

    @agent.on("note")
    async def note(message: Message) -> None:
        got.append(message.id)

    node, _ = await stage.started(agent)
    caller = await Caller.join(stage)
    wall_ms = int(stage.wall() * 1000)
    await caller.send("n1/a", topic="note", expires_at=wall_ms - 1)
    await caller.send("n1/a", topic="note", remaining_ms=-5)
    await caller.send("n1/a", topic="note", sender="n2/x")
    await caller.send("n1/a", topic="note", expires_at=wall_ms + 5000, sender="c1/x")
    await until(lambda: bool(got))
    assert got == ["m4"]
    assert (node.messages.expired, node.messages.forged) == (2, 1)
    await caller.bus.send(to("n1"), b"rubbish")
    await until(lambda: node.malformed == 1)


@staged
async def test_a_call_ends_with_its_time_and_by_cancel(stage: Stage) -> None:
    agent = Agent("a")
    ended: list[str] = []

    @agent.on("wait")
    async def wait(name: str) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(name)

    node, leader = await stage.started(agent)
    caller = await Caller.join(stage)
    await caller.send("n1/a", "timed", topic="wait", remaining_ms=2000)
    asked = await caller.send("n1/a", "canceled", topic="wait")
    await until(lambda: len(node.messages.calls) == 2)
    leader.forget()
    assert (await leader.next(wire.Beacon)).calls == {"n1/a": 2}
    await caller.send("n1/a", performative=Performative.CANCEL, in_reply_to=asked.id)
    await until(lambda: ended == ["canceled"])
    await until(lambda: ended == ["canceled", "timed"])
    assert not node.messages.calls and not caller.got


@staged
async def test_a_message_that_is_called_off_as_it_comes_is_not_at_work_for_ever(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[str] = []

    @agent.on("work")
    async def work(name: str) -> None:
        ran.append(name)

    node, _ = await stage.started(agent)
    caller = await Caller.join(stage)
    asked = caller.envelope("n1/a", "canceled", topic="work")
    off = caller.envelope("n1/a", performative=Performative.CANCEL, in_reply_to=asked.id)
    await caller.bus.send(to("n1"), wire.encode([wire.Message(asked), wire.Message(off)]))
    await caller.ask("n1/a", "done", topic="work")
    assert (ran, node.messages.calls) == (["done"], {})


@staged
async def test_a_message_that_comes_twice_runs_once(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[int] = []

    @agent.on("work")
    async def work(n: int) -> None:
        ran.append(n)
        await asyncio.sleep(1)

    await stage.started(agent)
    caller = await Caller.join(stage)
    await caller.send("n1/a", 1, topic="work", id="same")
    await caller.send("n1/a", 1, topic="work", id="same")
    await until(lambda: len(caller.got) == 1)
    assert ran == [1]


@staged
async def test_a_paused_agent_takes_no_live_work_but_hears_messages(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> int:
        return 1

    @agent.on("status")
    async def status() -> str:
        return agent.status

    await stage.started(agent)
    agent.update(status=AgentStatus.PAUSED)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", {}, topic="work") == ("refuse", {"message": "n1/a is paused"})
    assert await caller.ask("n1/a", topic="status") == ("inform", "paused")


def countdown(name: str, other: str) -> Agent:
    """An agent that asks the other one, which asks it, and so on."""
    agent = Agent(name)

    @agent.on("count")
    async def count(n: int) -> list[str]:
        return [name] if n == 0 else [name, *await agent.request(other, n - 1, topic="count")]

    return agent


@pytest.mark.parametrize("apart", [False, True], ids=["same-node", "two-nodes"])
@staged
async def test_agents_that_call_each_other_recursively(stage: Stage, apart: bool) -> None:
    where = "n2" if apart else "n1"
    a, b = countdown("a", f"{where}/b"), countdown("b", "n1/a")
    if apart:
        await stage.started(a)
        node = stage.node("n2", [b])
        await node.start()
    else:
        await stage.started(a, b)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", 20, topic="count") == ("inform", ["a", "b"] * 10 + ["a"])


@staged
async def test_a_call_of_what_does_not_exist_or_dies_ends_in_a_typed_error(stage: Stage) -> None:
    agent, silent = Agent("a"), Agent("s")

    @silent.on("wait")
    async def wait() -> None:
        await asyncio.sleep(1000)

    await stage.started(agent)
    other = stage.node("n2", [silent])
    await other.start()
    with pytest.raises(UnknownAgent):
        await agent.request("n1/nobody", topic="x")
    with pytest.raises(TimedOut):
        await agent.request("n2/s", topic="wait", timeout=3)
    waits = asyncio.create_task(agent.request("n2/s", topic="wait"))
    await until(lambda: bool(other.messages.calls))
    await other.stop()
    with pytest.raises(Exception, match="left") as caught:
        await waits
    assert caught.value.code in ("shutting-down", "peer-lost")  # type: ignore[attr-defined]
