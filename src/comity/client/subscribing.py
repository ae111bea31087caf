"""To listen from the beginning on, although the connection breaks just then."""

from __future__ import annotations

from comity.bus.base import Address, Bus, Cancel, Link, Receive
from comity.patience import patiently


async def subscribe(bus: Bus, address: Address, receive: Receive, limit_s: float) -> Cancel:
    """Once the bus is connected. Raises AccessDenied, Disconnected (for good, or for ``limit_s`` seconds)."""
    return await patiently(lambda: bus.subscribe(address, receive), limit_s, hopeless=lambda: bus.link is Link.CLOSED)
