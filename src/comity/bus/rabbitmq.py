"""The bus on RabbitMQ: one topic exchange for a network, one exclusive queue for a process, one for a group.

    exchange cy.NET         keys to.DEST.SENDER, any.GROUP.SENDER, topic.NAME.SENDER    messages
                                 re.REQUESTER.SENDER                                    answers, with the request's number
    queue cy.NET.q.PROCESS.NUMBER, cy.NET.any.GROUP

Each message carries the name of the user that sent it, which the server checks. A process with a user of its own, named like it,
believes only what other such users sent as themselves. Processes that share a user vouch for each other. Nothing is kept or
confirmed: ``mandatory`` brings back what nobody listens to, and an answer is a request's confirmation.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from pamqp import commands
from pamqp.base import Frame

from comity.amqp.address import Where
from comity.amqp.connection import ASKING, CONSUMING, Connection, Properties, Refusal, packed
from comity.amqp.line import Line
from comity.bus.base import Address, Cancel, Delivery, Link, Receive, any_of, split
from comity.bus.end import BusEnd
from comity.errors import AccessDenied, BadInput, ComityError, Disconnected, TooLarge, Unreachable
from comity.model.ids import ProcessId

PAYLOAD_LIMIT = 1024 * 1024
STALE_MS = 1000
"""What a group's queue keeps at most when the server comes back before its members."""
UNUSED_MS = 60_000
EVENTS = "amq.rabbitmq.event"
"""The exchange of the plugin rabbitmq_event_exchange."""
JOIN_AGAIN_S = 1.0
"""The server notes each attempt in vain in its own log."""
ECHO_S, ECHOED_S = 2.0, 3.0
"""How often a process sends to itself, and how soon that must have come; two that do not come are one too many."""
_DENIED, _GONE = 403, 404
_TRIES = 5
_ECHO = "echo"

log = logging.getLogger(__name__)


class RabbitBus(BusEnd):
    """One process's end of a network on RabbitMQ. See ``base.Bus``. Made by ``connect``.

    ``faults`` counts what went wrong beside the calls: ``denied`` (the server refused a key), ``forged`` (nobody vouches for the
    sender).
    """

    def __init__(self, where: Where, process: ProcessId, network: str) -> None:
        super().__init__(process, network)
        self.user = where.user
        self._exchange = f"cy.{self.network}"
        self._queue = ""
        self._line = Line(where, self.process, self._prepare, self._turned)
        self._plain = packed(Properties(user_id=self.user))
        self._departures: _Departures | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._echoing: asyncio.Task[None] | None = None
        self._echoed = asyncio.Event()

    @classmethod
    async def connect(
        cls, address: str | Where, *, process: str, network: str = "main", departures: bool = False, timeout_s: float = 2.0
    ) -> RabbitBus:
        """Join ``network`` as ``process``, trying for ``timeout_s``; later breaks are mended for ever.

        ``departures``: see them, if the server tells its events and lets this user hear them. Raises Unreachable, AccessDenied,
        BadSettings.
        """
        where = Where.parse(address) if isinstance(address, str) else address
        bus = cls(where, ProcessId(process), network)
        try:
            await bus._line.open(timeout_s)
            bus._link = Link.UP
            bus._echoing = asyncio.get_running_loop().create_task(bus._hear_itself())
            if departures:
                bus._sees = bus._departures = await _Departures.connect(bus._line.where, bus.process, bus._exchange, timeout_s)
        except BaseException:
            await bus.close()
            raise
        return bus

    @property
    def is_own(self) -> bool:
        """Whether this process has a user of its own, and with that a name that no other can take."""
        return self.user == self.process

    @property
    def server(self) -> str:
        """The server's version."""
        return str(self._line.connection.server.get("version", "?"))

    # Queues and what comes to them

    async def _prepare(self, connection: Connection) -> None:
        """Everything that a lost connection had. Raises Refusal, Disconnected."""
        connection.took = self._on_message
        connection.returned = self._on_returned
        connection.refused = self._on_refused
        connection.canceled = partial(self._on_canceled, connection)
        exchange = commands.Exchange.Declare(0, self._exchange, "topic", durable=True)
        try:  # to see that it is there needs no right to make it
            await connection.ask(ASKING, commands.Exchange.Declare(0, self._exchange, "topic", passive=True))
        except Refusal as error:
            if error.code != _GONE:
                raise
            await connection.ask(ASKING, exchange)
        self._queue = f"{self._exchange}.q.{self.process}.{secrets.token_hex(6)}"
        await connection.ask(ASKING, _queue(self._queue, exclusive=True))
        await connection.consume(self._queue)
        wanted = list(self._receivers)  # some may end meanwhile
        keys = [f"re.{self.process}.*", *map(_binding, wanted)]
        for key in keys:
            if not key.startswith("any."):
                connection.tell(ASKING, commands.Queue.Bind(0, self._queue, self._exchange, key, nowait=True))
        for address in wanted:
            if address.startswith("any/"):
                try:
                    await self._join(connection, address)
                except Refusal as error:
                    if error.code != _GONE:
                        raise
                    self._join_later(connection, address)
        await connection.ask(ASKING, commands.Queue.Bind(0, self._queue, self._exchange, keys[0]))
        for address in wanted:
            if address not in self._receivers:
                connection.forget(*self._end(connection, address))

    async def _join(self, connection: Connection, address: Address, tries: int = _TRIES) -> None:
        """Take part in a group's queue, which goes with its last member. Raises Refusal, Disconnected."""
        queue = self._group(address)
        for turn in range(tries):
            try:
                await connection.ask(ASKING, _queue(queue, durable=True))
                break
            except Refusal as error:  # it went in between
                if error.code != _GONE or turn == tries - 1:
                    raise
        await connection.consume(queue)
        await connection.ask(ASKING, commands.Queue.Bind(0, queue, self._exchange, _binding(address)))

    def _join_later(self, connection: Connection, address: Address) -> None:
        """A group's queue lies on one server of a cluster, and is away with it: all else goes on."""
        task = asyncio.get_running_loop().create_task(self._keep_joining(connection, address))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _keep_joining(self, connection: Connection, address: Address) -> None:
        while True:
            async with self._changing:  # nobody ends it meanwhile
                if address not in self._receivers or not connection.is_open:
                    return
                # While it is being prepared nothing else is asked: a refusal would end what is asked at the same time.
                if connection is self._line.connection and await self._has_joined(connection, address):
                    return
            await asyncio.sleep(JOIN_AGAIN_S)  # nobody tells when it is back

    async def _has_joined(self, connection: Connection, address: Address) -> bool:
        """Or need not any more."""
        try:
            await self._join(connection, address, 1)
        except Disconnected:
            return True
        except Refusal as error:
            if error.code == _GONE:
                return False
            connection.abort(error)
        return True

    def _on_canceled(self, connection: Connection, queue: str) -> None:
        group = queue.removeprefix(f"{self._exchange}.any.")
        if group == queue:
            connection.abort(
                Disconnected("the server ended the subscription to this process's own queue: it was deleted")
            )
        else:
            self._join_later(connection, any_of(group))

    def _group(self, address: Address) -> str:
        return f"{self._exchange}.any.{split(address)[1]}"

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        kind, _ = split(address)
        async with self._changing:
            self._need_link()
            if address not in self._receivers:
                connection = self._line.connection
                self._receivers[address] = ()
                try:
                    if kind == "any":
                        await self._join(connection, address)
                    else:
                        bind = commands.Queue.Bind(0, self._queue, self._exchange, _binding(address))
                        await connection.ask(ASKING, bind)
                except BaseException as error:
                    del self._receivers[address]
                    connection.forget(*self._end(connection, address))
                    if isinstance(error, Refusal):
                        kind_of = AccessDenied if error.code == _DENIED else Disconnected
                        raise kind_of(f"{self.process} cannot listen at {address}: {error}", address=address) from error
                    raise
            return self._received(address, receive)

    async def _leave(self, address: Address) -> None:
        if self._link is Link.UP:
            connection = self._line.connection
            try:
                await connection.ask(*self._end(connection, address))
            except (Disconnected, Refusal) as error:
                log.debug("%s: a subscription ended with its connection: %s", self.process, error)

    def _end(self, connection: Connection, address: Address) -> tuple[int, Frame]:
        """What ends a subscription, and on which channel."""
        if address.startswith("any/"):
            connection.consumed.discard(self._group(address))
            return CONSUMING, commands.Basic.Cancel(self._group(address))
        return ASKING, commands.Queue.Unbind(0, self._queue, self._exchange, _binding(address))

    # What is sent

    async def send(self, address: Address, data: bytes) -> None:
        kind, name = split(address)
        await self._publish(f"{kind}.{name}.{self.process}", data, self._plain, mandatory=True)

    async def request(self, address: Address, data: bytes, timeout_s: float) -> bytes:
        kind, name = split(address)
        key = f"{kind}.{name}.{self.process}"

        async def publish(number: str) -> None:
            properties = packed(Properties(user_id=self.user, reply_to=self.process, correlation_id=number))
            await self._publish(key, data, properties, mandatory=True)

        return await self._ask(key, address, timeout_s, publish)

    async def reply(self, delivery: Delivery, data: bytes) -> None:
        requester, _, number = delivery.reply.partition("/")
        if not requester:
            raise BadInput("this message asks for no answer")
        properties = packed(Properties(user_id=self.user, correlation_id=number))
        await self._publish(f"re.{requester}.{self.process}", data, properties, mandatory=False)

    async def _publish(self, key: str, data: bytes, properties: bytes, *, mandatory: bool) -> None:
        self._need_link()
        if len(data) > PAYLOAD_LIMIT:
            raise TooLarge(f"a message of {len(data)} bytes is too large for the bus", limit=PAYLOAD_LIMIT)
        await self._line.connection.publish(self._exchange, key, properties, data, mandatory=mandatory)

    def _need_link(self) -> None:
        if self._link is not Link.UP or not self._line.connection.is_open:
            raise Disconnected(f"{self.process} is not connected to the bus{self._line.why}")

    @property
    def servers(self) -> int:
        return len(self._line.where.hosts)

    def change_server(self) -> None:
        self._line.connection.abort(Disconnected("it goes to another server"))

    # What comes

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._echoing is not None:
            self._echoing.cancel()
            await asyncio.wait([self._echoing])
        if self._departures is not None:
            await self._departures.line.close()
        await self._line.close()
        if self._joining:
            await asyncio.wait(self._joining)
        self._change(Link.CLOSED)

    async def _hear_itself(self) -> None:
        """Servers of a cluster that make up may forget a queue whose connection stands: nothing comes by it any more, and nobody
        tells. What is sent to oneself tells."""
        key, missed = f"re.{self.process}.{self.process}", 0
        properties = packed(Properties(user_id=self.user, correlation_id=_ECHO))
        while True:
            await asyncio.sleep(ECHO_S)
            self._echoed.clear()
            connection = self._line.connection
            try:
                await self._publish(key, b"", properties, mandatory=False)
                async with asyncio.timeout(ECHOED_S):
                    await self._echoed.wait()
                missed = 0
            except Disconnected:
                missed = 0
            except TimeoutError:  # once it may be this process that stood still
                missed += 1
                if missed > 1:
                    connection.abort(Disconnected(f"{self.process} does not hear itself: its queue is lost"))
                    missed = 0

    def _on_message(self, key: str, properties: Properties, data: bytes) -> None:
        kind, _, rest = key.partition(".")
        name, _, sender = rest.partition(".")  # whatever it is: a header can bring a message to other keys than its own
        if not self._is_vouched(sender, properties):
            self._fault("forged", f"{properties.user_id or 'nobody'} sent a message as {sender or 'nobody'}")
            return
        if kind == "re":
            self._on_answer(sender, properties.correlation_id or "", data)
            return
        address = f"{kind}/{name}"
        number = properties.correlation_id
        delivery = Delivery(ProcessId(sender), data, f"{sender}/{number}" if number else "")
        self._take(address, delivery)

    def _is_vouched(self, sender: str, properties: Properties) -> bool:
        """The server vouches for the user; a user for those that bear its name, or share it with this process."""
        return properties.user_id == sender or (properties.user_id == self.user and not self.is_own)

    def _on_answer(self, sender: str, number: str, data: bytes) -> None:
        if number == _ECHO and sender == self.process:
            self._echoed.set()
        if number not in self._waiting:
            return  # it came too late
        address, answer = self._waiting[number].address, self._waiting[number].answer
        if address.startswith("to/") and address != f"to/{sender}":
            self._fault("forged", f"an answer from {address} came from {sender}")
        elif not answer.done():
            answer.set_result(data)

    def _on_returned(self, key: str, properties: Properties, data: bytes) -> None:
        kind, name, _ = key.split(".", 2)
        address = f"{kind}/{name}"
        self._tell(self._unreachable_calls, address)
        if properties.correlation_id in self._waiting:
            self._waiting[properties.correlation_id].fail(Unreachable(f"nobody listens at {address}", address=address))

    def _on_refused(self, refusal: Refusal) -> None:
        """The server refused something that was published, and took nothing that came after it."""
        for request in self._waiting.values():
            if f"'{request.name}'" in refusal.text:
                said = f"{self.process} may not send to {request.address}: {refusal}"
                request.fail(AccessDenied(said, address=request.address))
            else:
                request.fail(Disconnected(f"the server ended a channel: {refusal}"))
        self._fault("denied", refusal.text)

    def _turned(self, up: bool) -> None:
        self._change(Link.UP if up else Link.DOWN)


class _Departures:
    """Who leaves: the server tells when a queue is gone, and a process's queue goes with its connection.

    A process that came back may leave an old connection behind: its end is no departure. Queues are known by their names, which
    anybody may choose who may make queues: a departure is a hint.
    """

    def __init__(self, where: Where, process: str, exchange: str) -> None:
        self.calls: list[Callable[[ProcessId], None]] = []
        self.line = Line(where._replace(vhost=where.events), f"{process}.events", self._prepare, lambda up: None)
        self._vhost = where.vhost
        self._prefix = f"{exchange}.q."
        self._queue = f"{self._prefix}{process}.events"
        self._newest: dict[str, str] = {}

    @classmethod
    async def connect(cls, where: Where, process: str, exchange: str, timeout_s: float) -> _Departures | None:
        """None, with a note, if the server does not tell, or not us."""
        made = cls(where, process, exchange)
        try:
            await made.line.open(timeout_s)
        except ComityError as error:
            log.info("departures will not be seen: %s", error)
            await made.line.close()
            return None
        return made

    async def _prepare(self, connection: Connection) -> None:
        self._newest.clear()  # events were missed: better a hint too many than none
        connection.took = self._on_event
        queue = f"{self._queue}.{secrets.token_hex(6)}"
        await connection.ask(ASKING, _queue(queue, exclusive=True))
        for event in ("queue.created", "queue.deleted"):
            await connection.ask(ASKING, commands.Queue.Bind(0, queue, EVENTS, event))
        await connection.consume(queue)

    def _on_event(self, key: str, properties: Properties, data: bytes) -> None:
        headers = cast("dict[str, Any]", properties.headers or {})
        queue = str(headers.get("name", ""))
        process, dot, number = queue.removeprefix(self._prefix).partition(".")
        if not queue.startswith(self._prefix) or not dot or "." in number or headers.get("vhost") != self._vhost:
            return  # another network's, a group's, or like ours
        if key == "queue.created":
            self._newest[process] = number
        elif self._newest.get(process, number) == number:
            self._newest.pop(process, None)
            for call in self.calls:
                asyncio.get_running_loop().call_soon(call, ProcessId(process))


def _queue(name: str, *, exclusive: bool = False, durable: bool = False) -> commands.Queue.Declare:
    """``exclusive``: it goes with its connection. Otherwise it goes with its last consumer."""
    arguments: dict[str, Any] = {"x-queue-type": "classic"}  # whatever the virtual host's usual type is
    if durable:  # others than exclusive queues may be refused unless they are
        arguments |= {"x-message-ttl": STALE_MS, "x-expires": UNUSED_MS}
    return commands.Queue.Declare(
        0, name, exclusive=exclusive, durable=durable, auto_delete=True, arguments=cast("Any", arguments)
    )


def _binding(address: Address) -> str:
    return f"{address.replace('/', '.')}.*"
