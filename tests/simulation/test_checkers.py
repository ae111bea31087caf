"""The judges are judged: each violation they exist for is planted, and each must be found."""

from __future__ import annotations

import random

import pytest

from comity.core.backlog import Backlog
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.model.codec import ROOT_DIGEST, digest, seal
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Assign,
    Cancel,
    Command,
    Complete,
    Ending,
    Entry,
    Evict,
    Fail,
    Lead,
    NodeUp,
    Requeue,
    Start,
    Submit,
    Task,
    TaskFailure,
    TaskSpec,
    TaskState,
)
from comity.sim.checkers import Auditor, End, TaskModel, Truth, Violation
from comity.sim.history import History, Operation
from comity.sim.linear import check

NET = NetworkId("sim")
T1, T2 = TaskId("t1"), TaskId("t2")
C1, C2 = ProcessId("c1"), ProcessId("c2")
NODE, AGENT = ProcessId("n1"), AgentId("n1/a")


class Book:
    """Writes entries to an auditor as a leader would."""

    def __init__(self, truth: Truth | None = None) -> None:
        self.truth = truth or Truth()
        self.auditor = Auditor(NET, self.truth)
        self.parent = ROOT_DIGEST
        self.index = 0

    def write(self, term: int, *commands: Command, writer: ProcessId = C1, parent: bytes | None = None) -> None:
        data, mark = seal(Entry(NET, term, self.parent if parent is None else parent, 10 + self.index, list(commands)))
        self.index += 1
        self.auditor.appended(self.index, data, writer)
        self.parent = mark

    def begin(self) -> Book:
        self.write(1, Lead(C1))
        self.write(1, NodeUp(NODE, 1), submit(T1), submit(T2))
        return self

    def ran(self, task: TaskId, epoch: int, result: bytes) -> None:
        self.truth.begin(task, epoch, AGENT)
        self.truth.end(task, epoch, result)


def submit(task: TaskId, key: str = "") -> Submit:
    return Submit(TaskSpec(task, "echo", b"{}", ProcessId("u1"), key=key))


def assign(task: TaskId, epoch: int) -> Assign:
    return Assign(task, epoch, AGENT, NODE, 1)


class TestAuditor:
    def test_a_good_life_passes(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1), assign(T2, 2))
        book.ran(T1, 1, b"1")
        book.write(1, Complete(T1, 1, b"1"), Cancel(T2))
        book.ran(T2, 2, b"2")
        book.write(1, Complete(T2, 2, b"2"))
        book.auditor.acknowledged(T1)
        book.auditor.told_end(T1, End(TaskState.COMPLETED, digest(b"1")))
        book.auditor.finish()

    def test_a_void_entry_is_counted_and_changes_nothing(self) -> None:
        book = Book().begin()
        parent = book.parent
        book.write(2, Lead(C2), writer=C2)
        led = book.parent
        book.write(1, assign(T1, 1), parent=parent)
        assert book.auditor.void == 1
        book.write(2, assign(T1, 1), writer=C2, parent=led)
        assert book.auditor.state.tasks[T1].epoch == 1

    def test_a_deposed_leader_whose_entry_counts(self) -> None:
        book = Book().begin()
        book.write(2, Lead(C2), writer=C2)
        with pytest.raises(Violation, match="c1 wrote it and c2 leads"):
            book.write(2, assign(T1, 1), writer=C1)

    def test_a_ledger_that_forgets_the_parent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Ledger, "_fault", lambda self, entry: None)
        book = Book().begin()
        with pytest.raises(Violation, match="must be void"):
            book.write(1, assign(T1, 1), parent=ROOT_DIGEST)

    def test_a_ledger_that_forgets_the_term(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Ledger, "_fault", lambda self, entry: None)
        book = Book().begin()
        book.write(2, Lead(C2), writer=C2)
        with pytest.raises(Violation, match="must be void"):
            book.write(1, assign(T1, 1))

    def test_two_completions_of_one_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unfenced(self: Tasks, task_id: TaskId, token: int, what: str) -> Task:
            return self.tasks[task_id]

        monkeypatch.setattr(Tasks, "_report", unfenced)
        monkeypatch.setattr(Tasks, "_end_attempt", lambda *_: None)
        book = Book().begin()
        book.write(1, assign(T1, 1))
        book.ran(T1, 1, b"1")
        book.write(1, Complete(T1, 1, b"1"))
        with pytest.raises(Violation, match="ended task t1 again"):
            book.write(1, Complete(T1, 1, b"1"))

    def test_a_completion_with_an_old_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Tasks, "current", lambda self, task, token: self.tasks[task])
        book = Book().begin()
        book.write(1, assign(T1, 7))
        book.ran(T1, 6, b"old")
        with pytest.raises(Violation, match=r"by epochs \[6\], though its epoch is 7"):
            book.write(1, Complete(T1, 6, b"old"))

    def test_an_epoch_given_twice(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 5))
        with pytest.raises(Violation, match="gives epoch 5"):
            book.write(1, assign(T2, 5))

    def test_a_result_without_an_attempt(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1))
        with pytest.raises(Violation, match="never returned"):
            book.write(1, Complete(T1, 1, b"1"))

    def test_a_result_that_the_attempt_did_not_return(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1))
        book.ran(T1, 1, b"1")
        with pytest.raises(Violation, match="did not return"):
            book.write(1, Complete(T1, 1, b"2"))

    def test_a_large_result_is_compared_too(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1))
        book.ran(T1, 1, b"1" * 5000)
        book.write(1, Complete(T1, 1, b"1" * 5000))
        book.auditor.told_end(T1, End(TaskState.COMPLETED, digest(b"1" * 5000)))
        with pytest.raises(Violation, match="a client was told"):
            book.auditor.told_end(T1, End(TaskState.COMPLETED, digest(b"2" * 5000)))

    def test_a_terminal_state_that_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        book = Book().begin()
        book.write(1, Cancel(T1))
        monkeypatch.setattr(Task, "is_terminal", property(lambda task: False))
        with pytest.raises(Violation, match="touched task t1, which was canceled"):
            book.write(1, assign(T1, 1), Cancel(T1)) if book.auditor.state.tasks[T1].attempt else revive(book)

    def test_an_attempt_that_runs_twice(self) -> None:
        truth = Truth()
        truth.begin(T1, 1, AGENT)
        with pytest.raises(Violation, match="started twice"):
            truth.begin(T1, 1, AgentId("n2/a"))

    def test_an_acknowledged_task_that_is_not_in_the_log(self) -> None:
        with pytest.raises(Violation, match="no effective entry holds it"):
            Book().begin().auditor.acknowledged(TaskId("t3"))

    def test_an_end_told_before_the_log_says_so(self) -> None:
        with pytest.raises(Violation, match="does not say so"):
            Book().begin().auditor.told_end(T1, End(TaskState.COMPLETED))

    def test_another_end_than_the_logs(self) -> None:
        book = Book().begin()
        book.write(1, Cancel(T1))
        with pytest.raises(Violation, match="the log says"):
            book.auditor.told_end(T1, End(TaskState.COMPLETED))

    def test_an_accepted_task_that_never_ends(self) -> None:
        book = Book().begin()
        book.write(1, Cancel(T1))
        with pytest.raises(Violation, match="1 accepted tasks never ended"):
            book.auditor.finish()

    def test_an_accepted_task_that_is_lost(self) -> None:
        book = Book().begin()
        del book.auditor.state.tasks[T1], book.auditor.state.tasks[T2]
        book.auditor.state.counts[TaskState.SUBMITTED] = 0
        book.auditor.state.backlog = Backlog()
        with pytest.raises(Violation, match="2 accepted tasks never ended"):
            book.auditor.finish()

    def test_a_reader_that_holds_something_else(self) -> None:
        book = Book().begin()
        other = Book().begin()
        book.auditor.compare("c2", other.auditor.state)
        other.write(1, assign(T1, 1))
        with pytest.raises(Violation, match="c2 read the whole log"):
            book.auditor.compare("c2", other.auditor.state)

    def test_a_reader_that_goes_on_wrongly_from_a_snapshot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        book = Book().begin()
        book.write(1, Cancel(T1), Cancel(T2))
        monkeypatch.setattr(Ledger, "restore", classmethod(lambda cls, state: cls(NET, state.index)))
        with pytest.raises(Violation, match="two readers disagree"):
            book.auditor.finish()


def revive(book: Book) -> None:
    """What a faulty ``apply`` would do to a finished task."""
    task = book.auditor.state.tasks[T1]
    task.state = TaskState.WAITING
    book.auditor.state.finished.pop(T1)
    book.write(1, assign(T1, 1))


def told(history: History, client: str, kind: str, answer: object = None, error: str = "") -> Operation:
    """A call that returns before anything else happens."""
    operation = history.call(client, kind, "t1")
    history.returns(operation, answer, error=error)
    return operation


DONE = End(TaskState.COMPLETED, b"r1")
WORKING = End(TaskState.WORKING)
CANCELED = End(TaskState.CANCELED)


class TestLinearizability:
    def test_one_task_from_submit_to_result(self) -> None:
        history = History()
        told(history, "a", "submit")
        told(history, "b", "status", WORKING)
        told(history, "a", "result", DONE)
        told(history, "b", "status", DONE)
        assert check(history.operations, TaskModel()) is None

    def test_operations_at_the_same_time_may_take_any_order(self) -> None:
        history = History()
        submitting = history.call("a", "submit", "t1")
        told(history, "b", "status", error="unknown-task")
        told(history, "b", "status", WORKING)
        history.returns(submitting)
        assert check(history.operations, TaskModel()) is None

    def test_a_submit_without_an_answer_may_take_effect_late_or_never(self) -> None:
        for late in ([], [("status", WORKING, "")]):
            history = History()
            history.unknown(history.call("a", "submit", "t1"), "timed-out")
            told(history, "b", "status", error="unknown-task")
            for kind, answer, error in late:
                told(history, "b", kind, answer, error)
            assert check(history.operations, TaskModel()) is None

    @pytest.mark.parametrize(
        "bad",
        [
            [("submit", None, ""), ("status", None, "unknown-task")],
            [("status", WORKING, ""), ("submit", None, "")],
            [("submit", None, ""), ("result", DONE, ""), ("status", WORKING, "")],
            [("submit", None, ""), ("result", DONE, ""), ("result", End(TaskState.COMPLETED, b"r2"), "")],
            [("submit", None, ""), ("result", DONE, ""), ("status", End(TaskState.FAILED), "")],
            [("submit", None, ""), ("result", CANCELED, "")],
            [("submit", None, ""), ("result", DONE, ""), ("cancel", None, ""), ("status", CANCELED, "")],
            [("submit", None, "overloaded"), ("status", WORKING, "")],
            [("cancel", None, ""), ("submit", None, "")],
        ],
    )
    def test_an_impossible_history_is_found(self, bad: list[tuple[str, object, str]]) -> None:
        history = History()
        for kind, answer, error in bad:
            told(history, "a", kind, answer, error)
        found = check(history.operations, TaskModel(), "t1")
        assert found is not None
        assert "no order of the operations on t1" in str(found)
        assert found.stuck

    def test_a_stale_answer_between_two_fresh_ones_is_found(self) -> None:
        history = History()
        told(history, "a", "submit")
        slow = history.call("b", "status", "t1")
        told(history, "a", "result", DONE)
        late = history.call("c", "status", "t1")
        history.returns(slow, WORKING)
        assert check([*history.operations[:3]], TaskModel()) is None
        history.returns(late, WORKING)
        assert check(history.operations, TaskModel()) is not None

    def test_a_cancel_without_an_answer_allows_both_ends(self) -> None:
        for end in (DONE, CANCELED):
            history = History()
            told(history, "a", "submit")
            history.unknown(history.call("a", "cancel", "t1"), "timed-out")
            told(history, "b", "result", end)
            assert check(history.operations, TaskModel()) is None

    @pytest.mark.parametrize("seed", range(30))
    def test_histories_of_a_real_copy_pass_and_a_changed_answer_does_not(self, seed: int) -> None:
        """Operations overlap at random; each takes effect at one moment between its call and its return."""
        rng = random.Random(seed)
        history, truth = random_life(rng)
        assert check(history.operations, TaskModel()) is None
        ends = [op for op in history.operations if op.is_known and op.answer is not None and op.answer == truth]
        if len(ends) > 1:
            rng.choice(ends).answer = End(TaskState.COMPLETED, b"another")
            assert check(history.operations, TaskModel()) is not None


def random_life(rng: random.Random) -> tuple[History, End | None]:
    """Up to 60 operations of five clients on one task; the history, and how it ended."""
    history = History()
    running: list[tuple[Operation, bool]] = []  # and whether it took effect already
    phase, canceling, end = "absent", False, None
    for _ in range(120):
        choice = rng.random()
        if choice < 0.4 and len(running) < 5:
            kind = rng.choice(["submit", "status", "result", "cancel"])
            running.append((history.call(f"u{len(running)}", kind, "t1"), False))
        elif running:
            place = rng.randrange(len(running))
            operation, took = running.pop(place)
            if took or rng.random() < 0.1:
                if rng.random() < 0.8 and took:
                    history.returns(operation, operation.answer, error=operation.error)
                else:
                    history.unknown(operation, "timed-out")
                continue
            if operation.kind == "submit":
                phase = "live" if phase == "absent" else phase
            elif phase == "absent":
                operation.error = "unknown-task"
            elif operation.kind == "cancel":
                canceling = canceling or end is None
            else:
                if operation.kind == "result" and end is None:
                    end = CANCELED if canceling and rng.random() < 0.5 else DONE
                operation.answer = end or WORKING
            running.append((operation, True))
    return history, end


class TestGivingUp:
    def test_an_attempt_given_up_before_its_time(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1))
        with pytest.raises(Violation, match="not-started"):
            book.write(1, Requeue(T1, 1, Ending.NOT_STARTED, "not started within 10 s"))

    def test_a_started_attempt_timed_out_before_its_time(self) -> None:
        book = Book().begin()
        book.write(1, assign(T1, 1))
        book.write(1, Start(T1, 1))
        with pytest.raises(Violation, match="timed-out"):
            book.write(1, Fail(T1, 1, TaskFailure("attempt-timeout"), 0, Ending.TIMED_OUT))

    def test_a_node_that_is_well_may_not_be_evicted(self) -> None:
        book = Book().begin()
        book.auditor.is_well = lambda node, incarnation: (node, incarnation) == (NODE, 1)
        book.write(1, Evict(NODE, 7, "it is not the one that is there"))
        with pytest.raises(Violation, match="evicts n1, which is well"):
            book.write(1, Evict(NODE, 1, "its lease is over"))

    def test_a_refusal_is_for_good(self) -> None:
        book = Book().begin()
        book.auditor.refused(TaskId("t3"), "overloaded")
        with pytest.raises(Violation, match="accepts task t3, which was refused: overloaded"):
            book.write(1, submit(TaskId("t3")))
        with pytest.raises(Violation, match="and entry 2 accepts it"):
            book.auditor.refused(T1, "overloaded")

    def test_a_task_that_vanishes_is_missed_at_once(self) -> None:
        book = Book().begin()
        del book.auditor.state.tasks[T1]
        with pytest.raises(Violation, match="task t1 is gone"):
            book.auditor._lost(2)
