"""What one process's end of a bus keeps, whatever carries it: who receives, which requests wait for an answer, whom to tell."""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Protocol, TypeVar

from comity.bus.base import Address, Cancel, Delivery, Link, Receive
from comity.errors import ComityError, Disconnected, TimedOut
from comity.model.ids import ProcessId, check_token

T = TypeVar("T")
log = logging.getLogger(__name__)


class Departures(Protocol):
    """Whoever sees that processes leave, and tells ``calls``."""

    calls: list[Callable[[ProcessId], None]]


class Request:
    """One that waits. ``name``: what the wire calls the place it was sent to."""

    __slots__ = ("address", "answer", "name")

    def __init__(self, name: str, address: Address, answer: asyncio.Future[bytes]) -> None:
        self.name, self.address, self.answer = name, address, answer

    def fail(self, error: ComityError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class BusEnd(ABC):
    """``faults`` counts what went wrong beside the calls: ``denied`` (the server refused something), ``forged`` (nobody vouches
    for the sender)."""

    def __init__(self, process: ProcessId, network: str) -> None:
        self.process = ProcessId(check_token(process, "process id"))
        self.network = check_token(network, "network")
        self.faults = {"denied": 0, "forged": 0}
        self._link = Link.CLOSED
        self._closing = False
        self._receivers: dict[Address, tuple[Receive, ...]] = {}
        self._changing = asyncio.Lock()
        self._waiting: dict[str, Request] = {}
        self._numbers = map(f"{secrets.token_hex(5)}{{}}".format, count(1))
        self._state_calls: list[Callable[[Link], None]] = []
        self._unreachable_calls: list[Callable[[Address], None]] = []
        self._sees: Departures | None = None

    @property
    def link(self) -> Link:
        return self._link

    def on_unreachable(self, call: Callable[[Address], None]) -> None:
        self._unreachable_calls.append(call)

    def on_state(self, call: Callable[[Link], None]) -> None:
        self._state_calls.append(call)

    def on_departure(self, call: Callable[[ProcessId], None]) -> bool:
        if self._sees is None:
            return False
        self._sees.calls.append(call)
        return True

    # Who receives

    def _received(self, address: Address, receive: Receive) -> Cancel:
        """From now on ``receive`` gets what comes to ``address``, which is subscribed to."""
        self._receivers[address] = (*self._receivers.get(address, ()), receive)
        return partial(self._cancel, address, receive, [])

    async def _cancel(self, address: Address, receive: Receive, done: list[bool]) -> None:
        if done:
            return
        done.append(True)
        async with self._changing:
            if self._closing or self._link is Link.CLOSED:
                return
            left = list(self._receivers[address])
            left.remove(receive)
            if left:
                self._receivers[address] = tuple(left)
                return
            del self._receivers[address]
            await self._leave(address)

    @abstractmethod
    async def _leave(self, address: Address) -> None:
        """End the subscription to ``address``, which nobody receives any more."""

    def _take(self, address: Address, delivery: Delivery) -> None:
        for receive in self._receivers.get(address, ()):
            try:
                receive(delivery)
            except Exception as error:  # one receiver's fault is not another's
                context = {"message": f"a receiver of {address} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    # What waits for an answer

    async def _ask(self, name: str, address: Address, timeout_s: float, publish: Callable[[str], Awaitable[None]]) -> bytes:
        """``publish`` a request under a number of its own; the answer that comes to it."""
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        request = self._waiting[number] = Request(name, address, loop.create_future())
        late = TimedOut(f"no answer from {address} within {timeout_s} s", address=address)
        timer = loop.call_later(timeout_s, request.fail, late)
        try:
            await publish(number)
            return await request.answer
        finally:
            timer.cancel()
            del self._waiting[number]

    # What is told

    def _fault(self, kind: str, text: str) -> None:
        self.faults[kind] = number = self.faults[kind] + 1
        if number & (number - 1) == 0:  # the first, then ever fewer
            log.warning("%s: %s (%s no. %d)", self.process, text, kind, number)

    def _change(self, link: Link) -> None:
        if self._link in (link, Link.CLOSED) or (self._closing and link is not Link.CLOSED):
            return
        self._link = link
        self._tell(self._state_calls, link)
        if link is not Link.UP:
            for request in self._waiting.values():
                request.fail(Disconnected("the connection broke before an answer came"))

    @staticmethod
    def _tell(calls: list[Callable[[T], None]], value: T) -> None:
        for call in calls:
            asyncio.get_running_loop().call_soon(call, value)
