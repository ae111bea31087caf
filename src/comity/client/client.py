"""What callers use: submit tasks and await them, talk to agents, see who is here, and run the network."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any, TypeVar, Unpack

from comity.bus.base import Bus, Link
from comity.bus.outbox import Outbox
from comity.client import files, looking, negotiating, network, parts
from comity.client.borrowing import borrow
from comity.client.collaborating import invite
from comity.client.exchange import Exchange
from comity.client.later import DeadLetters, Schedules
from comity.client.live import LiveCall, check_repeats
from comity.client.mail import Groups, Mail
from comity.client.sightings import TOPICS
from comity.client.task import Pausing, Task
from comity.client.terms import FOREVER, Scope, TaskOptions, name_of, terms, words
from comity.client.turns import PER_TURN
from comity.config import Settings
from comity.directory import Directory
from comity.errors import BadInput, DeadlineExceeded, TimedOut, UnknownAgent, Unreachable
from comity.model.capability import Requirements, Strategy
from comity.model.codec import to_json
from comity.model.envelope import Envelope, Performative
from comity.model.envelope import performative as performative_named
from comity.model.ids import AgentId, ProcessId, TaskId, check_task_id, check_token, node_of
from comity.model.limits import NAME_MAX, check_text, check_timeout
from comity.model.mail import Outgoing
from comity.model.task import LOG_LIMIT, TaskSpec
from comity.model.wire import Item
from comity.registry.base import Registry
from comity.store.base import Store

F = TypeVar("F", bound=Callable[..., Any])


class Client:
    """A process's way into the network. It works against the doors alone; ``comity.connect`` opens them.

    ``wall`` gives seconds since 1970; ``rng`` must be hard to guess outside tests. With an ``outbox`` the client is
    hosted by a node, which passes what it receives to ``handle``.
    """

    __slots__ = ("_exchange", "_scope")

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
        self._exchange = Exchange(bus, registry, store, settings, wall=wall, rng=rng, outbox=outbox)
        self._scope = Scope()

    def child(
        self,
        *,
        sender: str = "",
        parent: TaskId | None = None,
        parent_epoch: int = 0,
        deadline: float = FOREVER,
        pausing: Pausing | None = None,
        trace: str = "",
        outgoing: Callable[[Outgoing], None] | None = None,
    ) -> Client:
        """The same client speaking for an agent or an attempt: its messages are from ``sender``, its tasks are children
        of ``parent`` (at ``parent_epoch``) that end with it and by its ``deadline`` (the loop's clock); see ``Scope``."""
        child = object.__new__(Client)
        child._exchange = self._exchange
        child._scope = Scope(sender, parent, parent_epoch, deadline, pausing, trace, outgoing)
        return child

    async def open(self) -> None:
        """Listen, and look for the leader (without waiting for it). Raises Disconnected, AccessDenied."""
        await self._exchange.open()

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until a leader answers. Raises Unreachable after ``timeout`` seconds (default ``request_timeout_s``)."""
        await self._made(self._wait_s(timeout))

    async def _made(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._exchange.contact.made()
        except TimeoutError:
            raise Unreachable(f"no controller leads, or none can be reached: tried for {wait_s:g} s") from None

    async def ended(self) -> None:
        """Wait until nothing can come of this client any more, and raise why: Disconnected, or ForeignData (another network
        answers where ours did)."""
        await self._exchange.ended.wait()
        self._exchange.check_open()

    async def close(self) -> None:
        """Leave. Every wait, now and later, ends in Disconnected; tasks go on. The doors are their owner's to close."""
        await self._exchange.close()

    def sightings(self, tell: Callable[[Envelope], None]) -> None:
        """``tell`` the hosting node of agents that join and leave, as messages."""
        self._exchange.sightings.follow(tell)

    def handle(self, item: Item, sender: ProcessId) -> bool:
        """Take in an item that arrived at the hosting node; False if it is not (or not only) for the client."""
        return self._exchange.handle(item, sender)

    @property
    def process(self) -> ProcessId:
        return self._exchange.bus.process

    @property
    def depot(self) -> files.Depot:
        """What the process keeps in the store for its messages."""
        return self._exchange.depot

    @property
    def directory(self) -> Directory:
        """The watched copy of the registry. ``discover`` waits until it is there."""
        return self._exchange.directory

    def on_link(self, call: Callable[[bool], None]) -> None:
        """``call(up)`` whenever the connection breaks or stands again. Waits go on meanwhile."""
        self._exchange.bus.on_state(lambda link: call(link is Link.UP) if link is not Link.CLOSED else None)

    def leader_ms(self) -> int:
        """What the leader's clock reads now, in milliseconds since 1970, as told when contact was made."""
        return self._exchange.contact.now_ms()

    async def holds_lease(self, node: ProcessId, incarnation: int) -> bool:
        """Whether the log has it so that a node holds its lease now. Raises Unreachable, TimedOut."""
        said = await self._exchange.ask("lease", {"id": node, "by": incarnation})
        return bool(said["is_held"])

    def set_time(self, now_ms: int) -> None:
        """The leader's clock read ``now_ms`` a moment ago (a node learns it with every beacon)."""
        self._exchange.contact.set_time(now_ms)

    # Tasks

    async def submit(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - the word everybody uses for it
        *,
        key: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Ask the network to do a task. It is durable when this returns, and will end: completed, failed or canceled.

        ``capability`` may carry versions (``review>=1.2``); ``input`` is a JSON object of the function's arguments, or
        its only argument. A task with the same ``key`` is the same task. See ``TaskOptions`` for the others. Raises
        BadInput (InvalidInput names the place), NotSerializable, Overloaded, ShuttingDown, UnknownCapability or NoAgent
        (``queue`` False), and the Indefinite ones: Unreachable, TimedOut, TooOld, Disconnected.
        """
        return (await self._submit(capability, "" if key is None else key, options, [input]))[0]

    async def submit_many(self, capability: str, inputs: Iterable[Any], **options: Unpack[TaskOptions]) -> list[Task]:
        """Submit one task for each input; their handles, in order, once all are durable. Nothing is sent if an input is
        bad. Of an error later, ``details["accepted"]`` lists the ids of those accepted. See ``submit``."""
        return await self._submit(capability, "", options, list(inputs))

    stream = parts.stream

    async def _submit(self, need: str, key: str, options: TaskOptions, inputs: list[Any]) -> list[Task]:
        exchange = self._exchange
        exchange.check_open()
        now, name = exchange.loop.time(), name_of(need)[0]
        patience_s = options.get("patience_s") or 0.0
        until = now + exchange.settings.submit_timeout_s + patience_s
        if options.get("at") is not None:  # by the leader's clock
            await self._timely(until)
            now = exchange.loop.time()
        await exchange.look()
        agreed = terms(
            need, key, options, submitter=self.process, scope=self._scope, settings=exchange.settings,
            known=self.directory.capability(name), now=now, now_ms=exchange.contact.now_ms(),
        )  # fmt: skip
        payloads: list[bytes] = []
        for start in range(0, len(inputs), PER_TURN):
            await exchange.turns.take(min(PER_TURN, len(inputs) - start))
            payloads += self.directory.encode(name, inputs[start : start + PER_TURN])
        await self._timely(until, agreed.deadline)
        specs: list[TaskSpec] = []
        for number, payload in enumerate(payloads, 1):
            if number % PER_TURN == 0:
                await asyncio.sleep(0)
            task = exchange.task_ids.next()
            is_small = len(payload) <= LOG_LIMIT
            carried = payload if is_small else await files.stored_input(exchange, task, payload, agreed, until)
            specs.append(agreed.task(task, carried))
        outcomes = await exchange.submissions.send(
            specs, queue=agreed.queue, deadline=agreed.deadline, start=agreed.start,
            timeout_s=self._left_s(max(0.0, until - exchange.loop.time()), agreed.deadline), patience_s=patience_s,
        )  # fmt: skip
        return [Task(exchange, outcome, self._scope.pausing) for outcome in outcomes]

    async def _timely(self, until: float, deadline: float = FOREVER) -> None:
        """Know the leader's time. Raises Unreachable."""
        if not self._exchange.contact.is_timely:
            self._exchange.contact.seek()
            await self._made(self._left_s(max(0.0, until - self._exchange.loop.time()), deadline))

    def _left_s(self, timeout_s: float, deadline: float) -> float:
        """The shorter of a time-out and what is left until ``deadline``. Raises DeadlineExceeded if nothing is."""
        left_s = deadline - self._exchange.loop.time()
        if left_s <= 0:
            raise DeadlineExceeded("its deadline had passed before it was sent", task=self._scope.parent)
        return min(timeout_s, left_s)

    @property
    def schedules(self) -> Schedules:
        """Tasks by the clock: add, list, remove."""
        return Schedules(self._exchange, self.directory.encode, self._timely)

    @property
    def dead(self) -> DeadLetters:
        """Failed tasks, kept to be looked at and replayed: list, replay, drop."""
        return DeadLetters(self._exchange, self.directory.encode)

    def task(self, id: str) -> Task:
        """The handle of a task submitted anywhere. Raises BadInput for what cannot be an id; whether there is such a
        task shows when the handle is used (UnknownTask)."""
        return Task(self._exchange, self._exchange.outcomes.of(check_task_id(id)), self._scope.pausing)

    async def cancel(self, task: Task | str, reason: str = "") -> dict[str, Any]:
        """Ask for a task's end. See ``Task.cancel``."""
        return await (task if isinstance(task, Task) else self.task(task)).cancel(reason)

    # Large things

    put_file, get_file = files.put_file, files.get_file

    # Messages

    async def request(
        self,
        target: str,
        body: Any = None,
        *,
        topic: str = "",
        performative: Performative | str = Performative.REQUEST,
        timeout: float | None = None,
        strategy: Strategy | str | None = None,
        requirements: Requirements | None = None,
        sticky: str = "",
        repeatable: bool = False,
        hedge_s: float | None = None,
    ) -> Any:
        """Ask an agent, live, and give the decoded body of its reply.

        ``target``: an agent's id (``node/name``), a capability, or else the name of one agent. For a capability the
        leader picks the agent, by ``strategy``, ``sticky`` and ``requirements``, and the next one if it refuses; ``topic``
        is then the capability's name unless given. Nothing is kept or repeated: after an Indefinite error it may have been
        done. Unless it is ``repeatable``: then another agent is asked if the first is lost before it answers, and a second
        one after ``hedge_s`` without an answer; the first answer counts. Raises UnknownAgent, UnknownCapability, NoAgent
        (nobody is free, or it refuses), PeerLost, TimedOut (``timeout`` seconds, default ``request_timeout_s``), TooLarge,
        BadInput, or what the agent's FAILURE says.
        """
        self._exchange.check_open()
        wait_s = self._left_s(self._wait_s(timeout), self._scope.deadline)
        until = self._exchange.loop.time() + wait_s
        data, how = await self._exchange.depot.carried(to_json(body), wait_s), performative_named(performative)
        agent = await self._agent(target, wait_s, or_capability=True)
        check_repeats(repeatable, hedge_s, named=agent is not None)
        if agent is not None:
            return await self._request(agent, data, topic, how, until)
        live = LiveCall(
            self._exchange, target, until, strategy=strategy, requirements=requirements, sticky=sticky, repeatable=repeatable
        )
        call = partial(self._request, data=data, topic=topic or live.capability, how=how, until=until)
        return await live.answer(call, hedge_s)

    async def _agent(self, target: str, timeout_s: float, *, or_capability: bool) -> AgentId | None:
        """The agent meant by an id or a name; None for a capability. Raises UnknownAgent, BadInput, TimedOut."""
        if "/" in check_text(target, "target", NAME_MAX * 2):
            check_token(node_of(AgentId(target)), "node")
            await self._exchange.look()  # so that nobody there can be told from nobody there any more
            return AgentId(target)
        await self.directory.ready(timeout_s)
        named = self.directory.named(target)
        if or_capability and (not named or self.directory.offers(target)):
            return None
        if not named:
            raise UnknownAgent(f"no agent is called {target!r}", name=target)
        if len(named) > 1:
            ids = ", ".join(agent.id for agent in named[:5])
            raise BadInput(f"{len(named)} agents are called {target!r}: {ids}; name one by its id", name=target)
        return named[0].id

    async def _named(self, target: str) -> AgentId:
        agent = await self._agent(target, self._exchange.settings.request_timeout_s, or_capability=False)
        assert agent is not None
        return agent

    async def _request(self, agent: AgentId, data: tuple[bytes, str], topic: str, how: Performative, until: float) -> Any:
        left_s = until - self._exchange.loop.time()
        if left_s <= 0:
            raise TimedOut(f"no time was left to ask {agent}", agent=agent)
        messages, scope = self._exchange.messages, self._scope
        envelope = messages.envelope(
            *data, sender=scope.sender, timeout_s=left_s, performative=how, receiver=agent, topic=topic, trace=scope.trace
        )
        return await messages.request(agent, envelope, left_s)

    async def send(
        self,
        target: str,
        body: Any = None,
        *,
        topic: str = "",
        performative: Performative | str = Performative.INFORM,
        conversation: str = "",
        in_reply_to: str = "",
        strategy: Strategy | str | None = None,
        requirements: Requirements | None = None,
        sticky: str = "",
        durable: bool = False,
        ttl_s: float | None = None,
    ) -> str:
        """Tell an agent (by id, or by name if it is the only one), one that offers a capability (``topic`` is then its name
        unless given) or a process something; the message's id. Live: no reply is awaited, and whether it arrives is not
        known. Raises UnknownAgent, UnknownCapability, NoAgent, BadInput, TooLarge.

        ``durable``: it is on disk when this returns, and is kept for ``ttl_s`` seconds (default ``mail_ttl_s``) until the
        agent's function has returned, whether or not the agent is here now; of those that offer a capability the next live
        one. Raises MailboxFull, Overloaded, and the Indefinite errors of a submit as well. Inside an attempt it is sent with
        the next step, checkpoint or end, or not at all, and has no id before.
        """
        self._exchange.check_open()
        if durable:
            if strategy is not None or requirements is not None or sticky:
                raise BadInput("durable mail goes to the next agent in turn: no strategy, requirements or sticky")
            return await self.mail.post(
                body, to=target, topic=topic, performative=performative, conversation=conversation,
                in_reply_to=in_reply_to, ttl_s=ttl_s,
            )  # fmt: skip
        wait_s = self._exchange.settings.request_timeout_s
        agent = await self._agent(target, wait_s, or_capability=True)
        if agent is None:
            if not self.directory.offers(name_of(target)[0]):
                raise UnknownAgent(f"no agent is called {target!r}, and none offers it", name=target)
            until = self._exchange.loop.time() + wait_s
            live = LiveCall(self._exchange, target, until, strategy=strategy, requirements=requirements, sticky=sticky)
            agent, topic = await live.agent(), topic or live.capability
        messages, scope, how = self._exchange.messages, self._scope, performative_named(performative)
        envelope = messages.envelope(
            *await self._exchange.depot.carried(to_json(body)), sender=scope.sender, performative=how,
            receiver=agent, topic=topic, conversation=conversation, in_reply_to=in_reply_to, trace=scope.trace,
        )  # fmt: skip
        messages.post(node_of(agent), envelope)
        return envelope.id

    async def broadcast(
        self,
        body: Any = None,
        *,
        topic: str = "",
        tags: Iterable[str] = (),
        performative: Performative | str = Performative.INFORM,
        group: str = "",
        durable: bool = False,
        ttl_s: float | None = None,
    ) -> str:
        """Tell every agent that listens to the topic, all with ``tags``, or those in ``group``, and (without either) every
        client; not the sender. ``durable``, as for ``send``: whoever of them is registered now, or in the group, has it in the
        end; who has it yet, tells ``receipts``. Raises BadInput, TooLarge, and if durable what ``send`` raises."""
        self._exchange.check_open()
        if group and (tags := words(tags)):
            raise BadInput("tell a group, or those with tags: not both", group=group)
        if durable:
            return await self.mail.post(
                body, group=group, tags=tags, topic=topic, performative=performative, ttl_s=ttl_s
            )
        if group:
            check_token(group, "a group")
        messages, scope, how = self._exchange.messages, self._scope, performative_named(performative)
        envelope = messages.envelope(
            *await self._exchange.depot.carried(to_json(body)), sender=scope.sender, performative=how,
            topic=topic, tags=words(tags), group=group, trace=scope.trace,
        )  # fmt: skip
        messages.broadcast(envelope)
        return envelope.id

    @property
    def mail(self) -> Mail:
        """Durable mail: list what waits, show who has it, look at dead letters."""
        return Mail(self._exchange, self._scope, self._timely)

    @property
    def groups(self) -> Groups:
        """Groups of agents: list, watch."""
        return Groups(self._exchange, self.events)

    async def receipts(self, id: str) -> dict[str, Any]:
        """Who has a durable mail (``has``), who has not yet (``has_not``), to whom it is ``dead``. Raises NotFound."""
        return await self.mail.show(id)

    def on(self, topic: str) -> Callable[[F], F]:
        """Receive messages of a topic (or performative) with a function, plain or async: as a decorator, at any time.
        As with ``Agent.on``, a parameter annotated ``Message`` gets the message and another one its typed body, and
        what it returns for a request becomes the reply. Raises BadInput, Conflict."""
        exchange = self._exchange
        if topic in TOPICS.values():
            exchange.sightings.follow(lambda envelope: exchange.listeners.deliver(envelope, self.process))
        return exchange.listeners.on(topic, sys._getframe(1).f_locals)

    def off(self, topic: str) -> None:
        self._exchange.listeners.off(topic)

    # Negotiations

    call_for_proposals, request_via = negotiating.call_for_proposals, negotiating.request_via
    query_if, query_ref, subscribe = negotiating.query_if, negotiating.query_ref, negotiating.subscribe
    ping, borrow, invite = negotiating.ping, borrow, invite

    # Who is here

    discover, performance, watch = looking.discover, looking.performance, looking.watch
    capabilities, describe = looking.capabilities, looking.describe

    # The network

    events, stats, head = network.events, network.stats, network.head
    tasks, agents, why = network.tasks, network.agents, network.why
    nodes, node, set_strategy, shutdown = network.nodes, network.node, network.set_strategy, network.shutdown
    pause, resume, remove = network.pause, network.resume, network.remove

    def _wait_s(self, timeout: float | None) -> float:
        return check_timeout(timeout) or self._exchange.settings.request_timeout_s
