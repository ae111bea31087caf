"""Moments as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(ms: int) -> str:
    """``ms`` since 1970 in ISO 8601, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
