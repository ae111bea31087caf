"""Names of things. A task id carries its shard and its creation time, so nothing needs a look-up to order or route it.

``TaskId`` is 24 characters, lower-case Crockford base 32 (sorts by time as text):

    2  shard      "00" while a network has one log
    9  time       milliseconds since 1970 in leader time (45 bits)
    13 unique     random prefix of the maker and a counter
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NewType

from comity.errors import BadInput

NetworkId = NewType("NetworkId", str)
ProcessId = NewType("ProcessId", str)
"""A program on the bus: a node, a client or a controller. Letters, digits, ``-`` and ``_``; one token of a subject."""
NodeId = ProcessId
AgentId = NewType("AgentId", str)
"""``node/name``: unique in the network, routable without a look-up."""
TaskId = NewType("TaskId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_AS_INT = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
TASK_ID_LENGTH = 24
TOKEN_MAX = 64

EPOCH_BITS = 40


def base32(value: int, width: int) -> str:
    """``value`` in ``width`` characters, most significant first; higher bits are dropped."""
    out = ""
    while width >= 2:
        out = _PAIRS[value & 1023] + out
        value >>= 10
        width -= 2
    return _ALPHABET[value & 31] + out if width else out


class TaskIds:
    """Makes task ids for one process. ``now_ms`` gives leader time; ``seed`` is 40 random bits of this process."""

    def __init__(self, now_ms: Callable[[], int], seed: int, shard: str = "00") -> None:
        self._now_ms = now_ms
        self._shard = shard
        self._seed = base32(seed, 8)
        self._count = 0
        self._stamp = (-1, "")

    def next(self) -> TaskId:
        ms = self._now_ms()
        if ms != self._stamp[0]:
            self._stamp = (ms, self._shard + time_text(ms) + self._seed)
        self._count = (self._count + 1) & 0x1FFFFFF
        return TaskId(self._stamp[1] + base32(self._count, 5))


def check_task_id(text: str) -> TaskId:
    """``text`` as a task id, or BadInput."""
    if len(text) != TASK_ID_LENGTH or text.strip(_ALPHABET):  # nothing is left of what has only such letters
        raise BadInput(f"{text[:80]!r} is not a task id", value=text[:80])
    return TaskId(text)


def task_time_ms(task: TaskId) -> int:
    """When the id was made, in milliseconds since 1970, leader time."""
    return int(task[2:11].translate(_AS_INT), 32)


def time_text(ms: int) -> str:
    """A time as the part of an id that tells it: these sort as the times do."""
    return base32(ms, 9)


def check_token(text: str, what: str) -> str:
    """``text`` if it can be one token of a subject (letters, digits, ``-``, ``_``; at most 64), or BadInput."""
    if not (0 < len(text) <= TOKEN_MAX) or not text.isascii() or not text.replace("-", "").replace("_", "").isalnum():
        raise BadInput(f"{what} {text[:80]!r} must be 1 to {TOKEN_MAX} letters, digits, '-' or '_'", value=text[:80])
    return text


def shown_urls(urls: Iterable[str]) -> str:
    """Addresses as they may be shown: without the passwords in them."""
    return ", ".join(re.sub(r"//[^/@]*@", "//", url) for url in urls)


def agent_id(node: ProcessId, name: str) -> AgentId:
    return AgentId(f"{node}/{check_token(name, 'agent name')}")


def node_of(agent: AgentId) -> ProcessId:
    """The node that hosts ``agent``; BadInput if the id has no node part."""
    node, slash, _ = agent.partition("/")
    if not slash:
        raise BadInput(f"{agent!r} is not an agent id (node/name)", value=agent)
    return ProcessId(node)


def epoch(generation: int, n: int) -> int:
    """A fencing token: a restored backup raises ``generation`` above any token ever issued."""
    return (generation << EPOCH_BITS) | n
