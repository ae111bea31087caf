"""What happens next: order, reservations, timers, refusals, children, and starting afresh."""

from __future__ import annotations

from typing import Any

import pytest

from comity.core.policy import Policy
from comity.core.reconcile import Reconcile
from comity.core.scheduling import Scheduling
from comity.core.tasks import Tasks
from comity.core.waiting import LOOKS, Heap
from comity.model.capability import AgentRecord, Offer, Requirements, Strategy
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Assign,
    Cancel,
    Canceled,
    Command,
    Complete,
    Ending,
    Entry,
    Evict,
    Expire,
    Fail,
    NodeUp,
    Rate,
    Requeue,
    Start,
    Submit,
    TaskFailure,
    TaskSpec,
    TaskState,
)


class Leading:
    """A leader's view without its pipeline: what is planned becomes effective when ``commit`` says so."""

    def __init__(self, *agents: tuple[str, int], policy: Policy | None = None) -> None:
        self.state = Tasks(NetworkId("net"))
        self.scheduling = Scheduling(lambda: 0.5)
        self.reconcile = Reconcile(self.state, self.scheduling, policy or Policy(), lambda: 0.5)
        self.index = 0
        self.now = 1000
        self.is_checked = True
        for name, slots in agents:
            node = ProcessId(name.split("/")[0])
            self.commit(NodeUp(node, 1))
            self.reconcile.set_node(node, True)
            self.agent(name, slots)

    def agent(self, name: str, slots: int, *tags: str) -> None:
        node = ProcessId(name.split("/", maxsplit=1)[0])
        offers = (Offer("echo", "1.0", ""),)
        record = AgentRecord(id=AgentId(name), name=name, node=node, concurrency=slots, offers=offers, tags=tags)
        self.reconcile.put_agent(record)

    def commit(self, *commands: Command) -> None:
        self.index += 1
        changes = self.state.apply(Entry("net", 1, b"", self.now, list(commands)), self.index)
        self.reconcile.observe(changes)
        if self.is_checked:
            self.check()

    def check(self) -> None:
        self.state.check()
        self.reconcile.check()

    def plan(self, room: int = 100) -> list[Command]:
        return self.reconcile.plan(room)

    def assigned(self) -> list[str]:
        """Plan, make it effective, and name the tasks that were assigned, in order."""
        commands = self.plan()
        self.commit(*commands)
        return [command.task for command in commands if isinstance(command, Assign)]

    def load(self, name: str = "n1/a") -> int:
        return self.scheduling.load(AgentId(name))


def submit(task: str, **more: object) -> Submit:
    return Submit(TaskSpec(TaskId(task), "echo", b"{}", ProcessId("c1"), **more))  # type: ignore[arg-type]


def test_higher_priority_first_then_oldest() -> None:
    net = Leading()
    for name, priority in (("low", 1), ("mid-1", 5), ("mid-2", 5), ("high", 9)):
        net.now += 1
        net.commit(submit(name, priority=priority))
    net.commit(NodeUp(ProcessId("n1"), 1))
    net.reconcile.set_node(ProcessId("n1"), True)
    net.agent("n1/a", 10)
    assert net.assigned() == ["high", "mid-1", "mid-2", "low"]


def test_waiting_raises_priority_so_that_none_starves() -> None:
    net = Leading(policy=Policy(aging_ms=1000))
    net.commit(submit("old", priority=0))
    net.now += 9001
    net.commit(submit("new", priority=9))
    net.commit(NodeUp(ProcessId("n1"), 1))
    net.reconcile.set_node(ProcessId("n1"), True)
    net.agent("n1/a", 10)
    assert net.assigned() == ["old", "new"]


def test_no_more_than_an_agent_takes_at_once() -> None:
    net = Leading(("n1/a", 2))
    net.commit(*(submit(f"t{i}") for i in range(5)))
    assert net.assigned() == ["t0", "t1"]
    assert net.assigned() == []
    net.commit(Complete(TaskId("t0"), 1, b"1"))
    assert net.assigned() == ["t2"]
    assert net.load() == 2


def test_what_is_under_way_to_the_log_is_reserved() -> None:
    net = Leading(("n1/a", 2))
    net.commit(submit("t0"), submit("t1"), submit("t2"))
    first = net.plan()
    assert net.plan() == [], "reserved: neither the tasks nor the slots are given out twice"
    assert net.load() == 2
    net.commit(*first)
    assert net.reconcile.reserved == {}


def test_an_assignment_rides_with_its_submit_unless_others_wait() -> None:
    net = Leading(("n1/a", 1))
    first, second = submit("t1"), submit("t2")
    assign = net.reconcile.ride(first.spec)
    assert assign is not None and assign.agent == "n1/a"
    assert net.reconcile.ride(second.spec) is None, "the only slot is reserved"
    net.commit(first, assign, second)
    assert net.state.tasks[TaskId("t1")].state is TaskState.ASSIGNED
    net.commit(Complete(TaskId("t1"), assign.epoch, b"1"))
    third = submit("t3")
    assert net.reconcile.ride(third.spec) is None, "t2 waits before it"
    assert net.assigned() == ["t2"]


def test_a_void_assignment_gives_its_slot_back_and_the_task_waits_again() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("t1"))
    commands = net.plan()
    net.commit(Evict(ProcessId("n1"), 1))
    net.commit(*commands)
    assert net.load() == 0
    net.commit(NodeUp(ProcessId("n1"), 2))
    net.reconcile.wake()
    assert net.assigned() == ["t1"]


def test_a_void_assignment_of_a_task_that_never_was_gives_its_slot_back() -> None:
    net = Leading(("n1/a", 1))
    assign = net.reconcile.ride(submit("t1").spec)
    assert assign is not None
    net.commit(assign)
    assert (net.load(), net.reconcile.reserved) == (0, {})


def test_a_task_nobody_can_take_blocks_no_other() -> None:
    net = Leading(("n1/a", 5))
    net.commit(submit("gpu", priority=9, requirements=Requirements(tags=("gpu",))), submit("any"))
    assert net.assigned() == ["any"]
    net.agent("n1/b", 1, "gpu")
    assert net.assigned() == ["gpu"]


def test_a_refused_task_goes_to_another_agent_and_waits_if_all_refuse() -> None:
    net = Leading(("n1/a", 5), ("n2/a", 5), policy=Policy(refusal_ms=10_000))
    net.commit(submit("t1"))
    seen = []
    for _ in range(2):
        assert net.assigned() == ["t1"]
        task = net.state.tasks[TaskId("t1")]
        assert task.attempt is not None
        seen.append(task.attempt.agent)
        net.commit(Requeue(TaskId("t1"), task.epoch, Ending.REFUSED, "not mine"))
    assert sorted(seen) == ["n1/a", "n2/a"]
    assert net.assigned() == []
    net.now += 10_001
    assert net.reconcile.due(net.now) == []
    net.commit()
    assert net.assigned() == ["t1"], "refusals are forgotten after a while"
    assert net.state.tasks[TaskId("t1")].retries_used == 0


def test_a_retry_waits_for_its_time() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("t1"))
    net.assigned()
    net.commit(Fail(TaskId("t1"), 1, TaskFailure("x"), not_before=net.now + 500))
    assert net.assigned() == []
    assert net.reconcile.next_deadline() is not None
    net.now += 500
    net.reconcile.due(net.now)
    assert net.assigned() == ["t1"]


def test_back_off_doubles_to_its_limit() -> None:
    net = Leading(policy=Policy(backoff_ms=100, backoff_max_ms=1000))
    assert [net.reconcile.policy.pause_ms(None, n, 0.5) for n in range(6)] == [75, 150, 300, 600, 750, 750]


@pytest.mark.parametrize(("started", "after_ms", "expected"), [(False, 2_000, Requeue), (True, 9_000, Fail)])
def test_time_outs_move_an_attempt(started: bool, after_ms: int, expected: type) -> None:
    net = Leading(("n1/a", 1), policy=Policy(attempt_slack_ms=1_000))
    net.commit(submit("t1", start_timeout_s=2.0, attempt_timeout_s=8.0))
    net.assigned()
    if started:
        net.commit(Start(TaskId("t1"), 1))
    assert net.reconcile.due(net.now + after_ms - 1) == []
    due = net.reconcile.due(net.now + after_ms)
    assert [type(command) for command in due] == [expected]
    net.now += after_ms
    net.commit(*due)
    assert net.state.tasks[TaskId("t1")].state is TaskState.WAITING


def test_the_start_time_counts_from_assignment_not_from_submission() -> None:
    net = Leading()
    net.commit(submit("t1", start_timeout_s=2.0))
    assert net.reconcile.due(net.now + 1_000_000) == []


def test_a_deadline_ends_a_waiting_task() -> None:
    net = Leading()
    net.commit(submit("t1", deadline_ms=5_000))
    assert net.reconcile.next_deadline() == 5_000
    assert net.reconcile.due(5_000) == [Expire(TaskId("t1"))]


def test_a_cancel_becomes_final_after_the_grace_time() -> None:
    net = Leading(("n1/a", 1), policy=Policy(cancel_grace_ms=100))
    net.commit(submit("t1"))
    net.assigned()
    net.commit(Cancel(TaskId("t1")))
    due = net.reconcile.due(net.now + 100)
    assert [type(command) for command in due] == [Canceled]
    net.commit(*due)
    assert net.load() == 0


def test_children_are_canceled_with_their_parent() -> None:
    net = Leading(("n1/a", 5))
    net.commit(submit("p"))
    net.assigned()
    net.commit(submit("c", parent=TaskId("p"), parent_epoch=1))
    net.assigned()
    net.commit(Cancel(TaskId("p")))
    assert [c.task for c in net.plan() if isinstance(c, Cancel)] == ["c"]


def test_a_task_that_was_not_begun_goes_elsewhere() -> None:
    net = Leading(("n1/a", 5), ("n2/a", 5), policy=Policy(refusal_ms=10_000))
    net.commit(submit("t1"))
    net.assigned()
    for _ in range(2):
        first = net.state.tasks[TaskId("t1")]
        assert first.attempt is not None
        before = first.attempt.agent
        net.commit(Requeue(TaskId("t1"), first.epoch, Ending.NOT_STARTED))
        if net.assigned() != ["t1"]:
            break
        assert first.attempt.agent != before
    else:
        pytest.fail("both could not begin it: it waits for a while")


def test_children_of_a_lost_attempt_are_canceled_those_of_the_next_are_not() -> None:
    net = Leading(("n1/a", 5), ("n2/a", 5))
    net.commit(submit("p"))
    net.assigned()
    net.commit(submit("c1", parent=TaskId("p"), parent_epoch=1))
    net.assigned()
    net.commit(Requeue(TaskId("p"), 1, Ending.NOT_STARTED))
    commands = net.plan()
    assert [c.task for c in commands if isinstance(c, Cancel)] == ["c1"]
    net.commit(*commands)
    token = net.state.tasks[TaskId("p")].epoch
    net.commit(submit("c2", parent=TaskId("p"), parent_epoch=token))
    assert [c for c in net.plan() if isinstance(c, Cancel)] == []


def test_children_of_a_completed_parent_go_on() -> None:
    net = Leading(("n1/a", 5))
    net.commit(submit("p"))
    net.assigned()
    net.commit(submit("c", parent=TaskId("p"), parent_epoch=1))
    net.assigned()
    net.commit(Complete(TaskId("p"), 1, b"1"))
    assert net.plan() == []


def test_a_parent_that_awaits_children_holds_no_slot() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("p"))
    net.assigned()
    net.commit(submit("c", parent=TaskId("p"), parent_epoch=1))
    assert net.assigned() == []
    net.reconcile.slot(TaskId("p"), 1, held=False)
    net.reconcile.slot(TaskId("p"), 1, held=False)
    assert net.assigned() == ["c"]
    net.reconcile.slot(TaskId("p"), 1, held=True)
    assert net.load() == 2, "it goes on at once, over the limit"
    net.commit(Complete(TaskId("c"), 2, b"1"), Complete(TaskId("p"), 1, b"1"))
    assert net.load() == 0


def test_load_is_given_back_when_a_parent_dies_while_it_holds_no_slot() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("p"))
    net.assigned()
    net.reconcile.slot(TaskId("p"), 1, held=False)
    net.commit(Evict(ProcessId("n1"), 1))
    assert (net.load(), net.reconcile.released) == (0, {})


def test_a_new_leader_knows_the_same() -> None:
    net = Leading(("n1/a", 3))
    net.commit(*(submit(f"t{i}", deadline_ms=99_000) for i in range(5)))
    net.assigned()
    net.commit(Start(TaskId("t0"), 1))
    net.commit(Cancel(TaskId("t1")))
    net.plan()
    net.reconcile.rebuild()
    net.check()
    assert net.load() == 3
    net.commit(Complete(TaskId("t0"), 1, b"1"))
    assert net.assigned() == ["t3"]
    assert net.state.tasks[TaskId("t3")].epoch == 4
    kinds = {type(command) for command in net.reconcile.due(net.now + 50_000_000)}
    assert kinds == {Expire, Canceled, Requeue}


def test_what_is_due_at_once_comes_in_bounded_portions() -> None:
    net = Leading()
    net.commit(*(submit(f"t{i}", deadline_ms=5_000) for i in range(10)))
    assert len(net.reconcile.due(5_000, room=4)) == 4
    assert net.reconcile.next_deadline() == 5_000
    assert len(net.reconcile.due(5_000)) == 6


def test_nothing_is_given_out_while_paused() -> None:
    net = Leading(("n1/a", 3))
    net.reconcile.paused = True
    net.commit(submit("t1"))
    assert net.plan() == [] and net.reconcile.ride(submit("t2").spec) is None
    net.reconcile.paused = False
    net.reconcile.wake()
    assert net.assigned() == ["t1"]


def test_an_attempt_is_measured_once_and_while_it_counts_as_load_and_a_rating_adds_only_accuracy() -> None:
    net = Leading(("n1/a", 4))
    net.commit(submit("t1"))
    net.commit(submit("t2"))
    net.assigned()
    net.commit(*(Start(task.spec.id, task.epoch) for task in net.state.tasks.values()))
    net.now += 100
    net.commit(Complete(TaskId("t1"), net.state.tasks[TaskId("t1")].epoch, b"1", 100))
    figures = net.scheduling.explain("echo", strategy=Strategy.BEST_FIT)["candidates"][0]["figures"]
    assert figures == {"latency_ms": 100.0, "throughput": 20.0, "success": 1.0, "accuracy": 0.5, "samples": 1}
    net.commit(Rate(TaskId("t1"), 1.0))
    figures = net.scheduling.explain("echo", strategy=Strategy.BEST_FIT)["candidates"][0]["figures"]
    assert figures == {"latency_ms": 100.0, "throughput": 20.0, "success": 1.0, "accuracy": 0.6, "samples": 1}


def test_timers_of_what_is_over_do_not_pile_up() -> None:
    net = Leading(("n1/a", 1))
    for i in range(5_000):
        net.commit(submit(f"t{i}"))
        net.assigned()
        net.commit(Complete(TaskId(f"t{i}"), i + 1, b"1"))
        del net.state.tasks[TaskId(f"t{i}")], net.state.finished[TaskId(f"t{i}")]
        net.state.counts[TaskState.COMPLETED] -= 1
    assert len(net.reconcile._timers) <= 3_000


def test_a_child_that_comes_after_its_parents_end_is_canceled() -> None:
    net = Leading(("n1/a", 5), ("n2/a", 5))
    net.commit(submit("p"), submit("q"))
    net.assigned()
    net.commit(Requeue(TaskId("p"), net.state.tasks[TaskId("p")].epoch, Ending.NOT_STARTED))
    net.commit(submit("early", parent=TaskId("p"), parent_epoch=1))
    assert [c.task for c in net.plan() if isinstance(c, Cancel)] == ["early"]
    net.commit(Fail(TaskId("q"), 2, TaskFailure("x", retryable=False)))
    net.commit(submit("late", parent=TaskId("q"), parent_epoch=2), submit("mine", parent=TaskId("elsewhere")))
    assert [c.task for c in net.plan() if isinstance(c, Cancel)] == ["late"]
    net.reconcile.rebuild()
    assert sorted(c.task for c in net.plan() if isinstance(c, Cancel)) == ["early", "late"]


def test_however_many_agents_refuse_each_is_asked_once_before_the_task_waits() -> None:
    net = Leading(*((f"n1/a{i}", 1) for i in range(30)), policy=Policy(refusal_ms=10_000))
    net.commit(submit("t1"))
    for _ in range(30):
        assert net.assigned() == ["t1"]
        net.commit(Requeue(TaskId("t1"), net.state.tasks[TaskId("t1")].epoch, Ending.REFUSED, "not mine"))
    assert net.assigned() == []
    net.commit(Cancel(TaskId("t1")))
    assert len(net.reconcile._refusals) == 0


def test_what_waited_and_is_over_does_not_pile_up_behind_what_waits() -> None:
    net = Leading()
    net.is_checked = False
    net.commit(submit("first", priority=9))
    for i in range(20_000):
        net.commit(submit(f"t{i}"), Cancel(TaskId(f"t{i}")))
        net.plan()
        if i % 100 == 0:
            net.state.finished.clear()
            net.state.tasks = {TaskId("first"): net.state.tasks[TaskId("first")]}
            net.state.counts[TaskState.CANCELED] = 0
    (waiting,) = net.reconcile._waiting.values()
    assert sum(len(demand.heap) for demand in waiting.demands.values()) < 4_000


def test_a_freed_slot_concerns_no_task_that_names_another_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Leading(("n1/a", 1), ("n1/b", 1))
    net.commit(submit("a1", requirements=Requirements(agent=AgentId("n1/a"))))
    net.commit(*(submit(f"b{i}", requirements=Requirements(agent=AgentId("n1/b"))) for i in range(3)))
    net.commit(submit("any", priority=0))
    assert net.assigned() == ["a1", "b0"]
    asked: list[object] = []
    choose = net.scheduling.choose

    def noted(*args: Any) -> AgentId | None:
        asked.append(args[1])
        return choose(*args)

    monkeypatch.setattr(net.scheduling, "choose", noted)
    net.commit(Complete(TaskId("a1"), 1, b"1"))
    assert net.assigned() == ["any"]
    assert asked == [None], "nobody asked for n1/b"
    net.commit(Complete(TaskId("b0"), 2, b"1"))
    assert net.assigned() == ["b1"]


def test_thousands_of_demands_are_looked_at_a_few_at_a_time_and_none_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Leading(("n1/a", 2_000))
    net.is_checked = False
    net.agent("n1/b", 1, "rare")
    net.commit(*(submit(f"t{i}", requirements=Requirements(tags=(f"tag{i}",))) for i in range(2_000)))
    looked = 0
    choose = net.scheduling.choose

    def counted(*args: Any) -> AgentId | None:
        nonlocal looked
        looked += 1
        return choose(*args)

    def found() -> list[str]:
        """What is assigned until there is nothing more to do, a few looks at a time."""
        tasks: list[str] = []
        while net.reconcile.is_behind:
            before = looked
            tasks += net.assigned()
            assert looked - before <= LOOKS + 2
        return tasks

    monkeypatch.setattr(net.scheduling, "choose", counted)
    assert (found(), looked) == ([], 2_000)
    net.agent("n1/c", 5, "tag7", "tag1999")
    assert found() == ["t7", "t1999"]


def test_a_crowd_of_dead_entries_is_dropped_a_few_at_a_time() -> None:
    heap: Heap[tuple[int]] = Heap(lambda item: item[0] >= 5_000)
    for number in range(5_001):
        heap.push((number,))
    assert heap.first() is None and len(heap) > 0
    looks = 1
    while heap.first() is None:
        looks += 1
    assert looks < 50 and heap.pop() == (5_000,)


def test_due_timers_are_looked_at_a_few_at_a_time() -> None:
    net = Leading()
    net.is_checked = False
    for i in range(5_000):
        net.commit(submit(f"t{i}", deadline_ms=50_000), Cancel(TaskId(f"t{i}")))
    net.commit(submit("last", deadline_ms=50_001))
    commands: list[Command] = []
    for _ in range(3):
        commands += net.reconcile.due(60_000)
    assert commands == [Expire(TaskId("last"))]
