"""What the network measured, in words."""

from __future__ import annotations

from typing import Any

FIGURES = ("P50", "P95", "RATE", "SUCCESS")


def figures(row: dict[str, Any]) -> tuple[str, ...]:
    """What was measured, for a table; "" where nothing is known."""
    times = [_time(row[name]) if row.get(name) is not None else "" for name in ("p50_ms", "p95_ms")]
    rate, success = row.get("per_s"), row.get("success")
    return (*times, f"{rate:.3g}/s" if rate is not None else "", f"{success:.0%}" if success is not None else "")


def _time(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1000:.3g} s"
