"""Questions under way: to the leader (repeated until it answers) and to a node. One future and one number for each."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import msgspec

from comity.bus.base import LEADER, Address
from comity.bus.outbox import Outbox
from comity.client.contact import Contact
from comity.client.timers import Alarm, Timers
from comity.errors import ComityError, PeerLost, TimedOut, Unreachable, from_wire
from comity.model.codec import from_json
from comity.model.wire import Answer, Item, Pong, Routed

SILENCE_S = 2.0
"""After so long without an answer, make sure of the leader and repeat."""


class Call:
    __slots__ = ("address", "future", "item", "posted_at", "what")

    def __init__(self, address: Address, item: Item, what: str, future: asyncio.Future[Any]) -> None:
        self.address = address
        self.item = item
        self.what = what
        self.future = future
        self.posted_at = float("-inf")


class Calls:
    """Every question asked here may be asked twice: it reads, or changes something to a given value."""

    def __init__(self, contact: Contact, outbox: Outbox, timers: Timers, rng: Random) -> None:
        self._contact = contact
        self._outbox = outbox
        self._timers = timers
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Call] = {}
        self._watch: Alarm | None = None
        self._closed: ComityError | None = None
        contact.on_renewed(self._renew)

    def number(self) -> int:
        """A fresh number that nobody can guess."""
        return self._rng.getrandbits(53)

    async def ask(self, address: Address, item: Item, number: int, timeout_s: float, what: str) -> Any:
        """The answer to ``item``, which carries ``number``: decoded JSON, or a ``Routed``. Raises what the answer says,
        PeerLost (nobody listens at a node's address), Unreachable (no leader), TimedOut, NotSerializable, TooLarge."""
        if self._closed is not None:
            raise self._closed
        call = Call(address, item, what, self._loop.create_future())
        alarm = self._timers.after(timeout_s, lambda: self._late(number, timeout_s))
        self._open[number] = call
        self._keep_watch()
        try:
            self._post(call)
            return await call.future
        finally:
            alarm.cancel()
            del self._open[number]

    def _post(self, call: Call) -> None:
        if call.address == LEADER and not self._contact.is_up:
            self._contact.seek()
            return
        try:
            self._outbox.post(call.address, call.item)
        except ComityError as error:  # it can never be sent
            call.future.set_exception(error)
        call.posted_at = self._loop.time()

    def on_answer(self, item: Answer) -> bool:
        """Whether ``item`` answers one of these."""
        call = self._open.get(item.ref)
        if call is None:
            return False
        if item.code == "not-leader":
            self._contact.seek(lost=True)
        elif not call.future.done():
            try:
                value = from_json(item.body)
            except ComityError as error:
                call.future.set_exception(error)
                return True
            if item.code:
                call.future.set_exception(from_wire(item.code, value.get("message", ""), value.get("details")))
            else:
                call.future.set_result(value)
        return True

    def on_routed(self, item: Routed) -> None:
        call = self._open.get(item.ref)
        if call is not None and not call.future.done():
            call.future.set_result(item)

    def on_pong(self, item: Pong) -> bool:
        """Whether it answers a ping of ours."""
        call = self._open.get(item.ref)
        if call is not None and not call.future.done():
            call.future.set_result(None)
        return call is not None

    def on_unreachable(self, address: Address) -> None:
        """Nobody listens at ``address``. (Leaders are replaced; nodes are not.)"""
        if address != LEADER:
            for call in self._open.values():
                if call.address == address and not call.future.done():
                    call.future.set_exception(PeerLost(f"nobody answers at {address}", address=address))

    def _late(self, number: int, timeout_s: float) -> None:
        call = self._open[number]
        if not call.future.done():
            if call.posted_at > float("-inf"):
                error: ComityError = TimedOut(f"no answer to {call.what!r} within {round(timeout_s, 2):g} s")
            else:
                error = Unreachable(f"no controller leads, or none can be reached: asked for {round(timeout_s, 2):g} s")
            call.future.set_exception(error)

    def _renew(self, lost: bool) -> None:
        """In touch with the leader: repeat what it has not answered, all of it or what is overdue."""
        before = self._loop.time() - (0.0 if lost else SILENCE_S)
        for call in self._open.values():
            if call.address == LEADER and call.posted_at <= before and not call.future.done():
                self._post(call)

    def _keep_watch(self) -> None:
        if self._watch is None and self._open:
            self._watch = self._timers.after(SILENCE_S, self._look)

    def _look(self) -> None:
        self._watch = None
        before = self._loop.time() - SILENCE_S
        for call in self._open.values():
            if call.posted_at <= before and not call.future.done():
                if call.address == LEADER:
                    self._contact.seek()
                else:
                    self._post(call)
        self._keep_watch()

    def close(self, error: ComityError) -> None:
        """Every question, now and later, ends in ``error``."""
        self._closed = error
        for call in self._open.values():
            if not call.future.done():
                call.future.set_exception(error)


def arguments(given: dict[str, Any]) -> bytes:
    """A question's arguments as JSON, without those not given (None)."""
    return msgspec.json.encode({key: value for key, value in given.items() if value is not None})
