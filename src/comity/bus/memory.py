"""The bus within one process: for tests, for a simulated world, for a network without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TypeVar

from comity.bus.base import Address, Cancel, Delivery, Link, Receive, split
from comity.errors import BadInput, Disconnected, TimedOut, TooLarge, Unreachable
from comity.model.ids import ProcessId, check_token

T = TypeVar("T")

Carry = Callable[[ProcessId, ProcessId, Callable[[], None]], None]
"""``carry(sender, receiver, deliver)`` decides the fate of a message: call ``deliver`` later, in order or not, twice, never."""


def in_order(sender: ProcessId, receiver: ProcessId, deliver: Callable[[], None]) -> None:
    """The kind network: everything arrives at the next turn of the event loop, in the order in which it was sent."""
    asyncio.get_running_loop().call_soon(deliver)


class MemoryNetwork:
    """What the buses of one network share. Faults: replace ``carry``; ``disconnect`` and ``reconnect`` a process.

    ``sees_departures`` False is a network whose credentials do not show who leaves.
    """

    def __init__(
        self, carry: Carry = in_order, *, sees_departures: bool = True, payload_limit: int = 1024 * 1024
    ) -> None:
        self.carry = carry
        self.sees_departures = sees_departures
        self.payload_limit = payload_limit
        self._buses: dict[ProcessId, list[MemoryBus]] = {}
        self._listening: dict[Address, list[MemoryBus]] = {}
        self._turns: dict[Address, int] = {}
        self._numbers = count(1)

    def disconnect(self, process: ProcessId, *, noticed: bool = True) -> None:
        """Break the process's newest connection. ``noticed`` False: the others are not told, as when its server dies too."""
        self._buses[process][-1]._break(noticed=noticed)

    def reconnect(self, process: ProcessId) -> None:
        """Mend the process's newest connection; its subscriptions stand again."""
        self._buses[process][-1]._mend()

    def _members(self, address: Address) -> list[MemoryBus]:
        return [bus for bus in self._listening.get(address, ()) if bus.link is Link.UP]

    def _route(self, sender: ProcessId, address: Address, data: bytes, reply: str) -> bool:
        """Put a message on its way to whoever listens; False if nobody does."""
        members = self._members(address)
        if len(members) > 1 and address.startswith("any/"):
            turn = self._turns[address] = self._turns.get(address, -1) + 1
            members = [members[turn % len(members)]]
        delivery = Delivery(sender, data, reply)
        for bus in members:
            self.carry(sender, bus.process, partial(bus._deliver, address, delivery))
        return bool(members)

    def _depart(self, gone: MemoryBus) -> None:
        if self.sees_departures and self._buses[gone.process][-1] is gone:
            for buses in self._buses.values():
                for bus in buses:
                    if bus.link is Link.UP:
                        bus._tell(bus._departure_calls, gone.process)


class MemoryBus:
    """One process's end of a ``MemoryNetwork``. See ``base.Bus``."""

    def __init__(self, network: MemoryNetwork, process: ProcessId) -> None:
        self.process = ProcessId(check_token(process, "process id"))
        self._network = network
        self._link = Link.UP
        self._receivers: dict[Address, tuple[Receive, ...]] = {}
        self._waiting: dict[str, tuple[Address, asyncio.Future[bytes]]] = {}
        self._state_calls: list[Callable[[Link], None]] = []
        self._unreachable_calls: list[Callable[[Address], None]] = []
        self._departure_calls: list[Callable[[ProcessId], None]] = []
        network._buses.setdefault(self.process, []).append(self)

    @property
    def link(self) -> Link:
        return self._link

    @property
    def servers(self) -> int:
        return 1

    def change_server(self) -> None:
        """There is no other."""

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        split(address)
        self._need_link()
        if address not in self._receivers:
            self._network._listening.setdefault(address, []).append(self)
        self._receivers[address] = (*self._receivers.get(address, ()), receive)
        canceled = False

        async def cancel() -> None:
            nonlocal canceled
            if not canceled and self._link is not Link.CLOSED:
                self._unsubscribe(address, receive)
            canceled = True

        return cancel

    def _unsubscribe(self, address: Address, receive: Receive) -> None:
        left = list(self._receivers[address])
        left.remove(receive)
        if left:
            self._receivers[address] = tuple(left)
        else:
            del self._receivers[address]
            self._network._listening[address].remove(self)

    async def send(self, address: Address, data: bytes) -> None:
        self._send(address, data)

    async def request(self, address: Address, data: bytes, timeout_s: float) -> bytes:
        loop = asyncio.get_running_loop()
        number = str(next(self._network._numbers))
        answer: asyncio.Future[bytes] = loop.create_future()
        late = TimedOut(f"no answer from {address} within {timeout_s} s", address=address)
        timer = loop.call_later(timeout_s, self._fail, number, late)
        self._waiting[number] = (address, answer)
        try:
            if not self._send(address, data, reply=f"{self.process}/{number}"):
                loop.call_soon(self._fail, number, Unreachable(f"nobody listens at {address}", address=address))
            return await answer
        finally:
            timer.cancel()
            del self._waiting[number]

    async def reply(self, delivery: Delivery, data: bytes) -> None:
        if not delivery.reply:
            raise BadInput("this message asks for no answer")
        self._check(data)
        requester, _, number = delivery.reply.partition("/")
        for bus in self._network._buses[ProcessId(requester)]:
            self._network.carry(self.process, bus.process, partial(bus._answered, self.process, number, data))

    def on_unreachable(self, call: Callable[[Address], None]) -> None:
        self._unreachable_calls.append(call)

    def on_state(self, call: Callable[[Link], None]) -> None:
        self._state_calls.append(call)

    def on_departure(self, call: Callable[[ProcessId], None]) -> bool:
        self._departure_calls.append(call)
        return self._network.sees_departures

    async def close(self) -> None:
        if self._link is Link.CLOSED:
            return
        was_up = self._link is Link.UP
        self._change(Link.CLOSED)
        for address in self._receivers:
            self._network._listening[address].remove(self)
        self._receivers.clear()
        if was_up:
            self._network._depart(self)
        self._network._buses[self.process].remove(self)

    def _need_link(self) -> None:
        if self._link is not Link.UP:
            raise Disconnected(f"{self.process} is not connected to the bus")

    def _check(self, data: bytes) -> None:
        self._need_link()
        if len(data) > self._network.payload_limit:
            raise TooLarge(
                f"a message of {len(data)} bytes is too large for the bus", limit=self._network.payload_limit
            )

    def _send(self, address: Address, data: bytes, reply: str = "") -> bool:
        split(address)
        self._check(data)
        reached = self._network._route(self.process, address, data, reply)
        if not reached:
            self._tell(self._unreachable_calls, address)
        return reached

    def _deliver(self, address: Address, delivery: Delivery) -> None:
        if self._link is Link.UP:
            for receive in self._receivers.get(address, ()):
                try:
                    receive(delivery)
                except Exception as error:  # one receiver's fault is not another's
                    context = {"message": f"a receiver of {address} failed", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)

    def _answered(self, sender: ProcessId, number: str, data: bytes) -> None:
        if number in self._waiting and self._link is Link.UP:
            address, answer = self._waiting[number]
            if not answer.done() and (not address.startswith("to/") or address == f"to/{sender}"):
                answer.set_result(data)

    def _fail(self, number: str, error: Exception) -> None:
        if number in self._waiting and not self._waiting[number][1].done():
            self._waiting[number][1].set_exception(error)

    def _break(self, *, noticed: bool) -> None:
        if self._link is Link.UP:
            self._change(Link.DOWN)
            if noticed:
                self._network._depart(self)

    def _mend(self) -> None:
        if self._link is Link.DOWN:
            self._change(Link.UP)

    def _change(self, link: Link) -> None:
        self._link = link
        self._tell(self._state_calls, link)
        if link is not Link.UP:
            for number in self._waiting:
                self._fail(number, Disconnected("the connection broke before an answer came"))

    def _tell(self, calls: list[Callable[[T], None]], value: T) -> None:
        for call in calls:
            asyncio.get_running_loop().call_soon(call, value)
