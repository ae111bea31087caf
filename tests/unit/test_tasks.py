"""The replicated state: every rule of the transition table, and invariants under random commands."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.core.changes import Change
from comity.core.tasks import Tasks
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId, epoch
from comity.model.task import (
    INLINE_LIMIT,
    Archived,
    Assign,
    Barrier,
    Cancel,
    Canceled,
    Command,
    Complete,
    DropDead,
    Dropped,
    Ending,
    Entry,
    Evict,
    Expire,
    Fail,
    Fire,
    Lead,
    Logged,
    Moved,
    NodeLeft,
    NodeUp,
    PutSchedule,
    Rate,
    Replay,
    Requeue,
    Schedule,
    SnapshotTaken,
    Start,
    Stored,
    Submit,
    TaskFailure,
    TaskSpec,
    TaskState,
)

T1, T2 = TaskId("t1"), TaskId("t2")
N1, N2 = ProcessId("n1"), ProcessId("n2")
A1, A2 = AgentId("n1/a"), AgentId("n2/a")


class Story:
    """A state and the log it reads."""

    def __init__(self) -> None:
        self.state = Tasks(NetworkId("net"))
        self.index = 0

    def do(self, *commands: Command, at: int | None = None) -> list[Change]:
        self.index += 1
        time_ms = at if at is not None else self.index * 10
        changes = self.state.apply(Entry("net", 1, b"", time_ms, list(commands)), self.index)
        self.state.check()
        return changes

    def kinds(self, *commands: Command, at: int | None = None) -> list[str]:
        return [change.kind for change in self.do(*commands, at=at)]


def spec(task: TaskId = T1, **more: object) -> TaskSpec:
    return TaskSpec(task, "echo", b"{}", ProcessId("c1"), **more)  # type: ignore[arg-type]


def assign(task: TaskId = T1, token: int = 1, agent: AgentId = A1, node: ProcessId = N1) -> Assign:
    return Assign(task, token, agent, node, 1)


@pytest.fixture
def story() -> Story:
    story = Story()
    story.do(Lead(ProcessId("k1")), NodeUp(N1, 1), NodeUp(N2, 1))
    return story


def test_a_task_lives_from_submit_to_completion(story: Story) -> None:
    assert story.kinds(Submit(spec())) == ["task.submitted"]
    assert story.kinds(assign()) == ["task.assigned"]
    assert story.kinds(Start(T1, 1)) == ["task.started"]
    assert story.kinds(Complete(T1, 1, b"42")) == ["task.completed"]
    task = story.state.tasks[T1]
    assert (task.state, task.result, task.attempt) == (TaskState.COMPLETED, b"42", None)
    assert [a.ending for a in task.past] == [Ending.COMPLETED]


def test_a_completion_without_a_logged_start_knows_how_long_it_ran(story: Story) -> None:
    story.do(Submit(spec()))
    story.do(assign(), at=1000)
    story.do(Complete(T1, 1, b"1", ran_ms=30), at=1040)
    assert story.state.tasks[T1].past[0].started_at == 1010


def test_so_does_a_failure(story: Story) -> None:
    story.do(Submit(spec()))
    story.do(assign(), at=1000)
    story.do(Fail(T1, 1, TaskFailure("boom"), ran_ms=30), at=1040)
    assert story.state.tasks[T1].past[0].started_at == 1010


@pytest.mark.parametrize("late", [Complete(T1, 1, b"x"), Fail(T1, 1, TaskFailure("e")), Start(T1, 1)])
def test_a_report_with_an_old_epoch_changes_nothing(story: Story, late: Command) -> None:
    story.do(Submit(spec()), assign())
    story.do(Requeue(T1, 1, Ending.NOT_STARTED), assign(token=2, agent=A2, node=N2))
    before = msgspec.msgpack.encode(story.state.tasks[T1])
    assert story.kinds(late) == ["report.rejected"]
    assert msgspec.msgpack.encode(story.state.tasks[T1]) == before
    assert story.state.totals.rejected_reports == 1


def test_a_terminal_state_never_changes(story: Story) -> None:
    story.do(Submit(spec()), assign(), Complete(T1, 1, b"1"))
    before = msgspec.msgpack.encode(story.state.tasks[T1])
    story.do(Complete(T1, 1, b"2"), Fail(T1, 1, TaskFailure("e")), Cancel(T1), Canceled(T1), Expire(T1), assign(token=9))
    assert msgspec.msgpack.encode(story.state.tasks[T1]) == before


def test_a_failure_is_retried_until_the_retries_are_used_up(story: Story) -> None:
    story.do(Submit(spec(retries=1)), assign())
    assert story.kinds(Fail(T1, 1, TaskFailure("boom", "it broke"), not_before=500)) == ["task.retrying"]
    assert story.state.tasks[T1].not_before == 500
    story.do(assign(token=2))
    assert story.kinds(Fail(T1, 2, TaskFailure("boom", "again"))) == ["task.dead", "task.failed"]
    task = story.state.tasks[T1]
    assert (task.state, task.retries_used, task.failure) == (TaskState.FAILED, 1, TaskFailure("boom", "again"))
    assert len(task.past) == 2


def test_an_error_that_forbids_a_retry_fails_at_once(story: Story) -> None:
    story.do(Submit(spec()), assign())
    assert story.kinds(Fail(T1, 1, TaskFailure("bad", retryable=False))) == ["task.dead", "task.failed"]


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.NOT_STARTED])
def test_a_hand_back_uses_no_retry(story: Story, ending: Ending) -> None:
    story.do(Submit(spec(retries=0)), assign())
    assert story.kinds(Requeue(T1, 1, ending, "not me")) == ["task.requeued"]
    assert (story.state.tasks[T1].state, story.state.tasks[T1].retries_used) == (TaskState.WAITING, 0)


def test_an_assignment_to_a_node_without_that_lease_is_void(story: Story) -> None:
    story.do(Submit(spec()))
    assert story.kinds(Evict(N1, 1, "gone"), assign()) == ["node.evicted", "assignment.void"]
    assert story.state.tasks[T1].state is TaskState.SUBMITTED
    assert story.state.next_epoch() == 2


def test_an_eviction_moves_the_nodes_attempts_at_once(story: Story) -> None:
    story.do(Submit(spec(T1)), Submit(spec(T2)), assign(T1, 1), assign(T2, 2), Start(T2, 2))
    assert story.kinds(Evict(N1, 1, "lease over")) == ["node.evicted", "task.requeued", "task.retrying"]
    assert story.state.tasks[T1].retries_used == 0, "it never started, so it cannot have killed the node"
    assert story.state.tasks[T2].retries_used == 1
    assert story.kinds(Complete(T2, 2, b"late")) == ["report.rejected"]


def test_an_eviction_of_another_incarnation_is_ignored(story: Story) -> None:
    assert story.kinds(Evict(N1, 7)) == []
    assert story.kinds(NodeLeft(N1, 7)) == []
    assert N1 in story.state.nodes


def test_a_node_that_comes_back_gives_up_what_it_had(story: Story) -> None:
    story.do(Submit(spec()), assign())
    assert story.kinds(NodeUp(N1, 2)) == ["task.requeued", "node.joined"]
    assert story.kinds(NodeUp(N1, 1)) == [], "an older incarnation does not come back"


def test_an_incarnation_whose_lease_ended_does_not_come_back(story: Story) -> None:
    story.do(Evict(N1, 1, "lease over"))
    assert story.kinds(NodeUp(N1, 1)) == [], "it has not heard of its eviction, and must"
    assert story.kinds(NodeUp(N1, 2)) == ["node.joined"]
    story.do(NodeLeft(N1, 2))
    assert story.kinds(NodeUp(N1, 2)) == []


def test_cancel_ends_a_waiting_task_and_asks_a_running_one(story: Story) -> None:
    story.do(Submit(spec(T1)), Submit(spec(T2)), assign(T2, 1))
    assert story.kinds(Cancel(T1, "no need")) == ["task.canceled"]
    assert story.kinds(Cancel(T2)) == ["task.canceling"]
    assert story.state.tasks[T2].state is TaskState.ASSIGNED
    assert story.kinds(Cancel(T2)) == [], "once is enough"
    assert story.kinds(Fail(T2, 1, TaskFailure("stopped"))) == ["task.canceled"]


def test_a_canceled_task_may_still_complete_in_its_grace_time(story: Story) -> None:
    story.do(Submit(spec()), assign(), Cancel(T1))
    assert story.kinds(Complete(T1, 1, b"1")) == ["task.completed"]


def test_after_its_grace_time_a_canceled_task_is_over(story: Story) -> None:
    story.do(Submit(spec()), assign(), Cancel(T1))
    assert story.kinds(Canceled(T1, "too slow")) == ["task.canceled"]
    assert story.kinds(Complete(T1, 1, b"1")) == ["report.rejected"]


def test_a_deadline_ends_it_wherever_it_is(story: Story) -> None:
    story.do(Submit(spec()), assign(), Start(T1, 1))
    assert story.kinds(Expire(T1)) == ["task.dead", "task.failed"]
    assert story.state.tasks[T1].failure == TaskFailure("deadline-exceeded", "its deadline passed", False)


def test_the_same_id_or_key_is_the_same_task(story: Story) -> None:
    story.do(Submit(spec(T1, key="order-7")))
    assert story.kinds(Submit(spec(T1)), Submit(spec(T2, key="order-7"))) == []
    assert story.state.keys == {"order-7": T1}


def test_a_key_is_known_as_long_as_its_task() -> None:
    story = Story()
    again = Submit(spec(T2, key="k"))
    story.do(Submit(spec(T1, key="k")), Cancel(T1))
    assert story.kinds(again) == []
    assert story.kinds(Archived("chunk", (T1,), 9), again) == ["archive.grown"]
    assert story.state.keys == {"k": T1}
    assert story.kinds(Dropped(("chunk", "other")), again)[-1] == "task.submitted"
    assert story.state.keys == {"k": T2}


def test_a_large_payload_stays_in_the_log(story: Story) -> None:
    big = b"x" * (INLINE_LIMIT + 1)
    story.do(Barrier(), Submit(msgspec.structs.replace(spec(), input=big)))
    assert story.state.tasks[T1].spec.input == Logged(story.index, 1, len(big))
    story.do(assign())
    story.do(Complete(T1, 1, big))
    assert story.state.tasks[T1].result == Logged(story.index, 0, len(big))
    story.do(Moved(T1, Stored("k", 9, b"d"), is_result=True), Moved(T1, Stored("i", 9, b"d")))
    assert story.state.tasks[T1].result == Stored("k", 9, b"d")
    assert story.state.tasks[T1].spec.input == Stored("i", 9, b"d")


def test_children_are_known_while_they_are_open(story: Story) -> None:
    story.do(Submit(spec(T1)), Submit(spec(T2, parent=T1, parent_epoch=1)))
    assert list(story.state.children[T1]) == [T2]
    story.do(Cancel(T2))
    assert story.state.children == {}


def test_archived_tasks_leave_memory_and_are_found_by_their_mark(story: Story) -> None:
    story.do(Submit(spec(T1)), Submit(spec(T2)), Cancel(T1))
    assert story.kinds(Archived("chunk", (T1, T2), 50)) == ["archive.grown"]
    assert list(story.state.tasks) == [T2], "an open task stays whatever the command says"
    assert (story.state.archived, story.state.archive[0].count) == (1, 1)
    assert story.kinds(Dropped(("chunk",))) == ["archive.dropped"]
    assert (story.state.archived, story.state.archive) == (0, [])


def test_the_newest_two_snapshots_are_kept(story: Story) -> None:
    for n in range(3):
        changes = story.do(SnapshotTaken(n, f"s{n}", b""))
    assert [snapshot.key for snapshot in story.state.snapshots] == ["s1", "s2"]
    assert [change.reason for change in changes] == ["s0", "s2"]


def test_a_rating_is_kept(story: Story) -> None:
    story.do(Submit(spec()), assign(), Complete(T1, 1, b"1"))
    assert story.kinds(Rate(T1, 0.5)) == ["task.rated"]
    assert story.state.tasks[T1].score == 0.5


def test_a_higher_generation_is_above_every_epoch_ever_given(story: Story) -> None:
    story.do(Submit(spec()), assign(token=12345))
    story.state.generation = 1
    assert story.state.next_epoch() == epoch(1, 1)


_ids = st.sampled_from([TaskId(f"t{i}") for i in range(4)])
_nodes = st.sampled_from([N1, N2])
_small = st.integers(1, 6)
_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(lambda t, r, p: Submit(spec(t, retries=r, parent=p)), _ids, st.integers(0, 2), st.none() | _ids),
    st.builds(lambda t, e, n, i: Assign(t, e, AgentId(f"{n}/a"), n, i), _ids, _small, _nodes, st.integers(1, 2)),
    st.builds(Start, _ids, _small),
    st.builds(lambda t, e: Complete(t, e, b"1"), _ids, _small),
    st.builds(lambda t, e, r: Fail(t, e, TaskFailure("x", "", r)), _ids, _small, st.booleans()),
    st.builds(lambda t, e: Requeue(t, e, Ending.REFUSED), _ids, _small),
    st.builds(Cancel, _ids),
    st.builds(Canceled, _ids),
    st.builds(Expire, _ids),
    st.builds(NodeUp, _nodes, st.integers(1, 2)),
    st.builds(Evict, _nodes, st.integers(1, 2)),
    st.builds(NodeLeft, _nodes, st.integers(1, 2)),
    st.builds(lambda ts: Archived("c", tuple(ts), 1), st.lists(_ids, unique=True, max_size=3)),
    st.builds(lambda ts: Archived("c", tuple(ts), 1, "d"), st.lists(_ids, unique=True, max_size=3)),
    st.builds(Evict, _nodes, st.integers(1, 2), st.just(""), st.integers(0, 2)),
    st.builds(lambda ts: DropDead(tuple(ts)), st.lists(_ids, max_size=3)),
    st.builds(lambda old: Replay(spec(TaskId(f"again-{old}"), replays=old)), _ids),
    st.just(PutSchedule(Schedule("s", "* * * * *", "UTC", spec(TaskId(""))))),
    st.builds(lambda due: Fire("s", due, spec(TaskId(f"due-{due}"), key=f"s/{due}")), st.integers(1, 200)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_commands, min_size=1, max_size=4), max_size=20))
def test_invariants_hold_whatever_the_log_says(entries: list[list[Command]]) -> None:
    one, other = Story(), Story()
    ended: dict[TaskId, bytes] = {}
    for commands in entries:
        one.do(*commands)
        other.do(*commands)
        for task_id, task in one.state.tasks.items():
            if task.is_terminal:
                record = msgspec.msgpack.encode(task)
                assert ended.setdefault(task_id, record) == record or task_id not in ended
        ended = {t: r for t, r in ended.items() if t in one.state.tasks}
    assert msgspec.msgpack.encode(list(one.state.tasks.values())) == msgspec.msgpack.encode(list(other.state.tasks.values()))
    assert one.state.counts == other.state.counts


def test_time_never_runs_backwards(story: Story) -> None:
    story.do(Submit(spec()), at=5_000)
    story.do(Submit(spec(T2)), at=4_000)
    assert story.state.tasks[T2].created_at == story.state.time_ms == 5_000
