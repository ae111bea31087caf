"""Long lists, asked for page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

LISTED_AT_ONCE = 250
"""Tasks in one answer, which must fit into a message."""


async def listed(
    ask: Callable[..., Awaitable[dict[str, Any]]], limit: int, before: str | None, **about: Any
) -> list[dict[str, Any]]:
    """Up to ``limit`` tasks, asked for page by page."""
    found: list[dict[str, Any]] = []
    while len(found) < limit:
        wanted = min(limit - len(found), LISTED_AT_ONCE)
        page = (await ask("tasks", limit=wanted, before=before, **about))["tasks"]
        found += page
        if len(page) < wanted:
            break
        before = page[-1]["id"]
    return found
