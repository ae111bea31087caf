"""Door: the bus carries bytes between processes, live.

Promises, each held by a test of the conformance suite:

- at most once, lowest latency; nothing is kept for a process that is away
- order per sender and subject
- an address reaches one process (``to/ID``), any one member of a group (``any/NAME``) or every subscriber (``topic/NAME``)
- a sender is who the bus says: a process can publish only as itself
- sending to an address nobody subscribes to is reported (``on_unreachable``), within milliseconds and without waiting
- ``request`` ends in a reply, Unreachable (definite for the peer: nobody is subscribed) or TimedOut
- a subscription works when ``subscribe`` returns; after a reconnect all subscriptions stand again before ``on_state`` says so
- a process may subscribe to one address several times; each receiver gets every message that reaches the process (in a
  group, a process is one member however many receivers it has)
- a receiver that raises harms no other: the error goes to the event loop's exception handler
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Protocol

from comity.errors import BadInput
from comity.model.ids import ProcessId, check_token

Address = str


def to(process: ProcessId | str) -> Address:
    return f"to/{process}"


def any_of(group: str) -> Address:
    return f"any/{group}"


def topic(name: str) -> Address:
    return f"topic/{name}"


LEADER = topic("leader")
"""Where the leading controller listens; only it subscribes. A deposed one may still, briefly: terms sort that out."""
EVERYONE = topic("all")
"""Every node and client listens here."""


def split(address: Address) -> tuple[str, str]:
    """Kind (to, any, topic) and name of an address, or BadInput."""
    kind, _, name = address.partition("/")
    if kind not in ("to", "any", "topic"):
        raise BadInput(f"{address!r} is not an address: to/PROCESS, any/GROUP or topic/NAME", value=address)
    return kind, check_token(name, "address")


class Delivery:
    """One message. ``reply`` is where an answer goes, if the sender used ``request``."""

    __slots__ = ("data", "reply", "sender")

    def __init__(self, sender: ProcessId, data: bytes, reply: str = "") -> None:
        self.sender = sender
        self.data = data
        self.reply = reply


class Link(enum.StrEnum):
    """State of the connection to the bus."""

    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


Receive = Callable[[Delivery], None]
Cancel = Callable[[], Awaitable[None]]


class Bus(Protocol):
    process: ProcessId

    @property
    def link(self) -> Link: ...

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        """Call ``receive`` (quick, not a coroutine) for each message. Returns once it works; the result ends it, and is
        idempotent. Raises Disconnected, AccessDenied."""
        ...

    async def send(self, address: Address, data: bytes) -> None:
        """Hand a message to the bus. Returns when it is on its way, which is not delivery. Raises Disconnected (nothing was
        sent, nothing is kept for later: a resend from a buffer after a reconnect would surprise), TooLarge."""
        ...

    async def request(self, address: Address, data: bytes, timeout_s: float) -> bytes:
        """Send and wait for one reply. Raises Unreachable, TimedOut, Disconnected, TooLarge, AccessDenied."""
        ...

    async def reply(self, delivery: Delivery, data: bytes) -> None:
        """Answer a request; whether the requester still waits is not known. Raises Disconnected, TooLarge, BadInput (it
        asks for no answer)."""
        ...

    def on_unreachable(self, call: Callable[[Address], None]) -> None:
        """``call(address)`` whenever something was sent where nobody listens."""
        ...

    def on_state(self, call: Callable[[Link], None]) -> None:
        """``call(link)`` on every change of the connection."""
        ...

    def on_departure(self, call: Callable[[ProcessId], None]) -> bool:
        """``call(process)`` when the bus sees that a process's newest connection closed: a hint, to be confirmed by a probe.
        False if this bus (or its credentials) cannot see that."""
        ...

    @property
    def servers(self) -> int:
        """How many servers this process knows of, by any of which it may be connected."""
        ...

    def change_server(self) -> None:
        """Connect by way of another of them, as after a lost connection."""
        ...

    async def close(self) -> None:
        """Flush what was sent, then leave. Idempotent."""
        ...
