"""The retry budget, and the watch over attempts that show no progress."""

from __future__ import annotations

from test_reconcile import Leading, submit

from comity.core.breaker import BreakerPolicy
from comity.core.budget import DRIP_MS, RESERVE, Budget
from comity.core.policy import Policy
from comity.core.watch import GRACE_MS
from comity.model.capability import Retry
from comity.model.ids import ProcessId, TaskId
from comity.model.task import Assign, Cancel, Complete, Ending, Fail, Start, TaskFailure, TaskState

N1 = ProcessId("n1")
NONE_HELD = Policy(retry_budget=1000.0)


def spend(budget: Budget, now: int = 0) -> None:
    for number in range(int(RESERVE)):
        task = TaskId(f"before-{number}")
        assert asks(budget, task, now)


def asks(budget: Budget, task: str, now: int = 0, capability: str = "echo") -> bool:
    """Whether the retry may go at once."""
    budget.owing[TaskId(task)] = None
    budget.queue(capability, TaskId(task), now)
    return budget.released(capability, now) == [task]


def test_without_a_token_retries_wait_in_their_order() -> None:
    budget = Budget(0.1)
    spend(budget)
    for task in ("a", "b", "c"):
        assert not asks(budget, task)
    assert budget.held == 3
    assert budget.head("echo") == ("a", DRIP_MS)
    assert budget.head("echo") is None, "it was said already"
    assert budget.released("echo", DRIP_MS - 1) == []
    assert budget.released("echo", DRIP_MS) == ["a"]
    assert budget.ended("echo", first=False, completed=True, now_ms=DRIP_MS)
    assert budget.released("echo", DRIP_MS) == ["b"]
    assert budget.forget("echo", TaskId("c"))
    assert budget.held == 0
    assert budget.head("echo") is None


def test_each_capability_has_its_own() -> None:
    budget = Budget(0.1)
    spend(budget)
    assert asks(budget, "t", capability="review")
    assert not asks(budget, "t2")


def test_the_clock_pays_in_no_more_than_the_reserve() -> None:
    budget = Budget(0.1)
    spend(budget)
    assert sum(asks(budget, f"t{n}", 10**9) for n in range(100)) == RESERVE


NEVER_OPEN = BreakerPolicy(failures=1 << 30, share=2.0)
"""An agent that fails everything would soon be given nothing."""


def outage(policy: Policy, tasks: int, seconds: int) -> tuple[int, int]:
    """First attempts and all attempts while every one fails: so many tasks, spread over so long."""
    net = Leading(("n1/a", 1000), policy=policy)
    net.is_checked = False
    net.reconcile.rotation.breakers.policy = NEVER_OPEN
    attempts = 0
    begin = net.now
    for number in range(tasks):
        net.now = begin + number * seconds * 1000 // tasks
        net.commit(submit(f"t{number:05}", retries=3))
        commands = net.reconcile.due(net.now) + net.plan()
        net.commit(*commands)
        for command in commands:
            if isinstance(command, Assign):
                attempts += 1
                task = net.state.tasks[command.task]
                pause = net.reconcile.pause_ms(task)
                net.commit(Start(command.task, command.epoch))
                net.commit(Fail(command.task, command.epoch, TaskFailure("ConnectionError"), net.now + pause))
    net.check()
    return tasks, attempts


def test_in_a_total_outage_retries_add_at_most_a_fifth_to_the_load() -> None:
    first, attempts = outage(Policy(), 1000, 20)
    assert first < attempts <= 1.2 * first
    first, attempts = outage(NONE_HELD, 1000, 20)
    assert attempts > 2 * first, "without the budget they would"


def test_after_the_outage_every_success_lets_the_next_retry_go() -> None:
    net = Leading(("n1/a", 100))
    for number in range(60):
        net.commit(submit(f"t{number:02}", retries=1))
    while commands := net.plan():
        net.commit(*commands)
        for command in commands:
            assert isinstance(command, Assign)
            net.commit(Fail(command.task, command.epoch, TaskFailure("ConnectionError"), net.now))
        if net.reconcile.budget.held:
            break
    held = net.reconcile.budget.held
    assert held > 30
    rounds = 0
    while net.reconcile.budget.held or net.state.waiting:
        net.now += DRIP_MS
        net.commit(*net.reconcile.due(net.now))
        commands = net.plan()
        net.commit(*commands)
        net.commit(*(Complete(c.task, c.epoch, b"1") for c in commands if isinstance(c, Assign)))
        rounds += 1
        assert rounds < 40
    assert rounds < held / 2


def test_a_canceled_task_is_not_waited_for() -> None:
    net = Leading(("n1/a", 100))
    spend(net.reconcile.budget, net.now)
    for name in ("a", "b"):
        net.commit(submit(name, retries=5))
        net.commit(*net.plan())
        net.commit(Fail(TaskId(name), net.state.tasks[TaskId(name)].epoch, TaskFailure("e"), net.now))
    assert net.reconcile.budget.held == 2
    net.commit(Cancel(TaskId("a")))
    net.now += DRIP_MS
    assert net.reconcile.due(net.now) == []
    assert net.assigned() == ["b"]


def test_a_new_leader_holds_back_no_more_than_the_old_one() -> None:
    net = Leading(("n1/a", 100))
    spend(net.reconcile.budget, net.now)
    net.commit(submit("a", retries=5))
    net.commit(*net.plan())
    net.commit(Fail(TaskId("a"), 1, TaskFailure("e"), net.now))
    assert net.assigned() == []
    net.reconcile.rebuild()
    net.check()
    assert net.assigned() == ["a"]


def test_a_tasks_own_policy_says_how_long_it_backs_off() -> None:
    net = Leading()
    net.commit(submit("t", retry=Retry(None, 1.0, 3.0, 20.0)))
    policy = net.reconcile.policy
    said = net.state.tasks[TaskId("t")].spec.retry
    assert [policy.pause_ms(said, n, 1.0) for n in range(4)] == [1000, 3000, 9000, 20_000]
    assert policy.pause_ms(said, 10**6, 0.0) == 10_000
    assert policy.pause_ms(Retry(None, 1.0), 1, 1.0) == 2000


# The watch


def running(timeout_s: float) -> Leading:
    net = Leading(("n1/a", 4))
    net.commit(submit("t", progress_timeout_s=timeout_s))
    net.commit(*net.plan())
    net.commit(Start(TaskId("t"), 1))
    return net


def test_a_silent_attempt_is_moved_with_the_next_beacon() -> None:
    net = running(2.0)
    net.now += 1999
    assert (net.reconcile.due(net.now), net.reconcile.stuck(N1, net.now)) == ([], [])
    net.now += 1
    assert net.reconcile.due(net.now) == []
    (fail,) = net.reconcile.stuck(N1, net.now + 300)
    assert isinstance(fail, Fail) and (fail.ending, fail.not_before) == (Ending.STUCK, 0)
    net.commit(fail)
    assert net.state.totals.stuck == 1
    assert net.state.tasks[TaskId("t")].retries_used == 1
    assert net.assigned() == ["t"], "at once, and whatever the retry budget"
    assert net.reconcile.stuck(N1, net.now + 300) == []


def test_progress_starts_its_time_afresh() -> None:
    net = running(2.0)
    task = net.state.tasks[TaskId("t")]
    net.reconcile.watch.progressed(task, net.now + 1500)
    assert net.reconcile.due(net.now + 2000) == []
    assert net.reconcile.stuck(N1, net.now + 2000) == []
    assert net.reconcile.next_deadline() == net.now + 3500
    assert net.reconcile.due(net.now + 3500) == []
    net.reconcile.watch.progressed(task, net.now + 3499)
    assert net.reconcile.stuck(N1, net.now + 3600) == [], "it came with the beacon"
    assert net.reconcile.next_deadline() == net.now + 5499


def test_after_the_leader_was_away_it_waits_to_be_told() -> None:
    net = running(2.0)
    net.now += 10_000
    assert (net.reconcile.due(net.now), net.reconcile.stuck(N1, net.now)) == ([], [])
    assert net.reconcile.due(net.now + GRACE_MS) == []
    assert len(net.reconcile.stuck(N1, net.now + GRACE_MS)) == 1


def test_another_nodes_beacon_says_nothing_and_an_ended_attempt_is_forgotten() -> None:
    net = running(2.0)
    net.now += 2000
    net.reconcile.due(net.now)
    assert net.reconcile.stuck(ProcessId("n2"), net.now) == []
    net.commit(Complete(TaskId("t"), 1, b"1"))
    assert net.reconcile.stuck(N1, net.now) == []
    assert net.state.tasks[TaskId("t")].state is TaskState.COMPLETED


# Delays


def test_a_delayed_task_is_given_out_when_it_may_start() -> None:
    net = Leading(("n1/a", 4))
    late = submit("late", not_before_ms=net.now + 5000)
    assert net.reconcile.ride(late.spec) is None
    net.commit(late)
    assert net.assigned() == []
    net.now += 4999
    assert (net.reconcile.due(net.now), net.assigned()) == ([], [])
    net.now += 1
    assert (net.reconcile.due(net.now), net.assigned()) == ([], ["late"])


def test_a_new_leader_keeps_a_delay() -> None:
    net = Leading(("n1/a", 4))
    net.commit(submit("late", not_before_ms=net.now + 5000))
    net.reconcile.rebuild()
    net.check()
    assert net.assigned() == []
    net.now += 5000
    assert (net.reconcile.due(net.now), net.assigned()) == ([], ["late"])
