"""Dead letters, schedules, poison and delays in the replicated state."""

from __future__ import annotations

import pytest
from test_tasks import N1, N2, T1, T2, Story, assign, spec

from comity.controller.snapshot import Writing, load
from comity.core.ledger import Ledger
from comity.model.capability import Retry
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Archived,
    Assign,
    DropDead,
    DropSchedule,
    Evict,
    Fail,
    Fire,
    Lead,
    NodeLeft,
    NodeUp,
    PutSchedule,
    Replay,
    Schedule,
    Start,
    Submit,
    TaskFailure,
    TaskState,
)

BOOM = TaskFailure("ValueError", "no good", retryable=False)


@pytest.fixture
def story() -> Story:
    story = Story()
    story.do(Lead(ProcessId("k1")), NodeUp(N1, 1), NodeUp(N2, 1))
    return story


def fail(story: Story, task: TaskId = T1, token: int = 1) -> None:
    story.do(Submit(spec(task)), assign(task, token))
    story.do(Fail(task, token, BOOM))


# Retries


def test_an_error_named_by_the_task_is_final(story: Story) -> None:
    story.do(Submit(spec(retry=Retry(no_retry=("KeyError", "node-lost")))), assign())
    story.do(Fail(T1, 1, TaskFailure("ValueError")), assign(token=2))
    assert story.state.tasks[T1].retries_used == 1
    story.do(Fail(T1, 2, TaskFailure("KeyError")))
    assert story.state.tasks[T1].state is TaskState.FAILED


# Delays


def test_a_task_may_be_delayed(story: Story) -> None:
    assert story.kinds(Submit(spec(not_before_ms=5000)), at=1000) == ["task.submitted", "task.delayed"]
    assert story.state.tasks[T1].not_before == 5000
    assert story.kinds(Submit(spec(T2, not_before_ms=900)), at=1000) == ["task.submitted"]


# Poison


def lose(story: Story, token: int, node: str, poison_nodes: int = 3, *, starts: bool = True) -> list[str]:
    """The task runs on ``node``, or was given to it, which is lost."""
    name = ProcessId(node)
    story.do(NodeUp(name, token), Assign(T1, token, AgentId(f"{node}/a"), name, token))
    if starts:
        story.do(Start(T1, token))
    return story.kinds(Evict(name, token, "lease over", poison_nodes))


def test_a_task_that_takes_nodes_down_is_quarantined() -> None:
    story = Story()
    story.do(Submit(spec(retries=100)))
    assert lose(story, 1, "n1") == ["node.evicted", "task.retrying"]
    assert lose(story, 2, "n2") == ["node.evicted", "task.retrying"]
    assert lose(story, 3, "n1") == ["node.evicted", "task.retrying"], "the same node again"
    assert lose(story, 4, "n3") == ["node.evicted", "task.poisoned", "task.dead", "task.failed"]
    task = story.state.tasks[T1]
    assert task.failure is not None
    assert (task.failure.code, task.felled) == ("poison", ("n1", "n2", "n3"))
    assert (story.state.dead.letters[T1].code, story.state.totals.poisoned) == ("poison", 1)


def test_so_is_one_that_kills_its_node_before_its_start_is_known() -> None:
    story = Story()
    story.do(Submit(spec(retries=0)))
    assert lose(story, 1, "n1", starts=False) == ["node.evicted", "task.requeued"]
    assert lose(story, 2, "n2", starts=False) == ["node.evicted", "task.requeued"]
    assert story.state.tasks[T1].retries_used == 0
    assert lose(story, 3, "n3", starts=False) == ["node.evicted", "task.poisoned", "task.dead", "task.failed"]


def test_one_that_kills_the_same_node_again_and_again_uses_its_retries() -> None:
    story = Story()
    story.do(Submit(spec(retries=1)))
    assert lose(story, 1, "n1", starts=False) == ["node.evicted", "task.requeued"]
    assert lose(story, 2, "n1", starts=False) == ["node.evicted", "task.retrying"]
    assert lose(story, 3, "n1", starts=False) == ["node.evicted", "task.dead", "task.failed"]


def test_a_node_that_leaves_was_not_taken_down(story: Story) -> None:
    story.do(Submit(spec(retries=0)))
    assert lose(story, 2, "n3", starts=False) == ["node.evicted", "task.requeued"]
    story.do(NodeUp(ProcessId("n3"), 3), Assign(T1, 3, AgentId("n3/a"), ProcessId("n3"), 3))
    assert story.kinds(NodeLeft(ProcessId("n3"), 3)) == ["node.left", "task.requeued"]
    assert story.state.tasks[T1].felled == ("n3",)


def test_any_number_of_nodes_if_so_set() -> None:
    story = Story()
    story.do(Submit(spec(retries=100)))
    for token in range(1, 30):
        assert lose(story, token, f"n{token}", poison_nodes=0) == ["node.evicted", "task.retrying"]


def test_a_node_that_comes_back_before_it_was_missed_has_lost_what_it_ran(story: Story) -> None:
    story.do(Submit(spec(retries=100)), assign(), Start(T1, 1))
    assert story.kinds(NodeUp(N1, 2, 1)) == ["task.poisoned", "task.dead", "task.failed", "node.joined"]


# Dead letters


def test_a_failed_task_is_a_dead_letter_until_it_is_dropped(story: Story) -> None:
    fail(story)
    letter = story.state.dead.letters[T1]
    assert (letter.capability, letter.code, letter.message, letter.attempts) == ("echo", "ValueError", "no good", 1)
    assert story.kinds(DropDead((T1, T2))) == ["dead.dropped"]
    assert story.state.dead.letters == {}
    assert story.state.tasks[T1].state is TaskState.FAILED


def test_its_body_outlives_the_archive_and_goes_with_the_last_letter(story: Story) -> None:
    fail(story, T1, 1)
    fail(story, T2, 2)
    story.do(Archived("archive/1", (T1, T2), 100, "dead/1"))
    assert story.state.dead.objects == {"dead/1": 2}
    assert story.kinds(DropDead((T1,))) == ["dead.dropped"]
    assert story.kinds(DropDead((T2,))) == ["dead.emptied", "dead.dropped"]
    assert story.state.dead.objects == {}


def test_a_letter_whose_body_is_not_kept_is_none(story: Story) -> None:
    fail(story)
    story.do(Archived("archive/1", (T1,), 100))
    assert story.state.dead.letters == {}


def test_a_replay_takes_the_letters_place_once(story: Story) -> None:
    fail(story)
    replay = Replay(spec(T2, replays=T1))
    assert story.kinds(replay) == ["dead.replayed", "task.submitted"]
    assert (story.state.dead.letters, story.state.tasks[T2].spec.replays) == ({}, T1)
    assert story.kinds(Replay(spec(TaskId("t3"), replays=T1))) == []
    assert story.state.totals.replayed == 1


# Schedules


def schedule(cron: str = "* * * * *") -> PutSchedule:
    return PutSchedule(Schedule("nightly", cron, "UTC", spec(TaskId(""))))


def fire(due: int, task: TaskId = T1) -> Fire:
    return Fire("nightly", due, spec(task, key=f"nightly/{due}"))


def test_a_schedule_fires_once_for_each_time(story: Story) -> None:
    assert story.kinds(schedule(), at=100) == ["schedule.set"]
    assert story.kinds(fire(90)) == [], "it was made after that"
    assert story.kinds(fire(200)) == ["task.submitted", "schedule.fired"]
    assert story.kinds(fire(200, T2)) == []
    assert story.kinds(fire(150, T2)) == []
    assert story.kinds(fire(300, T2)) == ["task.submitted", "schedule.fired"]
    assert (story.state.schedules["nightly"].fired, story.state.schedules["nightly"].last_ms) == (2, 300)


def test_a_changed_schedule_goes_on_counting_and_a_removed_one_fires_no_more(story: Story) -> None:
    story.do(schedule(), at=100)
    story.do(fire(200), at=200)
    story.do(schedule("@daily"), at=250)
    assert (story.state.schedules["nightly"].fired, story.state.schedules["nightly"].last_ms) == (1, 250)
    assert story.kinds(DropSchedule("nightly")) == ["schedule.removed"]
    assert story.kinds(DropSchedule("nightly")) == []
    assert story.kinds(fire(300, T2)) == []


def test_a_firing_whose_key_is_known_makes_no_second_task(story: Story) -> None:
    story.do(schedule(), at=100)
    story.do(Submit(spec(T2, key="nightly/200")))
    assert story.kinds(fire(200)) == ["schedule.fired"]
    assert T1 not in story.state.tasks


async def test_a_snapshot_holds_them(story: Story) -> None:
    fail(story, T1, 1)
    fail(story, T2, 2)
    story.do(schedule(), at=100)
    story.do(Archived("archive/1", (T1,), 100, "dead/1"))
    ledger = Ledger(NetworkId("net"))
    state, _ = await load(Writing(story.state, ledger).frames(), NetworkId("net"))
    state.check()
    assert (state.dead, state.schedules) == (story.state.dead, story.state.schedules)
    assert list(state.dead.letters) == list(story.state.dead.letters)
