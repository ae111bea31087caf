"""One process's dealings with the network: what it sent and still waits for, and where what arrives goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

from comity.bus.base import EVERYONE, LEADER, Address, Bus, Cancel, Delivery, Link, to
from comity.bus.outbox import Outbox
from comity.client.calls import Calls, arguments
from comity.client.complaints import Complaints
from comity.client.contact import Contact
from comity.client.dialog import Talks
from comity.client.files import JSON, Depot, is_large
from comity.client.finding import Finding
from comity.client.listeners import Listeners
from comity.client.messages import Messages
from comity.client.outcomes import Outcomes
from comity.client.posts import Posts
from comity.client.readings import Readings
from comity.client.sightings import Sightings
from comity.client.streams import Streams
from comity.client.submissions import Submissions
from comity.client.subscribing import subscribe
from comity.client.timers import Timers
from comity.client.turns import Turns
from comity.config import Settings
from comity.directory import Directory
from comity.errors import ComityError, Disconnected, InvalidInput
from comity.model import wire
from comity.model.codec import to_json
from comity.model.envelope import Envelope, Performative
from comity.model.ids import ProcessId, TaskId, TaskIds
from comity.model.limits import check_text, check_timeout
from comity.model.parts import NoParts, Part, PartsEnd, PartsOffered
from comity.model.payload import LOG_LIMIT, Payload
from comity.model.wire_mail import MailTaken, StreamOver
from comity.patience import in_time
from comity.registry.base import Registry
from comity.store.base import Store

T = TypeVar("T")

FIRST_LOOK_S = 1.0
"""How long the first submit waits for the copy of the registry, to check inputs against schemas."""


class Exchange:
    """Hosted (``outbox`` given): the process's node passes on what arrives, and goes to another server if need be. Else it
    subscribes, and goes, for itself."""

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        store: Store,
        settings: Settings,
        *,
        wall: Callable[[], float],
        rng: Random,
        outbox: Outbox | None = None,
    ) -> None:
        self.bus = bus
        self.store = store
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.outbox = outbox or Outbox(bus)
        self.is_hosted = outbox is not None
        self.malformed = 0
        self.ended = asyncio.Event()
        self.timers = Timers(self.loop)
        self.turns = Turns(self.loop)
        self.directory = Directory(registry, self.loop.time)
        self.finding = Finding(self.directory, self.ask, self.loop.time)
        self.contact = Contact(bus, self.outbox, self.timers, rng, self.fail, strays=not self.is_hosted)
        self.calls = Calls(self.contact, self.outbox, self.timers, rng)
        self.outcomes = Outcomes(self.contact, self.timers, self.turns)
        self.submissions = Submissions(self.contact, self.outcomes, self.timers, self.turns, rng.random)
        self.streams = Streams(self.contact, self.timers, rng)
        self.readings = Readings(bus, self.outbox, self.timers, rng, lambda task: self.ask("task", {"id": task}))
        self.depot = Depot(store, bus.process, wall, settings.request_timeout_s, self.ended.is_set)
        self.messages = Messages(bus.process, self.outbox, self.directory, self.timers, rng, wall, self.depot)
        complaints = Complaints(self.contact.post, self.loop.time)
        self.talks = Talks(bus.process, self.messages, self.outbox, self.timers, complaints)
        self.listeners = Listeners(self._reply, self.depot)
        self.sightings = Sightings(bus.process, self.directory, wall)
        self.task_ids = TaskIds(self.contact.now_ms, rng.getrandbits(40))
        self.posts = Posts(self.contact, self.timers, self.task_ids.next)
        self._subscriptions: list[Cancel] = []
        self._look_until = float("inf")
        self._closed: ComityError | None = None
        bus.on_unreachable(self.calls.on_unreachable)
        bus.on_unreachable(self.messages.on_unreachable)
        bus.on_state(self._on_link)
        self._take: dict[type, Callable[[Any, ProcessId], bool]] = {
            wire.Accepted: self._on_accepted,
            wire.Refused: self._on_refused,
            wire.Ended: self._on_ended,
            wire.Answer: self._on_answer,
            wire.Routed: self._on_routed,
            wire.EventNotice: self._on_notice,
            wire.Leading: self._on_leading,
            wire.Message: self._on_message,
            PartsOffered: self._to(self.readings.on_offered),
            Part: self._to(self.readings.on_part),
            PartsEnd: self._to(self.readings.on_end),
            NoParts: self._to(self.readings.on_none),
            wire.Pong: lambda item, _: self.calls.on_pong(item),
            MailTaken: self._on_mail,
            StreamOver: self._on_mail,
        }

    async def open(self) -> None:
        """Listen, and look for the leader. Raises Disconnected, AccessDenied."""
        if not self.is_hosted:
            for address in (to(self.bus.process), EVERYONE):
                limit_s = self.settings.request_timeout_s
                self._subscriptions.append(await subscribe(self.bus, address, self._receive, limit_s))
        self.contact.seek()

    async def close(self, error: ComityError | None = None) -> None:
        """Leave. Every wait, now and later, ends in Disconnected. The doors are their owner's to close."""
        self.fail(error or Disconnected("the connection was closed"))
        self.listeners.close()
        self.timers.close()
        await self.directory.close()
        if not self.is_hosted:
            await self.outbox.drain()
            if self.bus.link is Link.UP:
                for cancel in self._subscriptions:
                    await cancel()
        self._subscriptions.clear()

    def fail(self, error: ComityError) -> None:
        """End every wait in ``error``."""
        if self._closed is None:
            self._closed = error
            self.ended.set()
            self.contact.end(error)
            self.calls.close(error)
            self.outcomes.close(error)
            self.submissions.close(error)
            self.streams.end(error)
            self.readings.end()
            self.messages.close(error)
            self.posts.close(error)

    def check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    def _on_link(self, link: Link) -> None:
        if link is Link.CLOSED:
            self.fail(Disconnected("the connection was closed"))

    async def timely(self, work: Callable[[], Awaitable[T]], until: float) -> T:
        """Do ``work``, which may be done twice, before what depends on it: that has at least a tenth of the time ``until`` then.
        Raises Indefinite errors."""
        return await in_time(work, until - (until - self.loop.time()) / 10, hopeless=self.ended.is_set)

    # What arrives

    def _receive(self, delivery: Delivery) -> None:
        try:
            items = wire.decode(delivery.data)
        except InvalidInput:
            self.malformed += 1
            return
        for item in items:
            if not self.handle(item, delivery.sender) and type(item) is wire.Ping:
                self.outbox.post(to(delivery.sender), wire.Pong(item.ref))

    def handle(self, item: wire.Item, sender: ProcessId) -> bool:
        """Take in ``item``; False if it is not meant for a client (or not only: ``Leading``)."""
        take = self._take.get(type(item))
        return take is not None and take(item, sender)

    @staticmethod
    def _to(take: Callable[[Any, ProcessId], None]) -> Callable[[Any, ProcessId], bool]:
        """``take`` as one of those that say whether an item was theirs: it is."""

        def taken(item: Any, sender: ProcessId) -> bool:
            take(item, sender)
            return True

        return taken

    def _on_accepted(self, item: wire.Accepted, sender: ProcessId) -> bool:
        if self.contact.is_leader(sender):
            self.submissions.on_accepted(item)
        return True

    def _on_refused(self, item: wire.Refused, sender: ProcessId) -> bool:
        if self.contact.is_leader(sender):
            self.submissions.on_refused(item)
        return True

    def _on_ended(self, item: wire.Ended, sender: ProcessId) -> bool:
        if self.contact.is_leader(sender):
            self.outcomes.on_ended(item)
        return True

    def _on_answer(self, item: wire.Answer, sender: ProcessId) -> bool:
        return self.contact.on_answer(item, sender) or self.calls.on_answer(item)

    def _on_routed(self, item: wire.Routed, _: ProcessId) -> bool:
        self.calls.on_routed(item)
        return True

    def _on_notice(self, item: wire.EventNotice, _: ProcessId) -> bool:
        self.streams.on_notice(item)
        return True

    def _on_leading(self, item: wire.Leading, sender: ProcessId) -> bool:
        self.contact.on_leading(item, sender)
        return False

    def _on_mail(self, item: MailTaken | StreamOver, sender: ProcessId) -> bool:
        if self.contact.is_leader(sender):
            if isinstance(item, MailTaken):
                self.posts.on_taken(item)
            else:
                self.posts.on_over(item)
        return True

    def _on_message(self, item: wire.Message, sender: ProcessId) -> bool:
        envelope = item.envelope
        if envelope.in_reply_to and self.messages.on_reply(envelope, sender):
            return True
        if envelope.in_reply_to and envelope.protocol and envelope.receiver == self.bus.process:
            self.talks.stray(envelope, sender)
            return True
        if self.is_hosted:
            return False
        if envelope.sender.partition("/")[0] != sender:
            self.malformed += 1  # speaks in another's name
            return True
        is_echo = not envelope.receiver and sender == self.bus.process
        if not is_echo and not envelope.tags and not envelope.group:  # a plain client has no tags, and is in no group
            self.listeners.deliver(envelope, sender)
        return True

    def _reply(self, to_this: Envelope, sender: ProcessId, performative: Performative, body: Any) -> None:
        data = to_json(body)
        if is_large(data):
            self.listeners.spawn(self._reply_large(to_this, sender, performative, data))
        else:
            self._answer(to_this, sender, performative, data)

    async def _reply_large(self, to_this: Envelope, sender: ProcessId, performative: Performative, data: bytes) -> None:
        try:
            self._answer(to_this, sender, performative, *await self.depot.carried(data))
        except ComityError as error:
            said = to_json({"code": error.code, "message": error.message})
            self._answer(to_this, sender, Performative.FAILURE, said)

    def _answer(self, to_this: Envelope, sender: ProcessId, how: Performative, data: bytes, content_type: str = JSON) -> None:
        answer = self.messages.envelope(
            data, content_type, sender="", performative=how, receiver=to_this.sender, topic=to_this.topic,
            conversation=to_this.conversation, in_reply_to=to_this.id, trace=to_this.trace,
        )  # fmt: skip
        self.messages.post(sender, answer)

    # What is asked

    async def ask(self, what: str, args: dict[str, Any], timeout_s: float | None = None) -> Any:
        """The leader's answer to a question. Raises what it says, Unreachable, TimedOut."""
        ref = self.calls.number()
        return await self._call(LEADER, wire.Ask(ref, what, arguments(_sendable(args))), ref, what, timeout_s)

    async def send_asking(self, item: Callable[[int], wire.Item], what: str, timeout_s: float | None = None) -> Any:
        """The leader's answer to an item that is a question of its own kind, made with the number it is asked under."""
        ref = self.calls.number()
        return await self._call(LEADER, item(ref), ref, what, timeout_s)

    async def cancel(self, task: TaskId, reason: str, timeout_s: float | None = None) -> Any:
        """What a task is, once it is asked to end."""
        ref = self.calls.number()
        return await self._call(LEADER, wire.CancelTask(ref, task, reason), ref, "cancel", timeout_s)

    async def answer(self, task: TaskId, name: str, data: bytes, timeout_s: float | None = None) -> Any:
        """What a task is, once it has its answer. A large one goes by the store."""
        ref = self.calls.number()
        carried: Payload = data
        until = self.loop.time() + (check_timeout(timeout_s) or self.settings.request_timeout_s)
        if len(data) > LOG_LIMIT:
            key, ttl_s = f"{self.bus.process}/answers/{task}/{ref}", self.settings.keep_finished_s
            carried = await self.timely(lambda: self.store.put(key, data, ttl_s=ttl_s), until)
        left_s = max(until - self.loop.time(), 0.001)
        return await self._call(LEADER, wire.AnswerTask(ref, task, name, carried), ref, "answer", left_s)

    async def control(self, node: ProcessId, what: str, args: dict[str, Any], timeout_s: float | None = None) -> Any:
        """What a node says to being told. Raises PeerLost if nobody listens there."""
        ref = self.calls.number()
        return await self._call(to(node), wire.Control(ref, what, arguments(_sendable(args))), ref, what, timeout_s)

    async def _call(self, address: Address, item: wire.Item, ref: int, what: str, timeout_s: float | None) -> Any:
        self.check_open()
        wait_s = check_timeout(timeout_s) or self.settings.request_timeout_s
        return await self.calls.ask(address, item, ref, wait_s, what)

    async def rate(self, task: TaskId, score: float, timeout_s: float | None = None) -> None:
        """Write a rating down. A leader that was replaced meanwhile may not have: then again."""
        term: int | None = None
        while term != self.contact.term:
            await self.ask("barrier", {}, timeout_s)
            term = self.contact.term
            self.contact.post(wire.RateTask(task, score))
            await self.ask("barrier", {}, timeout_s)

    async def look(self) -> None:
        """Before the first calls: give the copy of the registry a moment to come, for inputs and errors are checked by it."""
        if not self.directory.is_loaded:
            now = self.loop.time()
            self._look_until = min(self._look_until, now + FIRST_LOOK_S)
            if now < self._look_until:
                await self.directory.load(self._look_until - now)


def _sendable(args: dict[str, Any]) -> dict[str, Any]:
    for name, value in args.items():
        if isinstance(value, str):
            check_text(value, name)
    return args
