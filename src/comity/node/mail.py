"""Gives durable mail to the functions of this node's agents, and tells the leader once they have returned.

Mail of one sender to one agent runs one after the other, in order; that of others beside it. A function that fails is tried
again; then the mail is a dead letter. In one life of the node a mail is given to its function once. If the node dies after the
function has done its work and before the log has the acknowledgement, the next life gives it again, with ``Message.is_repeat``.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from comity.agent import Agent, Listener, Offered
from comity.errors import InvalidInput, NotFound, Refuse
from comity.handles import Attempt
from comity.message import Message
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId
from comity.model.item import Item
from comity.model.payload import Stored
from comity.model.wire_mail import Deliver, Grouped, InGroups, MailDone, Mailed, MailSettled
from comity.node.failing import failure_of, place, said_by
from comity.node.messages import ANSWERED, Call, Messages
from comity.node.performing import Performer, ended, is_closing
from comity.patience import Unready, patiently
from comity.store.base import Store

PAUSES_S = (0.2, 1.0)
"""Before a function that failed is tried again."""
REPEAT_S = 2.0
ENDED_KEPT = 20_000
AT_ONCE = 1000
"""Ends of mails in one item."""

Key = tuple[AgentId, int]
Failure = tuple[str, str]
LATE: Failure = ("expired", "")
"""The leader buries it."""
_log = structlog.get_logger("comity.node")


class Untakable(Exception):
    """Nobody here can take the mail."""


class Inbox:
    """``fence`` gives the node's incarnation; ``post`` sends to the leader. Invariants: ``_known`` holds what is queued, at
    work or not settled; ``_unsettled`` what the leader is told until it has it durably."""

    def __init__(
        self,
        node: ProcessId,
        find: Callable[[str], Agent | None],
        messages: Messages,
        performer: Performer,
        store: Store,
        post: Callable[[Item], None],
        fence: Callable[[], int],
        *,
        timeout_s: float,
    ) -> None:
        self._node = node
        self._find = find
        self._messages = messages
        self._performer = performer
        self._store = store
        self._post = post
        self._fence = fence
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._known: dict[Key, None] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._queues: dict[tuple[AgentId, str], deque[tuple[Mailed, float]]] = {}
        self._work: dict[tuple[AgentId, str], asyncio.Task[None]] = {}
        self._seen: dict[AgentId, int] = {}  # the highest number that came, with all before it
        self._fresh: list[Key] = []
        self._unsettled: dict[Key, tuple[float, Failure | None]] = {}
        self._groups: dict[tuple[AgentId, str], bool] = {}
        self._groups_at = 0.0
        self._is_closed = False
        self.takers: dict[type[Item], Callable[[Any, ProcessId], None]] = {
            Deliver: lambda item, _sender: self.deliver(item),
            MailSettled: lambda item, _sender: self.settled(item),
            Grouped: lambda item, _sender: self.grouped(item),
        }

    # From the leader

    def deliver(self, item: Deliver) -> None:
        """Take in what is new."""
        hosted = self._find(item.agent.rpartition("/")[2])
        if hosted is None or not item.agent.startswith(f"{self._node}/") or self._is_closed:
            return
        if item.after > self._seen.get(item.agent, 0):
            return  # what came before was lost on the way: all of it is sent again
        now = self._loop.time()
        for mailed in item.mails:
            self._seen[item.agent] = max(mailed.number, self._seen.get(item.agent, 0))
            key = (item.agent, mailed.number)
            if key in self._known or key in self._ended:
                continue
            self._known[key] = None
            lane = (item.agent, mailed.note.sender)
            self._queues.setdefault(lane, deque()).append((mailed, now + mailed.left_ms / 1000))
            if lane not in self._work:
                work = self._work[lane] = self._loop.create_task(self._drain(lane, hosted))
                work.add_done_callback(partial(self._over, lane))

    def settled(self, item: MailSettled) -> None:
        """It is durable: forget it, but for a while know it if it comes late."""
        for agent, numbers in item.done:
            for number in numbers:
                key = (agent, number)
                if self._unsettled.pop(key, None) is not None:
                    self._known.pop(key, None)
                    self._ended[key] = None
        while len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def repeat(self, *, all_of_it: bool) -> None:
        """Say again what the leader has not settled: all of it, or what is overdue."""
        now = self._loop.time()
        before = now if all_of_it else now - REPEAT_S
        self._tell([key for key, (at, _) in self._unsettled.items() if at <= before])
        if self._groups and (all_of_it or self._groups_at <= before):
            self._tell_groups()

    def forget(self, agent: Agent) -> None:
        """It is hosted here no more; its mail waits for it."""
        self._seen.pop(AgentId(f"{self._node}/{agent.name}"), None)
        for lane in [lane for lane in self._queues if lane[0] == f"{self._node}/{agent.name}"]:
            self._stop(lane)

    def _stop(self, lane: tuple[AgentId, str]) -> None:
        for mailed, _ in self._queues.pop(lane, ()):
            self._known.pop((lane[0], mailed.number), None)
        work = self._work.pop(lane, None)
        if work is not None:
            work.cancel()

    def _over(self, lane: tuple[AgentId, str], work: asyncio.Task[None]) -> None:
        """If a function had its task canceled, the rest will be given again."""
        if self._work.get(lane) is work:
            self._stop(lane)

    async def close(self, grace_s: float) -> None:
        """Take nothing more; what is at work is stopped, and will be given again."""
        self._is_closed = True
        work = list(self._work.values())
        for lane in list(self._queues):
            self._stop(lane)
        await ended(work, grace_s)
        self._flush()

    # Doing it

    async def _drain(self, lane: tuple[AgentId, str], hosted: Agent) -> None:
        queue = self._queues[lane]
        work = asyncio.current_task()
        while queue:
            mailed, until = queue[0]
            key = (lane[0], mailed.number)
            failure = LATE if until <= self._loop.time() else await self._take(hosted, lane[0], mailed, until)
            if self._work.get(lane) is not work:
                self._known.pop(key, None)
                return  # forgotten meanwhile, whatever became of it
            if failure is LATE:
                self._known.pop(key, None)
            else:
                self._end(key, failure)
            queue.popleft()
        del self._queues[lane], self._work[lane]

    def _end(self, key: Key, failure: Failure | None) -> None:
        self._unsettled[key] = (self._loop.time(), failure)
        if not self._fresh:
            self._loop.call_soon(self._flush)
        self._fresh.append(key)

    def _flush(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._tell(fresh)

    def _tell(self, keys: list[Key]) -> None:
        now = self._loop.time()
        for start in range(0, len(keys), AT_ONCE):
            taken: dict[AgentId, list[int]] = {}
            failed: list[tuple[AgentId, int, str, str]] = []
            for agent, number in keys[start : start + AT_ONCE]:
                failure = self._unsettled[agent, number][1]
                self._unsettled[agent, number] = (now, failure)
                if failure is None:
                    taken.setdefault(agent, []).append(number)
                else:
                    failed.append((agent, number, *failure))
            self._post(MailDone(tuple([(agent, tuple(numbers)) for agent, numbers in taken.items()]), tuple(failed)))

    async def _take(self, hosted: Agent, agent: AgentId, mailed: Mailed, until: float) -> Failure | None:
        """Give it to its function; why that cannot be done, if so. ``LATE`` if its body could not be read in its time."""
        body: bytes | None = None
        for pause_s in (*PAUSES_S, None):
            try:
                if body is None and (body := await self._body(mailed, until)) is None:
                    return LATE
                async with asyncio.timeout(self._timeout_s):
                    await self._give(hosted, agent, mailed, body)
                return None
            except Refuse as refusal:
                return "refused", said_by(refusal.reason)
            except (InvalidInput, Untakable) as error:
                return "not-understood", str(error)
            except BaseException as error:  # whatever the user's function raises
                work = self._work.get((agent, mailed.note.sender))
                if work is None or isinstance(error, asyncio.CancelledError) or is_closing(error, work):
                    raise
                failure = failure_of(error)
                about = {"agent": agent, "mail": mailed.id, "code": failure.code, "message": failure.message}
                _log.warning("a mail's function failed", **about, at=place(error))
                if pause_s is None or not failure.retryable:
                    return failure.code, failure.message
                await asyncio.sleep(pause_s)
        return None

    async def _give(self, hosted: Agent, agent: AgentId, mailed: Mailed, body: bytes) -> None:
        note = mailed.note
        envelope = Envelope(
            id=mailed.id, performative=Performative(note.performative), sender=note.sender, receiver=agent, topic=note.topic,
            conversation=note.conversation or mailed.id, in_reply_to=note.in_reply_to, sent_at=note.sent_at,
            trace=note.trace, body=body,
        )  # fmt: skip
        listener = hosted.listeners.get(note.topic) or hosted.listeners.get(note.performative)
        offered = hosted.offered.get(note.topic) if listener is None and note.is_direct else None
        if listener is not None:
            await self._hear(listener, agent, envelope, mailed.is_repeat)
        elif offered is not None:
            await self._perform(offered, agent, hosted, envelope)
        elif note.is_direct:
            about = f"topic {note.topic!r}" if note.topic else f"a {note.performative} without a topic"
            raise Untakable(f"{agent} has no function for {about}")

    async def _hear(self, listener: Listener, agent: AgentId, envelope: Envelope, is_repeat: bool) -> None:
        signature = listener.signature
        arguments = signature.decode(envelope.body) if signature.takes_input else None
        message = Message(envelope, partial(self._messages.reply, agent), fence=self._fence(), is_repeat=is_repeat)
        handles = (message,) if signature.handles else ()
        value = await self._performer.call(listener.function, signature, handles, arguments)
        if envelope.performative in ANSWERED and not message.is_answered:
            self._messages.reply(agent, envelope, Performative.INFORM, value)

    async def _perform(self, offered: Offered, agent: AgentId, hosted: Agent, envelope: Envelope) -> None:
        call = Call(self._messages, envelope, agent, hosted, self._loop.time())
        await self._performer.perform(offered, envelope.body, lambda: Attempt(call), lambda: None)

    async def _body(self, mailed: Mailed, until: float) -> bytes | None:
        """None if the store was away for as long as the mail had time: no function fails by that. Raises NotFound, Corrupt."""
        body = mailed.note.body
        if not isinstance(body, Stored):
            return body if isinstance(body, bytes) else b"null"
        tell = Unready(_log, "a mail's body cannot be read; trying again", mail=mailed.id, key=body.key)
        try:
            async with asyncio.timeout_at(until):
                return await patiently(lambda: self._store.read(body.key), tell=tell)
        except TimeoutError:
            return None
        except NotFound as error:
            raise NotFound(f"its body is not in the store: {error.message}") from error

    # Groups

    def join(self, agent: Agent, group: str) -> None:
        """The agent is in the group, or no longer: the leader is told until the log has it."""
        if self._find(agent.name) is agent:
            self._groups[AgentId(f"{self._node}/{agent.name}"), group] = group in agent.groups
            self._tell_groups()

    def _tell_groups(self) -> None:
        self._groups_at = self._loop.time()
        changes = [(agent, group, joins) for (agent, group), joins in self._groups.items()]
        for start in range(0, len(changes), AT_ONCE):
            self._post(InGroups(tuple(changes[start : start + AT_ONCE])))

    def grouped(self, item: Grouped) -> None:
        for agent, group, joins in item.changes:
            if self._groups.get((agent, group)) is joins:
                del self._groups[agent, group]
