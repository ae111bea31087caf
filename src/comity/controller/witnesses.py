"""Who still sees a node that the leader suspects: it asks some nodes that it reaches itself. A node that others see is not dead:
the network between it and the leader is cut, or one way only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import msgspec

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.model.codec import UNREADABLE
from comity.model.ids import NodeId, ProcessId
from comity.model.wire import Answer, Control

ASKED = 5
PATIENCE_S = 1.5
"""Longer than a witness waits itself."""


class Seen(msgspec.Struct):
    """What a witness says."""

    seen: bool


class Round:
    """One question: ``said`` has who was asked, and who answered what."""

    __slots__ = ("node", "said", "timer")

    def __init__(self, node: NodeId, asked: list[NodeId], timer: asyncio.TimerHandle) -> None:
        self.node = node
        self.said: dict[NodeId, bool | None] = dict.fromkeys(asked)
        self.timer = timer


class Witnesses:
    """``states`` are the leader's own views of its nodes; ``notice`` takes a kind of event and what it is about."""

    def __init__(
        self, process: ProcessId, outbox: Outbox, states: Mapping[NodeId, tuple[str, str]], notice: Callable[..., None]
    ) -> None:
        self._process = process
        self._outbox = outbox
        self._states = states
        self._notice = notice
        self._rounds: dict[int, Round] = {}
        self._count = 0

    def suspected(self, node: NodeId) -> None:
        """Ask who sees it, unless that is being asked."""
        if any(known.node == node for known in self._rounds.values()):
            return
        alive = (other for other, (state, _) in self._states.items() if state in ("alive", "draining") and other != node)
        asked = list(islice(alive, ASKED))
        if not asked:
            return
        self._count += 1
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._conclude, self._count)
        self._rounds[self._count] = Round(node, asked, timer)
        question = Control(self._count, "probe", msgspec.json.encode({"node": node}))
        for witness in asked:
            self._outbox.post(to(witness), question)

    def answered(self, item: Answer, sender: ProcessId) -> None:
        known = self._rounds.get(item.ref)
        if known is None or sender not in known.said or item.code:
            return
        try:
            known.said[sender] = msgspec.json.decode(item.body, type=Seen).seen
        except UNREADABLE:
            return  # as if it had not answered
        if None not in known.said.values():
            self._conclude(item.ref)

    def _conclude(self, number: int) -> None:
        known = self._rounds.pop(number)
        known.timer.cancel()
        node, said = known.node, known.said
        seen = [witness for witness, answer in said.items() if answer]
        unseen = [witness for witness, answer in said.items() if answer is False]
        silent = [witness for witness, answer in said.items() if answer is None]
        about: dict[str, Any] = {"node": node, "seen_by": seen, "unseen_by": unseen, "silent": silent}
        if seen:
            but = f", nor by {', '.join(unseen)}" if unseen else ""
            reason = f"{node}: seen by {', '.join(seen)}, not by the leader ({self._process}){but}"
            self._notice("partition.suspected", **about, reason=reason)
        else:
            none = f"{node}: not seen by {', '.join(unseen)} either" if unseen else f"{node}: nobody who was asked answered"
            self._notice("node.unseen", **about, reason=none)

    def end(self) -> None:
        for known in self._rounds.values():
            known.timer.cancel()
        self._rounds.clear()
