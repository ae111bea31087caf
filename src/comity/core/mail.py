"""The part of the replicated state that is mail: who is to have what, who has it, and who will not.

    posted ──▶ in the mailbox of each receiver ──(acknowledged)──▶ gone from memory
                                │
                                └──(expired, or its function cannot take it)──▶ dead letter

Numbers grow with the log, so a mailbox is in the order in which mail became durable. What every receiver has leaves memory; of
mail to several it stays known for a while who had it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from comity.core.changes import Change
from comity.errors import Poisoned
from comity.model.ids import AgentId, ProcessId
from comity.model.mail import (
    REFUSED_KEPT,
    AckMail,
    BuryMail,
    DeadMail,
    DropMail,
    ExpireMail,
    JoinGroup,
    LeaveGroup,
    Letter,
    Posted,
    PostMail,
    SkipMail,
    Stream,
    attempt_mail_id,
    mail_id,
)
from comity.model.payload import Stored
from comity.model.task import Task

if TYPE_CHECKING:
    from comity.core.tasks import Tasks

STREAM_KEPT_MS = 3_600_000
"""A stream of which nothing was heard for so long may be forgotten."""
DEAD_KEPT = 10_000
"""Dead letters; the oldest go first."""
KNOWN_KEPT = 100_000
"""Receivers, of all mails to several that are known to have arrived; the oldest mails go first."""


class MailHead(msgspec.Struct, array_like=True):
    """What a snapshot says of mail, beside the letters: of these it has the numbers."""

    last: int = 0
    posted: int = 0
    taken: int = 0
    buried: int = 0
    letters: int = 0
    dead: int = 0
    known: int = 0
    streams: dict[ProcessId, Stream] = {}
    groups: dict[str, dict[AgentId, int]] = {}
    losses: tuple[tuple[int, AgentId, int], ...] = ()


class Mail:
    """Applies the commands of ``model.mail`` to ``tasks``, of which it is a part. Invariants: ``boxes`` hold exactly the numbers
    of the letters left to each agent, in order; ``ids`` leads to the letters; ``losses`` are those of letters in a box."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self.last = 0
        self.posted = self.taken = self.buried = 0
        self.letters: dict[int, Letter] = {}
        self.ids: dict[str, int] = {}
        self.boxes: dict[AgentId, dict[int, None]] = {}
        self.dead: dict[tuple[int, str], DeadMail] = {}
        self.losses: dict[tuple[int, AgentId], int] = {}
        """How often a node was lost while this mail was at work there."""
        self._dead_of: dict[int, int] = {}  # how many dead letters each mail has
        self.known: dict[str, Letter] = {}  # mail to several that all have: without its body
        self._known_size = 0
        self.streams: dict[ProcessId, Stream] = {}  # least recently used first
        self.groups: dict[str, dict[AgentId, int]] = {}  # members, and since when
        self.appliers: dict[type, Callable[[Any, int, int], None]] = {
            PostMail: self._post,
            SkipMail: self._skip,
            AckMail: self._ack,
            BuryMail: self._bury,
            ExpireMail: self._expire,
            DropMail: self._drop,
            JoinGroup: self._join,
            LeaveGroup: self._leave,
        }

    def waiting(self, agent: AgentId) -> int:
        """How many mails lie in the agent's box."""
        return len(self.boxes.get(agent, ()))

    def _say(self, kind: str, reason: str = "", agent: AgentId | None = None, letter: Letter | None = None) -> None:
        self._tasks.changes.append(Change(kind, reason=reason, agent=agent, letter=letter))

    # Sending

    def _next(self, process: ProcessId, stream: str, number: int) -> Stream | None:
        """The stream, if this number is the next one in it."""
        known = self.streams.get(process)
        found = Stream(stream, 0, 0, {}) if known is None or stream > known.id else known
        if found.id != stream or number != found.last + 1:
            return None
        self.streams.pop(process, None)
        self.streams[process] = found
        found.last, found.used_ms = number, self._tasks.time_ms
        while found.refused and next(iter(found.refused)) <= number - REFUSED_KEPT:
            del found.refused[next(iter(found.refused))]
        oldest = next(iter(self.streams))
        if self.streams[oldest].used_ms < self._tasks.time_ms - STREAM_KEPT_MS:
            del self.streams[oldest]
        return found

    def _post(self, command: PostMail, _index: int, _ordinal: int) -> None:
        if self._next(command.process, command.stream, command.number) is not None:
            self._put(mail_id(command.stream, command.number), command.mail)

    def _skip(self, command: SkipMail, _index: int, _ordinal: int) -> None:
        stream = self._next(command.process, command.stream, command.number)
        if stream is not None:
            stream.refused[command.number] = (command.code, command.message)

    def commit(self, task: Task, record: str, mails: Iterable[Posted]) -> None:
        """What an attempt sent before ``record`` became durable with it."""
        for number, mail in enumerate(mails, 1):
            self._put(attempt_mail_id(task.spec.id, record, number), mail)

    def _put(self, id: str, mail: Posted) -> None:
        self.last += 1
        self.posted += 1
        number, now_ms = self.last, self._tasks.time_ms
        letter = Letter(number, id, mail.note, mail.receivers, mail.receivers, now_ms, mail.until_ms)
        if mail.receivers:
            self.letters[number] = letter
            self.ids[id] = number
            for agent in mail.receivers:
                self.boxes.setdefault(agent, {})[number] = None
            self._say("mail.posted", letter=letter)
        for receiver, code in mail.lost:
            self._dies(letter, receiver, code, "it could not be delivered when it was sent")
        if not mail.receivers:
            self._forget_body(letter)

    # Arriving

    def _without(self, letter: Letter, agents: tuple[AgentId, ...]) -> None:
        """These need it no more."""
        number = letter.number
        for agent in agents:
            box = self.boxes[agent]
            del box[number]
            self.losses.pop((number, agent), None)
            if not box:
                del self.boxes[agent]
        left = tuple(agent for agent in letter.left if agent not in agents) if len(letter.left) > len(agents) else ()
        if left:
            self.letters[number] = msgspec.structs.replace(letter, left=left)
            return
        del self.letters[number]
        del self.ids[letter.id]
        if len(letter.receivers) > 1:
            self._keep_known(letter)
        self._forget_body(letter)

    def _keep_known(self, letter: Letter) -> None:
        note = msgspec.structs.replace(letter.note, body=b"null")
        self.known[letter.id] = msgspec.structs.replace(letter, note=note, left=())
        self._known_size += len(letter.receivers)
        while self._known_size > KNOWN_KEPT and len(self.known) > 1:
            self._known_size -= len(self.known.pop(next(iter(self.known))).receivers)

    def _forget_body(self, letter: Letter) -> None:
        """Its body in the store is needed no more, unless a dead letter has it."""
        body = letter.note.body
        if isinstance(body, Stored) and letter.number not in self._dead_of:
            self._say("mail.dropped", body.key)

    def _ack(self, command: AckMail, _index: int, _ordinal: int) -> None:
        for agent, numbers in command.taken:
            for number in numbers:
                letter = self._waits(agent, number)
                if letter is not None:
                    self.taken += 1
                    self._without(letter, (agent,))

    def _waits(self, agent: AgentId, number: int) -> Letter | None:
        return self.letters[number] if number in self.boxes.get(agent, ()) else None

    def _bury(self, command: BuryMail, _index: int, _ordinal: int) -> None:
        letter = self._waits(command.agent, command.number)
        if letter is not None:
            self._dies(letter, command.agent, command.code, command.message)
            self._without(letter, (command.agent,))

    def _expire(self, command: ExpireMail, _index: int, _ordinal: int) -> None:
        for number in command.numbers:
            letter = self.letters.get(number)
            if letter is not None and letter.until_ms <= self._tasks.time_ms:
                for agent in letter.left:
                    self._dies(letter, agent, "expired", "nobody took it in its time")
                self._without(letter, letter.left)

    def node_lost(self, at_work: Iterable[tuple[AgentId, int]], poison_nodes: int) -> None:
        """A node was lost while these were at work there. One that has seen that ``poison_nodes`` times (0: never) is what takes
        it down."""
        for agent, number in at_work:
            letter = self._waits(agent, number)
            if letter is None:
                continue
            times = self.losses[number, agent] = self.losses.get((number, agent), 0) + 1
            if 0 < poison_nodes <= times:
                self._dies(letter, agent, Poisoned.code, f"its node was lost {times} times while it had this mail")
                self._without(letter, (agent,))

    def _dies(self, letter: Letter, receiver: str, code: str, message: str) -> None:
        self.buried += 1
        self.dead[letter.number, receiver] = DeadMail(
            letter.number, letter.id, receiver, letter.note, code, message, self._tasks.time_ms
        )
        self._dead_of[letter.number] = self._dead_of.get(letter.number, 0) + 1
        self._say("mail.dead", f"{letter.id}: {code}: {message}", AgentId(receiver), letter)
        while len(self.dead) > DEAD_KEPT:
            self._remove_dead(next(iter(self.dead)))

    def _remove_dead(self, key: tuple[int, str]) -> None:
        dead = self.dead.pop(key)
        self._dead_of[dead.number] -= 1
        if self._dead_of[dead.number]:
            return
        del self._dead_of[dead.number]
        body = dead.note.body
        if isinstance(body, Stored) and dead.number not in self.letters:
            self._say("mail.dropped", body.key)

    def _drop(self, command: DropMail, _index: int, _ordinal: int) -> None:
        ids = frozenset(command.ids)
        for key in [key for key, dead in self.dead.items() if dead.id in ids]:
            self._remove_dead(key)
        for id in command.ids:
            letter = self.letters.get(self.ids.get(id, 0))
            if letter is not None:
                self._without(letter, letter.left)

    # Groups

    def _join(self, command: JoinGroup, _index: int, _ordinal: int) -> None:
        members = self.groups.setdefault(command.group, {})
        if command.agent not in members:
            members[command.agent] = self._tasks.time_ms
            self._say("group.joined", command.group, command.agent)

    def _leave(self, command: LeaveGroup, _index: int, _ordinal: int) -> None:
        self._part(command.group, command.agent)

    def _part(self, group: str, agent: AgentId) -> None:
        members = self.groups.get(group, {})
        if members.pop(agent, None) is not None:
            self._say("group.left", group, agent)
            if not members:
                del self.groups[group]

    def node_left(self, node: ProcessId) -> None:
        """A node has said goodbye: its agents are in no group any more. (One that was lost may come back to its mail.)"""
        for group, members in list(self.groups.items()):
            for agent in [agent for agent in members if agent.startswith(f"{node}/")]:
                self._part(group, agent)

    # Snapshots

    def head(self) -> MailHead:
        """As a snapshot has it."""
        return MailHead(
            self.last, self.posted, self.taken, self.buried, len(self.letters), len(self.dead), len(self.known),
            self.streams, self.groups, tuple([(number, agent, times) for (number, agent), times in self.losses.items()]),
        )  # fmt: skip

    def parts(self) -> tuple[list[Letter], list[DeadMail], list[Letter]]:
        """What a snapshot has behind the tasks, each in its order."""
        return list(self.letters.values()), list(self.dead.values()), list(self.known.values())

    def bodies(self) -> Iterator[Stored]:
        """Those that lie in the store."""
        for kept in (self.letters, self.dead):
            for one in kept.values():
                if isinstance(one.note.body, Stored):
                    yield one.note.body

    def restore(self, head: MailHead, letters: list[Letter], dead: list[DeadMail], known: list[Letter]) -> None:
        self.last, self.posted, self.taken, self.buried = head.last, head.posted, head.taken, head.buried
        self.streams, self.groups = head.streams, head.groups
        self.losses = {(number, agent): times for number, agent, times in head.losses}
        for letter in letters:
            self.letters[letter.number] = letter
            self.ids[letter.id] = letter.number
            for agent in letter.left:
                self.boxes.setdefault(agent, {})[letter.number] = None
        for one in dead:
            self.dead[one.number, one.receiver] = one
            self._dead_of[one.number] = self._dead_of.get(one.number, 0) + 1
        for letter in known:
            self.known[letter.id] = letter
            self._known_size += len(letter.receivers)

    def check(self) -> str:
        """The invariant that is broken; "" if none is."""
        boxes: dict[AgentId, list[int]] = {}
        for number, letter in self.letters.items():
            if not letter.left or self.ids.get(letter.id) != number:
                return f"{letter.id} is kept for somebody, and found by its id"
            for agent in letter.left:
                boxes.setdefault(agent, []).append(number)
        if boxes != {agent: list(box) for agent, box in self.boxes.items()}:
            return "boxes hold what is left to each agent, in order"
        if len(self.ids) != len(self.letters) or any(number > self.last for number in self.letters):
            return "no number lies above the last"
        if any(number not in self.boxes.get(agent, ()) for number, agent in self.losses):
            return "losses are of letters that lie in a box"
        return "no group is empty" if not all(self.groups.values()) else ""
