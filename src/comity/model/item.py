"""The root of what processes say to each other; see ``wire``."""

from __future__ import annotations

import msgspec


class Item(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Root of everything that travels on internal subjects."""
