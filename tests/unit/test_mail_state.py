"""What replicated state says of mail: streams without gaps, boxes in order, dead letters, groups; and that snapshots have it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from comity.controller.snapshot import Writing, load
from comity.core import mail as core
from comity.core.changes import Change
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import Corrupt
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.mail import (
    REFUSED_KEPT,
    AckMail,
    BuryMail,
    DropMail,
    ExpireMail,
    JoinGroup,
    LeaveGroup,
    Note,
    Posted,
    PostMail,
    SkipMail,
)
from comity.model.payload import Payload, Stored
from comity.model.records import AskInput, RecordStep, SaveCheckpoint
from comity.model.task import Assign, Command, Complete, Entry, Evict, NodeLeft, NodeUp, Start, Submit, TaskSpec

SENDER, NODE = ProcessId("c1"), ProcessId("n1")
A, B = AgentId("n1/a"), AgentId("n1/b")
TASK = TaskId("t1")


def posted(*receivers: AgentId, body: Payload = b"1", until_ms: int = 10_000, lost: tuple[tuple[str, str], ...] = ()) -> Posted:
    return Posted(Note("c1", "news", "inform", body), receivers, until_ms, lost)


def post(number: int, *receivers: AgentId, stream: str = "s1", body: Payload = b"1", until_ms: int = 10_000) -> PostMail:
    return PostMail(SENDER, stream, number, posted(*(receivers or (A,)), body=body, until_ms=until_ms))


class Story:
    def __init__(self) -> None:
        self.state = Tasks(NetworkId("net"))
        self.mail = self.state.mail
        self.index = 0

    def do(self, *commands: Command, at_ms: int = 0) -> list[Change]:
        self.index += 1
        changes = self.state.apply(Entry("net", 1, b"", at_ms or self.index * 10, list(commands)), self.index)
        self.state.check()
        return changes

    def kinds(self, *commands: Command, at_ms: int = 0) -> list[str]:
        return [change.kind for change in self.do(*commands, at_ms=at_ms)]

    def box(self, agent: AgentId) -> list[str]:
        return [self.mail.letters[number].id for number in self.mail.boxes.get(agent, ())]


def test_what_is_acknowledged_leaves_memory() -> None:
    story = Story()
    assert story.kinds(post(1, A, B), post(2, A)) == ["mail.posted", "mail.posted"]
    assert story.box(A) == ["s1-1", "s1-2"] and story.box(B) == ["s1-1"]
    story.do(AckMail(((A, (1, 2)),)))
    assert story.mail.letters[1].left == (B,) and story.box(A) == [] and list(story.mail.letters) == [1]
    story.do(AckMail(((A, (1, 2)), (B, (1, 9)))), AckMail(((B, (1,)),)))
    assert not story.mail.letters and not story.mail.boxes and not story.mail.ids
    assert (story.mail.posted, story.mail.taken) == (2, 3)
    assert story.mail.known["s1-1"].receivers == (A, B), "of mail to several it stays known who had it"
    assert "s1-2" not in story.mail.known


def test_a_stream_has_no_gap_and_nothing_twice() -> None:
    story = Story()
    story.do(post(2))
    assert not story.mail.letters, "the first one is missing"
    story.do(post(1), post(1), post(3), post(2))
    assert story.box(A) == ["s1-1", "s1-2"]
    story.do(post(1, stream="s2"), post(3), post(1, stream="s0"))
    assert story.box(A) == ["s1-1", "s1-2", "s2-1"], "a later stream replaces it, and an earlier one is over"
    assert story.mail.streams[SENDER].id == "s2"


def test_a_refused_mail_uses_its_number() -> None:
    story = Story()
    story.do(SkipMail(SENDER, "s1", 1, "mailbox-full", "full"), post(2), SkipMail(SENDER, "s1", 2, "late", "late"))
    assert story.box(A) == ["s1-2"]
    assert story.mail.streams[SENDER].refused == {1: ("mailbox-full", "full")}
    for number in range(3, REFUSED_KEPT + 3):
        story.mail._next(SENDER, "s1", number)
    assert story.mail.streams[SENDER].refused == {}, "nobody can ask for it any more"


def test_streams_that_rest_are_forgotten() -> None:
    story = Story()
    story.do(post(1))
    story.do(PostMail(ProcessId("c2"), "s9", 1, posted(A)), at_ms=core.STREAM_KEPT_MS + 100)
    assert list(story.mail.streams) == ["c2"]


def test_what_nobody_takes_is_a_dead_letter() -> None:
    story = Story()
    story.do(post(1, A, B, until_ms=500), post(2, until_ms=9000))
    assert story.kinds(ExpireMail((1, 2)), at_ms=400) == []
    story.do(AckMail(((A, (1,)),)))
    changes = story.do(ExpireMail((1, 2)), at_ms=500)
    assert [(change.kind, change.agent) for change in changes] == [("mail.dead", B)]
    assert story.box(A) == ["s1-2"] and [dead.code for dead in story.mail.dead.values()] == ["expired"]
    story.do(BuryMail(A, 2, "ValueError", "no"), BuryMail(A, 2, "ValueError", "again"), BuryMail(B, 7, "x", "y"))
    assert [(dead.receiver, dead.code) for dead in story.mail.dead.values()] == [(B, "expired"), (A, "ValueError")]
    story.do(PostMail(SENDER, "s1", 3, posted(lost=(("n1/c", "mailbox-full"),))))
    assert list(story.mail.dead)[-1] == (3, "n1/c") and 3 not in story.mail.letters
    story.do(DropMail(("s1-1", "s1-3", "nothing")))
    assert [dead.id for dead in story.mail.dead.values()] == ["s1-2"]


def test_dead_letters_and_what_has_arrived_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "DEAD_KEPT", 2)
    monkeypatch.setattr(core, "KNOWN_KEPT", 4)
    story = Story()
    for number in range(1, 6):
        story.do(post(number, A, B))
        story.do(AckMail(((A, (number,)),)), BuryMail(B, number, "no", "no"))
    assert [dead.id for dead in story.mail.dead.values()] == ["s1-4", "s1-5"]
    assert list(story.mail.known) == ["s1-4", "s1-5"]


def test_a_stored_body_goes_when_nobody_needs_it() -> None:
    story = Story()
    stored = Stored("c1/mail/x", 5000, b"d" * 16)
    story.do(post(1, A, B, body=stored), post(2, A, body=stored))
    assert story.kinds(AckMail(((A, (1,)),))) == []
    assert story.do(AckMail(((B, (1,)),)))[-1].reason == "c1/mail/x"
    assert story.kinds(BuryMail(A, 2, "no", "no")) == ["mail.dead"], "a dead letter can be looked at"
    assert story.kinds(DropMail(("s1-2",))) == ["mail.dropped"]
    story.do(post(3, A, B, body=stored))
    assert "mail.dropped" in story.kinds(DropMail(("s1-3",)))


def working() -> Story:
    story = Story()
    story.do(NodeUp(NODE, 1), Submit(TaskSpec(TASK, "echo", b"{}", SENDER)))
    story.do(Assign(TASK, 1, A, NODE, 1), Start(TASK, 1))
    return story


def test_mail_of_an_attempt_is_sent_with_its_record_or_not_at_all() -> None:
    story = working()
    mail = (posted(B), posted(B))
    story.do(RecordStep(TASK, 1, "one", b"1", mail), RecordStep(TASK, 1, "one", b"1", mail))
    assert story.box(B) == ["t1/step.one/1", "t1/step.one/2"]
    story.do(SaveCheckpoint(TASK, 1, 1, b"{}", mail[:1]), SaveCheckpoint(TASK, 1, 1, b"{}", mail[:1]))
    assert story.box(B)[2:] == ["t1/checkpoint.1-1/1"]
    story.do(Evict(NODE, 1))
    story.do(NodeUp(NODE, 2), Assign(TASK, 2, A, NODE, 2), Start(TASK, 2))
    story.do(RecordStep(TASK, 1, "two", b"2", mail), Complete(TASK, 1, b"9", 1, mail), AskInput(TASK, 1, "ok", b"1", 0, 1, mail))
    assert len(story.box(B)) == 3, "a fenced attempt sends nothing"
    story.do(RecordStep(TASK, 2, "one", b"1", mail))
    assert len(story.box(B)) == 3, "this step's mail went with the first record of it"
    story.do(Complete(TASK, 2, b"9", 1, mail[:1]))
    assert story.box(B)[3:] == ["t1/end/1"]


def test_a_question_carries_mail_too() -> None:
    story = working()
    story.do(AskInput(TASK, 1, "ok", b"1", 0, 1, (posted(B),)))
    assert story.box(B) == ["t1/ask.ok/1"]


def test_groups_change_and_end_with_a_node_that_leaves() -> None:
    story = Story()
    other = AgentId("n2/a")
    story.do(NodeUp(NODE, 1))
    kinds = story.kinds(JoinGroup("ops", A), JoinGroup("ops", A), JoinGroup("ops", other), JoinGroup("dev", A))
    assert kinds == ["group.joined"] * 3
    assert list(story.mail.groups["ops"]) == [A, other]
    assert story.kinds(LeaveGroup("dev", A), LeaveGroup("dev", A), LeaveGroup("none", A)) == ["group.left"]
    assert "dev" not in story.mail.groups
    story.do(Evict(NODE, 1), NodeUp(NODE, 2))
    assert A in story.mail.groups["ops"], "who is lost comes back"
    assert "group.left" in story.kinds(NodeLeft(NODE, 2))
    assert list(story.mail.groups["ops"]) == [other]


def full() -> Story:
    story = Story()
    story.do(post(1, A, B), post(2), SkipMail(SENDER, "s1", 3, "no", "no"), post(4, A, B), JoinGroup("ops", A))
    story.do(AckMail(((A, (1,)), (B, (1,)))), BuryMail(B, 3, "no", "no"))
    story.do(NodeUp(NODE, 1), NodeUp(NODE, 2, 3, ((A, 2),)))
    return story


async def read(data: list[bytes]) -> AsyncIterator[bytes]:
    for part in data:
        yield part


def test_mail_that_takes_its_node_down_is_dead_in_the_end() -> None:
    story = Story()
    story.do(NodeUp(NODE, 1), post(1, A, B), post(2, A))
    story.do(Evict(NODE, 1, "", 3, ((A, 1), (B, 1), (A, 9))))
    assert not story.kinds(Evict(NODE, 1, "", 3, ((A, 1),))), "it was told before"
    story.do(NodeUp(NODE, 2), NodeUp(NODE, 3, 3, ((A, 1),)), AckMail(((B, (1,)),)))
    assert story.mail.losses == {(1, A): 2}, "what was taken is no longer suspected"
    story.do(NodeLeft(NODE, 3), NodeUp(NODE, 4))
    assert story.kinds(Evict(NODE, 4, "", 3, ((A, 1),)))[-1] == "mail.dead"
    assert story.mail.dead[1, A].code == "poison" and story.box(A) == ["s1-2"] and not story.mail.losses
    story.do(NodeUp(NODE, 5), NodeUp(NODE, 6, 0, ((A, 2),)))
    assert story.box(A) == ["s1-2"], "with 0 no mail is poison"


async def test_mail_survives_a_snapshot() -> None:
    story = full()
    ledger = Ledger("net")
    data = [frame async for frame in Writing(story.state, ledger).frames()]
    state, _ = await load(read(data), NetworkId("net"))
    state.check()
    mine, theirs = story.mail, state.mail
    names = ("letters", "ids", "boxes", "dead", "_dead_of", "known", "_known_size", "streams", "groups", "losses")
    for name in (*names, "last", "taken"):
        assert getattr(mine, name) == getattr(theirs, name), name
    with pytest.raises(Corrupt):
        await load(read(data[:-1]), NetworkId("net"))


async def test_a_snapshot_is_of_one_moment() -> None:
    story = full()
    writing = Writing(story.state, Ledger("net"))
    before = msgspec.msgpack.encode(story.mail.head())
    story.do(AckMail(((A, (2, 3)),)), post(5), LeaveGroup("ops", A))
    state, _ = await load(read([frame async for frame in writing.frames()]), NetworkId("net"))
    assert msgspec.msgpack.encode(state.mail.head()) == before
    assert state.mail.waiting(A) == 2


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda mail: mail.boxes.clear(), "boxes"),
        (lambda mail: mail.ids.clear(), "found by its id"),
        (lambda mail: setattr(mail, "last", 0), "above the last"),
        (lambda mail: mail.groups.update(empty={}), "group"),
    ],
)
def test_the_check_sees_what_is_wrong(broken, rule) -> None:  # type: ignore[no-untyped-def]
    story = full()
    broken(story.mail)
    with pytest.raises(AssertionError, match=rule):
        story.state.check()
