"""Finds out for the leader, which no longer hears from some node, whether we still reach it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from comity.bus.base import Address, to
from comity.errors import BadInput, Overloaded
from comity.model.codec import UNREADABLE
from comity.model.ids import NodeId, ProcessId
from comity.model.wire import Answer, Control, Item, Ping, Pong

PATIENCE_S = 1.0
AT_ONCE = 256


class Args(msgspec.Struct):
    node: str


class Probe(NamedTuple):
    ref: int
    asked_by: ProcessId
    node: NodeId
    timer: asyncio.TimerHandle
    began: float


class Probing:
    """Probes under way, by the number of their ping. ``other`` takes an answer that is to none of them."""

    def __init__(self, post: Callable[[Address, Item], None], other: Callable[[Item, ProcessId], bool]) -> None:
        self._post = post
        self._other = other
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Probe] = {}

    def begin(self, order: Control, asked_by: ProcessId) -> None:
        """Ping the node that ``order`` names; answered once it answers, or did not for ``PATIENCE_S``. Raises BadInput,
        Overloaded."""
        try:
            node = NodeId(ProcessId(msgspec.json.decode(order.args, type=Args).node))
        except UNREADABLE as error:
            raise BadInput(f"{order.what}: {error}") from error
        if len(self._open) >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} probes are under way already", retry_after_s=PATIENCE_S)
        self._count += 1
        number = self._count
        timer = self._loop.call_later(PATIENCE_S, self._end, number, False)
        self._open[number] = Probe(order.ref, asked_by, node, timer, self._loop.time())
        self._post(to(node), Ping(number))

    def answered(self, item: Pong, sender: ProcessId) -> None:
        probe = self._open.get(item.ref)
        if probe is None:
            self._other(item, sender)
        elif probe.node == sender:
            self._end(item.ref, True)

    def unreachable(self, address: Address) -> None:
        """Nobody listens there."""
        for number, probe in list(self._open.items()):
            if address == to(probe.node):
                self._end(number, False)

    def _end(self, number: int, seen: bool) -> None:
        probe = self._open.pop(number)
        probe.timer.cancel()
        body = {"node": probe.node, "seen": seen, "after_s": round(self._loop.time() - probe.began, 4)}
        self._post(to(probe.asked_by), Answer(probe.ref, "", msgspec.json.encode(body)))

    def close(self) -> None:
        for probe in self._open.values():
            probe.timer.cancel()
        self._open.clear()
