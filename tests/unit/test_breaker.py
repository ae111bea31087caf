"""Circuit breakers: what opens them, what does not, how they close; and that tasks wait meanwhile."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import World, virtually
from test_reconcile import Leading, submit

from comity.core.breaker import CLOSED, HALF_OPEN, KEPT, OPEN, PROBING, BreakerPolicy, Breakers, Turn
from comity.core.changes import Change
from comity.core.reconcile import Policy, Reconcile
from comity.core.scheduling import Scheduling
from comity.model import wire
from comity.model.capability import AgentRecord, Offer, Requirements, Retry, Strategy
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.task import (
    Assign,
    Attempt,
    Complete,
    Ending,
    Evict,
    Fail,
    NodeUp,
    Requeue,
    Task,
    TaskFailure,
    TaskSpec,
    TaskState,
)

A = AgentId("n1/a")
OOPS = TaskFailure("KeyError", "'x'")


class Machine:
    """Breakers, told of one ending after another."""

    def __init__(self, **policy: Any) -> None:
        self.breakers = Breakers(BreakerPolicy(**policy))
        self.now = 1000
        self.count = 0
        self.is_checked = True

    def task(self, name: str = "", retry: Retry | None = None) -> Task:
        self.count += 1
        spec = TaskSpec(TaskId(name or f"t{self.count}"), "echo", b"", ProcessId("c1"), retry=retry)
        return Task(spec, TaskState.WORKING, 0)

    def end(
        self, ending: Ending, failure: TaskFailure | None = None, *, name: str = "", epoch: int = 0, agent: AgentId = A,
        no_retry: tuple[str, ...] = (),
    ) -> list[Turn]:  # fmt: skip
        kind = {Ending.COMPLETED: "task.completed", Ending.INPUT_REQUIRED: "task.input_required"}.get(ending, "task.retrying")
        attempt = Attempt(epoch or 10_000 + self.count, agent, ProcessId("n1"), 1, 0, 0, self.now, ending, failure)
        return self.step(Change(kind, self.task(name, Retry(no_retry=no_retry)), attempt))

    def fail(self, *, name: str = "", epoch: int = 0) -> list[Turn]:
        return self.end(Ending.FAILED, OOPS, name=name, epoch=epoch)

    def assign(self, epoch: int) -> list[Turn]:
        return self.step(Change("task.assigned", self.task(), Attempt(epoch, A, ProcessId("n1"), 1, self.now)))

    def step(self, change: Change) -> list[Turn]:
        turns = self.breakers.observe([change], self.now)
        if self.is_checked:
            self.breakers.check()
        return turns

    def wait(self, ms: int) -> list[str]:
        self.now += ms
        turns = self.breakers.due(self.now)
        self.breakers.check()
        return [turn.state for turn in turns]


def states(turns: list[Turn]) -> list[str]:
    return [turn.state for turn in turns]


def test_failures_in_a_row_open_it_and_one_attempt_at_a_time_tries_it() -> None:
    m = Machine(failures=3, open_ms=1000, longest=3)
    assert m.fail() == m.fail() == []
    (turn,) = m.fail()
    assert (turn.agent, turn.capability, turn.state, turn.until_ms) == (A, "echo", OPEN, 2000)
    assert turn.reason == "3 tasks in a row failed, the last with KeyError: 'x'"
    assert m.fail() == m.end(Ending.COMPLETED) == [], "what began before tells nothing new"
    assert m.wait(999) == [] and m.wait(1) == [HALF_OPEN]
    assert states(m.assign(7)) == [PROBING] and m.assign(8) == []
    assert m.fail(epoch=8) == [], "not the one that tries it"
    (again,) = m.fail(epoch=7)
    assert (again.state, again.until_ms) == (OPEN, 4000), "twice as long"
    assert m.wait(2000) == [HALF_OPEN] and states(m.assign(9)) == [PROBING]
    assert states(m.end(Ending.REFUSED, TaskFailure("refused"), epoch=9)) == [HALF_OPEN], "that told nothing"
    m.assign(10)
    (third,) = m.end(Ending.TIMED_OUT, TaskFailure("attempt-timeout"), epoch=10)
    assert third.until_ms == m.now + 3000, "at most"
    m.wait(3000)
    m.assign(11)
    assert states(m.end(Ending.COMPLETED, epoch=11)) == [CLOSED]
    assert list(m.breakers) == [], "forgotten"


def test_an_attempt_that_asks_for_something_tells_nothing_and_the_next_one_may_try() -> None:
    m = Machine(failures=1, open_ms=1000)
    m.fail()
    m.wait(1000)
    m.assign(7)
    assert states(m.end(Ending.INPUT_REQUIRED, epoch=7)) == [HALF_OPEN]
    assert states(m.assign(8)) == [PROBING]


def test_a_share_of_failures_within_the_window_opens_it() -> None:
    m = Machine(failures=3, share=0.5, window_ms=1000)
    turns: list[Turn] = []
    for _ in range(3):
        turns += m.fail()
        turns += m.end(Ending.COMPLETED)
        m.now += 10
    assert [turn.reason for turn in turns] == []
    (turn,) = m.fail()
    assert turn.reason.startswith("4 of 7 tasks failed within 1 s")


def test_what_is_past_the_window_is_forgotten() -> None:
    m = Machine(failures=3, window_ms=1000)
    for _ in range(10):
        assert m.fail() == []
        m.now += 600
    assert m.fail() == []
    m.now += 5000
    m.end(Ending.COMPLETED)
    assert list(m.breakers) == []


@pytest.mark.parametrize(
    ("ending", "failure"),
    [
        (Ending.FAILED, TaskFailure("invalid-input", "no", retryable=False)),
        (Ending.FAILED, TaskFailure("invalid-input", "its input is not in the store")),
        (Ending.FAILED, TaskFailure("bad-input", "no")),
        (Ending.REFUSED, TaskFailure("refused")),
        (Ending.NOT_STARTED, TaskFailure("not-started")),
        (Ending.EVICTED, TaskFailure("node-lost")),
        (Ending.MOVED, TaskFailure("moved")),
        (Ending.INPUT_REQUIRED, None),
        (Ending.CANCELED, TaskFailure("task-canceled", retryable=False)),
        (Ending.TIMED_OUT, TaskFailure("deadline-exceeded", retryable=False)),
    ],
)
def test_what_is_not_the_agents_fault_does_not_count(ending: Ending, failure: TaskFailure | None) -> None:
    m = Machine(failures=2)
    assert [m.end(ending, failure) for _ in range(10)] == [[]] * 10
    assert list(m.breakers) == []


@pytest.mark.parametrize(
    ("ending", "code"), [(Ending.FAILED, "AuthError"), (Ending.TIMED_OUT, "attempt-timeout"), (Ending.STUCK, "stuck")]
)
def test_what_a_task_says_is_final_does_not_count(ending: Ending, code: str) -> None:
    m = Machine(failures=2)
    assert [m.end(ending, TaskFailure(code), no_retry=("KeyError", code)) for _ in range(10)] == [[]] * 10
    assert list(m.breakers) == []
    assert m.end(ending, TaskFailure(code), no_retry=("KeyError",)) == []
    assert states(m.end(ending, TaskFailure(code))) == [OPEN], "others do"


def test_a_probe_that_ends_by_the_callers_fault_tells_nothing() -> None:
    m = Machine(failures=1, open_ms=1000)
    m.fail()
    m.wait(1000)
    m.assign(7)
    assert states(m.end(Ending.FAILED, TaskFailure("AuthError"), epoch=7, no_retry=("AuthError",))) == [HALF_OPEN]


def test_one_task_that_fails_again_and_again_counts_once() -> None:
    m = Machine(failures=2)
    assert [m.fail(name="poison") for _ in range(10)] == [[]] * 10
    assert states(m.fail(name="another")) == [OPEN]


def test_a_node_that_starts_anew_starts_with_closed_ones() -> None:
    m = Machine(failures=2)
    m.fail()
    m.fail()
    (turn,) = m.step(Change("node.joined", node=ProcessId("n1")))
    assert (turn.state, turn.reason) == (CLOSED, "node n1 starts anew")
    assert m.wait(60_000) == []


def test_only_so_many_are_remembered() -> None:
    m = Machine(failures=1)
    m.is_checked = False
    for i in range(KEPT + 3):
        m.end(Ending.FAILED, OOPS, agent=AgentId(f"n1/{i}"))
    m.breakers.check()
    assert len(list(m.breakers)) == KEPT


# Out of rotation


def leading(*agents: tuple[str, int], failures: int = 2) -> Leading:
    net = Leading()
    net.reconcile = Reconcile(
        net.state, net.scheduling, Policy(), lambda: 0.5, Breakers(BreakerPolicy(failures=failures, open_ms=1000))
    )
    for name, slots in agents:
        node = ProcessId(name.split("/", maxsplit=1)[0])
        net.commit(NodeUp(node, 1))
        net.reconcile.set_node(node, True)
        net.agent(name, slots)
    return net


def token(net: Leading, task: str) -> int:
    return net.state.tasks[TaskId(task)].epoch


def fail(net: Leading, task: str) -> None:
    net.commit(Fail(TaskId(task), token(net, task), OOPS, net.now + 1_000_000))
    net.scheduling.check()


def test_the_others_take_what_a_broken_agent_would_have() -> None:
    net = leading(("n1/a", 2), ("n2/b", 2))
    needs = Requirements(agent="n1/a")
    net.commit(submit("t1", requirements=needs), submit("t2", requirements=needs))
    assert net.assigned() == ["t1", "t2"]
    fail(net, "t1")
    fail(net, "t2")
    net.commit(*(submit(f"u{i}") for i in range(3)))
    net.commit(*(commands := net.plan()))
    assert {command.agent for command in commands if isinstance(command, Assign)} == {"n2/b"} and len(commands) == 2
    net.commit(submit("v", requirements=needs))
    assert net.assigned() == [], "though it asks for that agent"
    told = net.scheduling.explain("echo", needs)
    assert told["reason"].count("its breaker is open until 1970-01-01T00:00:02.000+00:00") == 1


def test_all_broken_tasks_wait_then_one_tries() -> None:
    net = leading(("n1/a", 4))
    net.commit(submit("t1"), submit("t2"))
    net.assigned()
    fail(net, "t1")
    fail(net, "t2")
    net.commit(*(submit(f"u{i}") for i in range(3)))
    assert net.assigned() == []
    assert net.reconcile.next_deadline() == 2000
    net.now = 2000
    assert net.reconcile.due(net.now) == []
    first = net.plan()
    assert [command.task for command in first if isinstance(command, Assign)] == ["u0"]
    assert net.plan() == [], "its assignment is under way"
    net.commit(*first)
    assert net.assigned() == []
    net.commit(Complete(TaskId("u0"), token(net, "u0"), b"1"))
    assert net.assigned() == ["u1", "u2"]
    net.scheduling.check()


def test_a_void_assignment_frees_it_for_another_try() -> None:
    net = leading(("n1/a", 4), failures=1)
    net.commit(submit("t1"))
    net.assigned()
    fail(net, "t1")
    net.now = 2000
    net.commit(submit("u1"), submit("u2"))
    net.reconcile.due(net.now)
    (reserved,) = net.plan()
    assert isinstance(reserved, Assign)
    net.commit(Assign(reserved.task, reserved.epoch, reserved.agent, reserved.node, 99))
    assert net.assigned() == ["u1"] and net.assigned() == []


def test_a_new_leader_that_saw_the_same_knows_the_same() -> None:
    net = leading(("n1/a", 4), failures=1)
    net.commit(submit("t1"), submit("t2"))
    net.assigned()
    fail(net, "t1")
    breakers = net.reconcile.rotation.breakers
    net.reconcile = Reconcile(net.state, net.scheduling, Policy(), lambda: 0.5, breakers)
    net.reconcile.rebuild()
    net.commit(submit("u1"))
    assert net.assigned() == []
    net.reconcile = Reconcile(net.state, net.scheduling, Policy(), lambda: 0.5, Breakers())
    net.reconcile.rebuild()
    assert net.assigned() == ["u1"], "one that saw nothing gives it a chance"
    net.check()


def test_an_agent_that_comes_back_is_still_out() -> None:
    net = leading(("n1/a", 4), failures=1)
    net.commit(submit("t1"))
    net.assigned()
    fail(net, "t1")
    net.reconcile.remove_agent(A)
    net.agent("n1/a", 4)
    net.commit(submit("u1"))
    assert net.assigned() == []
    net.commit(Evict(ProcessId("n1"), 1, "gone"), NodeUp(ProcessId("n1"), 2))
    assert net.assigned() == ["u1"]


@given(st.integers(0, 2**32), st.sampled_from(list(Strategy)))
@settings(max_examples=60, deadline=None)
def test_the_index_stays_whole_whoever_is_benched(seed: int, how: Strategy) -> None:
    rng = random.Random(seed)
    made = Scheduling(rng.random, how)
    wants = [None, Requirements(tags=("x",)), Requirements(tags=("x", "y")), Requirements(agent="n1/3")]
    benched: set[tuple[str, str]] = set()
    for _ in range(120):
        agent, capability = AgentId(f"n{rng.randrange(2)}/{rng.randrange(6)}"), rng.choice(["p", "q"])
        match rng.randrange(5):
            case 0:
                offers = tuple(Offer(name, "1", "") for name in rng.sample(["p", "q"], rng.randint(1, 2)))
                tags = tuple(tag for tag in ("x", "y") if rng.random() < 0.6)
                node = ProcessId(agent.partition("/")[0])
                made.put_agent(AgentRecord(id=agent, name=agent, node=node, concurrency=2, offers=offers, tags=tags))
            case 1:
                made.set_node(ProcessId(f"n{rng.randrange(2)}"), eligible=rng.random() < 0.8)
            case 2 if rng.random() < 0.3:
                made.remove_agent(agent)
            case 3:
                made.bench(agent, capability, rng.choice(["", "why"]))
            case _:
                found = made.choose(capability, rng.choice(wants), how)
                benched = set(made.benched())
                assert found is None or (found, capability) not in benched
                made.explain(capability, rng.choice(wants), how)
        made.check()


@virtually(breaker_failures=2, breaker_open_s=0.3)
async def test_the_leader_tells_of_it_and_its_successor_knows(world: World) -> None:
    await world.controller("k1")
    second = await world.controller("k2", eager=False)
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.say(wire.FollowEvents(1))
    for _ in range(2):
        task = await client.submit(retries=0)
        run = await node.hear(wire.Run)
        await node.say(wire.Failed(task, run.epoch, OOPS))
    await client.hear(wire.EventNotice, lambda n: b'"agent.broken"' in n.body and b"KeyError" in n.body)
    task = await client.submit()
    why = await client.ask("why", id=task)
    assert "failed too often, such as n1/a: its breaker is open until 20" in why["reason"]
    assert why["state"] == "submitted"
    (row,) = (await client.ask("agents"))["agents"]
    assert "its breaker is open" in row["broken"]["echo"]
    assert (await client.ask("stats"))["breakers"][OPEN] == 1
    assert second.breakers.of(A, "echo") is not None, "it reads the same log"
    run = await node.hear(wire.Run)
    await client.hear(wire.EventNotice, lambda n: b'"agent.probing"' in n.body)
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    await client.hear(wire.EventNotice, lambda n: b'"agent.mended"' in n.body)
    assert (await client.ask("stats"))["breakers"] == {OPEN: 0, HALF_OPEN: 0, PROBING: 0}


def test_a_requeue_gives_the_probe_back() -> None:
    net = leading(("n1/a", 4), failures=1)
    net.commit(submit("t1"))
    net.assigned()
    fail(net, "t1")
    net.now = 2000
    net.commit(submit("u1"), submit("u2"))
    net.reconcile.due(net.now)
    assert net.assigned() == ["u1"]
    net.commit(Requeue(TaskId("u1"), token(net, "u1"), Ending.REFUSED, "busy"))
    assert net.assigned() == ["u2"]
