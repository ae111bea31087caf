"""Takes mail in: each sender's in the order of its numbers, once, into the log; then tells the sender how far the log has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from comity.bus.base import to
from comity.controller.admission import check_payload
from comity.controller.desk import Desk
from comity.core.mail import STREAM_KEPT_MS
from comity.errors import AccessDenied, BadInput, ComityError, MailboxFull, Overloaded, TooLarge
from comity.model.envelope import Performative
from comity.model.ids import AgentId, ProcessId, check_task_id, check_token, task_time_ms
from comity.model.item import Item
from comity.model.limits import FAR_S, NAME_MAX, REASON_MAX, TEXT_MAX
from comity.model.mail import (
    AT_ONCE,
    BODY_LIMIT,
    RECEIVERS_BYTES,
    SENT_BYTES,
    Note,
    Outgoing,
    Posted,
    PostMail,
    SkipMail,
    size_of_mail,
)
from comity.model.wire_mail import MailTaken, SendMail, StreamOver

RETRY_AFTER_S = 1.0
_PERFORMATIVES = frozenset(map(str, Performative))


class Posting:
    """Of one term. ``coming`` counts mails under way to the log, by receiver."""

    def __init__(self, desk: Desk, *, max_mailbox: int, max_mail: int, ttl_ms: int) -> None:
        self._state, self._outbox, self._receivers, self._now_ms, self._propose = desk
        self._max_mailbox = max_mailbox
        self._max_mail = max_mail
        self._ttl_ms = ttl_ms
        self._under_way: dict[ProcessId, tuple[str, int]] = {}
        self._coming: Counter[AgentId] = Counter()
        self._to_tell: dict[ProcessId, int] = {}  # after which number
        self.takers: dict[type[Item], Callable[[Any, ProcessId], None]] = {SendMail: self._send}

    def _send(self, item: SendMail, sender: ProcessId) -> None:
        known = self._state.mail.streams.get(sender)
        if known is not None and item.stream == known.id and item.number <= known.last:
            self._tell(sender, item.number - 1)
            return
        if not self._is_young(item.stream, known.id if known is not None else ""):
            self._outbox.post(to(sender), StreamOver(item.stream))
            return
        stream, last = self._under_way.get(sender, ("", 0))
        if stream != item.stream:
            last = known.last if known is not None and known.id == item.stream else 0
        if item.number != last + 1:
            return  # it is under way, or one before it was lost: its sender repeats that
        self._under_way[sender] = (item.stream, item.number)
        try:
            mail = self._written(item.mail, sender)
            for agent in mail.receivers:
                self._coming[agent] += 1
            self._propose(PostMail(sender, item.stream, item.number, mail))
        except ComityError as error:
            self._propose(SkipMail(sender, item.stream, item.number, error.code, error.message[:REASON_MAX]))

    def _is_young(self, stream: str, known: str) -> bool:
        """Whether a stream can be one that goes on, or begins. A forgotten one must not begin again. Raises BadInput."""
        return (stream >= known and task_time_ms(check_task_id(stream)) >= self._now_ms() - STREAM_KEPT_MS) or stream == known

    def committed(self, mails: Sequence[Outgoing], sender: ProcessId) -> tuple[Posted, ...]:
        """Mail that goes with an attempt's record: what cannot be delivered is a dead letter. Raises what is wrong with the mail
        itself."""
        found: list[Posted] = []
        if len(mails) > AT_ONCE or sum(map(size_of_mail, mails)) > SENT_BYTES:
            raise TooLarge(f"an attempt sends at most {AT_ONCE} mails, of {SENT_BYTES} bytes, with one record", limit=SENT_BYTES)
        room = RECEIVERS_BYTES // 4
        for mail in mails:
            _check(mail, sender)
            try:
                posted = self._written(mail, sender)
                room -= sum(map(len, posted.receivers)) + sum(len(agent) for agent, _ in posted.lost)
                if room < 0:
                    raise TooLarge("the mails of one record have too many receivers", limit=RECEIVERS_BYTES // 4)
                found.append(posted)
            except ComityError as error:
                where = mail.to or mail.group or ",".join(mail.tags) or "everyone"
                found.append(Posted(mail.note, (), self._until(mail), ((where[:NAME_MAX], error.code),)))
        return tuple(found)

    def _written(self, mail: Outgoing, sender: ProcessId) -> Posted:
        """As the log shall have it. Raises what is wrong with it, and why it cannot be delivered."""
        _check(mail, sender)
        kept = len(self._state.mail.letters)
        if kept >= self._max_mail:
            raise Overloaded(f"{kept:,} mails wait already", retry_after_s=RETRY_AFTER_S, limit=self._max_mail)
        receivers = self._receivers.of(mail)
        if mail.to and not mail.note.topic and not receivers[0].endswith(f"/{mail.to.rpartition('/')[2]}"):
            mail = msgspec.structs.replace(mail, note=msgspec.structs.replace(mail.note, topic=mail.to))  # a capability's name
        if len(receivers) == 1 and not self._is_full(receivers[0]):
            return Posted(mail.note, receivers, self._until(mail))
        full = [agent for agent in receivers if self._is_full(agent)]
        if len(full) == len(receivers):
            said = f"{full[0]} has {self._max_mailbox:,} mails waiting"
            raise MailboxFull(said, retry_after_s=RETRY_AFTER_S, limit=self._max_mailbox)
        room = tuple([agent for agent in receivers if agent not in full]) if full else receivers
        return Posted(mail.note, room, self._until(mail), tuple([(agent, MailboxFull.code) for agent in full]))

    def _is_full(self, agent: AgentId) -> bool:
        return self._state.mail.waiting(agent) + self._coming[agent] >= self._max_mailbox

    def _until(self, mail: Outgoing) -> int:
        return self._now_ms() + (mail.ttl_ms or self._ttl_ms)

    def applied(self, command: PostMail | SkipMail) -> None:
        """It is effective: its sender is told."""
        if self._under_way.get(command.process) == (command.stream, command.number):
            del self._under_way[command.process]
        for agent in command.mail.receivers if isinstance(command, PostMail) else ():
            self._coming[agent] -= 1
            if not self._coming[agent]:
                del self._coming[agent]
        self._tell(command.process, command.number - 1)

    def _tell(self, process: ProcessId, after: int) -> None:
        if not self._to_tell:
            asyncio.get_running_loop().call_soon(self._flush)
        self._to_tell[process] = min(after, self._to_tell.get(process, after))

    def _flush(self) -> None:
        """How far the log has each sender's mail: one word for many."""
        waiting, self._to_tell = self._to_tell, {}
        for process, after in waiting.items():
            stream = self._state.mail.streams.get(process)
            if stream is not None:
                refused = [(number, *why) for number, why in stream.refused.items() if number > after]
                self._outbox.post(to(process), MailTaken(stream.id, after, stream.last, tuple(refused)))


def _check(mail: Outgoing, sender: ProcessId) -> None:
    """BadInput, TooLarge or AccessDenied if ``sender`` cannot have sent this honestly."""
    note: Note = mail.note
    if note.sender != sender and not note.sender.startswith(f"{sender}/"):
        raise AccessDenied(f"{sender} cannot send mail as {note.sender[:80]}")
    if note.performative not in _PERFORMATIVES:
        raise BadInput(f"no performative is called {note.performative[:80]!r}")
    if not 0 <= mail.ttl_ms <= FAR_S * 1000:
        raise BadInput("mail is kept for a time above 0, and not beyond reason")
    if mail.group:
        check_token(mail.group, "group")
    texts = (note.conversation, note.in_reply_to, note.trace, mail.to, note.sender)
    if len(note.topic) > NAME_MAX or any(len(text) > TEXT_MAX for text in texts) or len(",".join(mail.tags)) > TEXT_MAX:
        raise TooLarge(f"a text of a mail has at most {TEXT_MAX} characters", limit=TEXT_MAX)
    if isinstance(note.body, bytes) and len(note.body) > BODY_LIMIT:
        raise TooLarge(f"a body of {len(note.body)} bytes must go by the store", limit=BODY_LIMIT)
    check_payload(note.body, sender)
