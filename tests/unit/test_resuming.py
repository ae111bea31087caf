"""Records in the replicated state: steps, checkpoints, questions; and what becomes of a task that asks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reconcile import Leading
from test_snapshot import bytes_of, contents, reload
from test_tasks import A2, N1, N2, T1, T2, Story, assign, spec

from comity.controller.resuming import RUN_BYTES, known
from comity.controller.snapshot import Writing
from comity.core.ledger import Ledger
from comity.model import records
from comity.model.ids import ProcessId, TaskId
from comity.model.records import AskInput, EndWait, GiveAnswer, MoveRecord, Place, RecordStep, SaveCheckpoint
from comity.model.task import (
    INLINE_LIMIT,
    Assign,
    Cancel,
    Command,
    Complete,
    Ending,
    Evict,
    Expire,
    Lead,
    Logged,
    NodeUp,
    Requeue,
    Start,
    Stored,
    Submit,
    TaskSpec,
    TaskState,
)

BIG = b'"' + b"x" * INLINE_LIMIT + b'"'


@pytest.fixture
def story() -> Story:
    story = Story()
    story.do(Lead(ProcessId("k1")), NodeUp(N1, 1), NodeUp(N2, 1), Submit(spec()), assign())
    return story


def of(story: Story, task: TaskId = T1) -> records.Records:
    found = story.state.tasks[task].records
    assert found is not None
    return found


def test_a_step_is_recorded_once(story: Story) -> None:
    assert story.kinds(RecordStep(T1, 1, "a", b"1"), RecordStep(T1, 1, "a", b"2")) == ["task.step"]
    step = of(story).steps["a"]
    assert (step.result, step.size, step.at_ms, step.epoch) == (b"1", 1, 20, 1)


def test_an_attempt_that_is_over_records_nothing(story: Story) -> None:
    story.do(RecordStep(T1, 1, "a", b"1"), Requeue(T1, 1, Ending.NOT_STARTED), assign(token=2, agent=A2, node=N2))
    late: list[Command] = [RecordStep(T1, 1, "b", b"1"), SaveCheckpoint(T1, 1, 9, b"1"), AskInput(T1, 1, "q", b"1")]
    assert story.kinds(*late) == ["report.rejected"] * 3
    assert story.kinds(RecordStep(T1, 2, "a", b"2"), RecordStep(T1, 2, "b", b"2")) == ["task.step"]
    assert [(name, step.result) for name, step in of(story).steps.items()] == [("a", b"1"), ("b", b"2")]


def test_the_newest_checkpoint_counts_whatever_order_they_come_in(story: Story) -> None:
    story.do(SaveCheckpoint(T1, 1, 2, b"two"), SaveCheckpoint(T1, 1, 1, b"one"))
    assert of(story).checkpoint == records.Checkpoint(b"two", 3, 20, 1, 2)
    story.do(Requeue(T1, 1, Ending.NOT_STARTED), assign(token=2), SaveCheckpoint(T1, 2, 1, b"next"))
    last = of(story).checkpoint
    assert last is not None and (last.state, of(story).size) == (b"next", 4)


def test_a_question_ends_the_attempt_and_its_answer_makes_the_task_waiting(story: Story) -> None:
    story.do(Start(T1, 1))
    assert story.kinds(AskInput(T1, 1, "ok?", b'"?"', ran_ms=5)) == ["task.input_required"]
    task = story.state.tasks[T1]
    assert (task.state, task.attempt, story.state.nodes[N1].attempts) == (TaskState.INPUT_REQUIRED, None, {})
    assert [attempt.ending for attempt in task.past] == [Ending.INPUT_REQUIRED]
    assert story.kinds(GiveAnswer(T1, "other", b"1", 5)) == []
    assert story.kinds(GiveAnswer(T1, "ok?", b"true", 6), GiveAnswer(T1, "ok?", b"false", 7)) == ["task.answered"]
    assert (task.state, task.retries_used, of(story).questions["ok?"].answer) == (TaskState.WAITING, 0, b"true")
    assert of(story).questions["ok?"].by == 6
    story.do(assign(token=2))
    assert [(k.kind, k.name, k.payload) for k in known(task)] == [("answer", "ok?", b"true")]
    story.do(AskInput(T1, 2, "and?", b"null"))
    assert story.kinds(GiveAnswer(T1, "", b"1", 8)) == ["task.answered"]


def test_nobody_in_time_is_an_answer_too(story: Story) -> None:
    story.do(AskInput(T1, 1, "ok?", b"null", until_ms=500))
    assert story.kinds(EndWait(T1, 9)) == []
    assert story.kinds(EndWait(T1, 1), GiveAnswer(T1, "ok?", b"1", 7)) == ["task.unanswered"]
    assert [(k.kind, k.name) for k in known(story.state.tasks[T1])] == [("unanswered", "ok?")]


def test_the_same_question_is_not_asked_again(story: Story) -> None:
    story.do(AskInput(T1, 1, "ok?", b"null"), GiveAnswer(T1, "", b"1", 1), assign(token=2))
    assert story.kinds(AskInput(T1, 2, "ok?", b"null")) == ["task.dead", "task.failed"]


@pytest.mark.parametrize(("command", "state"), [(Cancel(T1), "canceled"), (Expire(T1), "failed")])
def test_a_task_that_asks_can_be_canceled_and_its_deadline_counts(story: Story, command: Command, state: str) -> None:
    story.do(AskInput(T1, 1, "ok?", b"null"), command)
    assert story.state.tasks[T1].state == state
    assert story.kinds(GiveAnswer(T1, "ok?", b"1", 1), EndWait(T1, 1)) == []


def test_a_task_that_was_canceled_does_not_ask(story: Story) -> None:
    story.do(Cancel(T1), AskInput(T1, 1, "ok?", b"null"))
    assert story.state.tasks[T1].state is TaskState.CANCELED


def test_large_records_stay_in_the_log_until_they_are_moved(story: Story) -> None:
    story.do(RecordStep(T1, 1, "a", BIG), SaveCheckpoint(T1, 1, 1, BIG), AskInput(T1, 1, "q", BIG), GiveAnswer(T1, "q", BIG, 1))
    places = dict(of(story).payloads())
    assert [(place.kind, held) for place, held in places.items()] == [
        (kind, Logged(2, n, len(BIG))) for n, kind in enumerate(["step", "checkpoint", "ask", "answer"])
    ]
    for number, (place, held) in enumerate(places.items()):
        assert story.kinds(MoveRecord(T1, *place, held, Stored(f"s{number}", len(BIG), b""))) == []
    assert [held.key for _, held in of(story).payloads() if isinstance(held, Stored)] == ["s0", "s1", "s2", "s3"]


def test_what_was_moved_too_late_is_dropped(story: Story) -> None:
    story.do(SaveCheckpoint(T1, 1, 1, BIG))
    old = of(story).find(Place("checkpoint", ""))
    assert old is not None
    story.do(SaveCheckpoint(T1, 1, 2, BIG))
    assert [c.reason for c in story.do(MoveRecord(T1, "checkpoint", "", old, Stored("s", 9, b"")))] == ["s"]
    gone = [MoveRecord(T1, "step", "never", old, Stored("x", 9, b"")), MoveRecord(T2, "step", "a", old, Stored("y", 9, b""))]
    assert [c.reason for c in story.do(*gone)] == ["x", "y"]


def test_payloads_go_with_the_tasks_end_and_names_stay(story: Story) -> None:
    kept = Stored("n1/records/t1/1-1", 300_000, b"d" * 16)
    story.do(RecordStep(T1, 1, "a", b"1"), RecordStep(T1, 1, "b", kept), SaveCheckpoint(T1, 1, 1, kept))
    changes = story.do(Complete(T1, 1, b"1"))
    assert [c.reason for c in changes if c.kind == "record.dropped"] == [kept.key, kept.key]
    assert list(of(story).payloads()) == []
    assert [(name, step.size) for name, step in of(story).steps.items()] == [("a", 1), ("b", 300_000)]


def test_a_tasks_records_are_bounded(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_MAX", 2)
    monkeypatch.setattr(records, "RECORDS_BYTES", 10)
    assert story.kinds(RecordStep(T1, 1, "a", b"12345"), RecordStep(T1, 1, "b", b"123456")) == ["task.step", "report.rejected"]
    assert story.kinds(RecordStep(T1, 1, "b", b"1"), RecordStep(T1, 1, "c", b"1")) == ["task.step", "report.rejected"]
    assert story.kinds(SaveCheckpoint(T1, 1, 1, b"12345")) == ["report.rejected"]
    assert story.kinds(SaveCheckpoint(T1, 1, 2, b"1234")) == ["task.checkpoint"]
    assert story.kinds(AskInput(T1, 1, "q", b"1")) == ["task.dead", "task.failed"]


def test_an_assignment_carries_what_is_small(story: Story) -> None:
    half = b'"' + b"x" * 900 + b'"'
    stored = Stored("n1/records/t1/1-9", 300_000, b"d" * 16)
    story.do(RecordStep(T1, 1, "big", BIG), RecordStep(T1, 1, "stored", stored))
    story.do(*(RecordStep(T1, 1, f"s{n}", half) for n in range(100)))
    told = {one.name: one for one in known(story.state.tasks[T1])}
    assert len(told) == 102
    assert (told["big"].payload, told["big"].size) == (None, len(BIG))
    assert told["stored"].payload == stored
    carried = [one for one in told.values() if one.payload == half]
    assert 60 < len(carried) < 100 and sum(one.size for one in carried) <= RUN_BYTES


async def test_records_are_in_a_snapshot(story: Story) -> None:
    story.do(RecordStep(T1, 1, "a", BIG), SaveCheckpoint(T1, 1, 1, b"1"), AskInput(T1, 1, "q", b"2", 77))
    again, _ = await reload(await bytes_of(Writing(story.state, Ledger("net", 7))), story.state.network)
    again.check()
    assert contents(again) == contents(story.state)
    assert again.tasks[T1].records == of(story)


# What the leader does about it


def submit(name: str, **more: Any) -> Submit:
    return Submit(TaskSpec(TaskId(name), "echo", b"{}", ProcessId("c1"), **more))


def test_a_task_that_asks_holds_no_slot_and_is_given_out_again_once_answered() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("t1"), submit("t2"))
    assert net.assigned() == ["t1"]
    net.commit(AskInput(T1, 1, "q", b"null"))
    assert net.assigned() == ["t2"]
    net.commit(Complete(T2, 2, b"1"))
    assert (net.assigned(), net.load(), net.reconcile.is_behind) == ([], 0, False)
    net.commit(GiveAnswer(T1, "", b"1", 7))
    assert net.assigned() == ["t1"]


def test_a_wait_ends_in_its_time_also_under_a_new_leader() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("t1"))
    net.assigned()
    net.commit(AskInput(T1, 1, "q", b"null", until_ms=5000))
    net.reconcile.rebuild()
    net.check()
    assert net.assigned() == []
    assert net.reconcile.next_deadline() == 5000
    assert net.reconcile.due(4999) == []
    assert net.reconcile.due(5000) == [EndWait(T1, 1)]
    net.commit(EndWait(T1, 1))
    assert net.assigned() == ["t1"]


@pytest.mark.parametrize("ending", [Requeue(TaskId("p"), 1, Ending.NOT_STARTED), AskInput(TaskId("p"), 1, "q", b"1")])
def test_a_child_with_a_key_outlives_its_parents_attempt(ending: Command) -> None:
    net = Leading(("n1/a", 5))
    net.commit(submit("p"))
    net.assigned()
    net.commit(submit("plain", parent=TaskId("p"), parent_epoch=1))
    net.commit(submit("keyed", parent=TaskId("p"), parent_epoch=1, key="p/part"))
    net.assigned()
    net.commit(ending)
    canceled = [command for command in net.plan() if isinstance(command, Cancel)]
    assert [command.task for command in canceled] == ["plain"]
    net.reconcile.rebuild()
    assert [command.task for command in net.plan() if isinstance(command, Cancel)] == ["plain"]
    net.commit(*canceled, Cancel(TaskId("p")))
    assert "keyed" in [command.task for command in net.plan() if isinstance(command, Cancel)]


_ids = st.sampled_from([T1, T2])
_tokens = st.integers(1, 4)
_names = st.sampled_from(["a", "b"])
_payloads = st.sampled_from([b"1", BIG, Stored("n1/x", 9, b"d" * 16)])
_commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(lambda t: Submit(spec(t)), _ids),
    st.builds(lambda t, e: Assign(t, e, A2, N2, 1), _ids, _tokens),
    st.builds(RecordStep, _ids, _tokens, _names, _payloads),
    st.builds(SaveCheckpoint, _ids, _tokens, st.integers(1, 2), _payloads),
    st.builds(AskInput, _ids, _tokens, _names, _payloads),
    st.builds(GiveAnswer, _ids, _names | st.just(""), _payloads, st.integers(1, 9)),
    st.builds(EndWait, _ids, _tokens),
    st.builds(lambda t, k, n, p: MoveRecord(t, k, n, p, Stored("network/payload/x", 9, b"")), _ids,
              st.sampled_from(["step", "checkpoint", "ask", "answer"]), _names, _payloads),
    st.builds(lambda t, e: Complete(t, e, b"1"), _ids, _tokens),
    st.builds(Cancel, _ids),
    st.builds(lambda: Evict(N2, 1)),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_commands, min_size=1, max_size=4), max_size=25))
def test_invariants_hold_whatever_the_log_says(entries: list[list[Command]]) -> None:
    one, other = Story(), Story()
    steps: dict[tuple[TaskId, str], int] = {}
    for story in (one, other):
        story.do(NodeUp(N2, 1))
    for commands in entries:
        one.do(*commands)
        other.do(*commands)
        for task_id, task in one.state.tasks.items():
            for name, step in task.records.steps.items() if task.records is not None else ():
                assert steps.setdefault((task_id, name), step.epoch) == step.epoch
    assert msgspec.msgpack.encode(list(one.state.tasks.values())) == msgspec.msgpack.encode(list(other.state.tasks.values()))
