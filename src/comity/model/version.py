"""Which Comity this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed() -> str:
    """The version installed; "unknown" if it was not installed but only put on the path."""
    try:
        return version("comity")
    except PackageNotFoundError:
        return "unknown"
