"""What everything that travels on internal subjects has in common."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Root of everything that travels on internal subjects."""
