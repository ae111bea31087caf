"""What an agent tells of itself beside what it offers, and how each fact is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from comity.model.capability import AgentStatus, Resources
from comity.model.limits import LINE_MAX, check_amount, check_line, check_whole, check_word


def _tags(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError("a set of words, not one text")
    return tuple(sorted({check_word(tag, "a tag") for tag in value}))


def _resources(value: Resources | Mapping[str, float]) -> Resources:
    given = msgspec.structs.asdict(value) if isinstance(value, Resources) else value
    return Resources(**{name: check_amount(amount, name) for name, amount in dict(given).items()})


def _status(value: AgentStatus | str) -> AgentStatus:
    status = AgentStatus(value)
    if status is AgentStatus.LEFT:
        raise ValueError("an agent that is here cannot be set to left: take it off its node with comity agents remove")
    return status


def _line(value: str) -> str:
    return check_line(value, "it")


def _lines_by_word(value: Mapping[str, str]) -> dict[str, str]:
    given = dict(value)
    return {check_word(key, "a name"): check_line(text, f"{key}", LINE_MAX) for key, text in given.items()}


FACTS: dict[str, Callable[[Any], Any]] = {
    "tags": _tags, "labels": _lines_by_word, "resources": _resources, "status": _status,
    "concurrency": lambda value: check_whole(value, "it", 1), "weight": lambda value: check_amount(value, "it"),
    "region": _line, "zone": _line, "endpoints": _lines_by_word, "version": _line, "kind": _line,
}  # fmt: skip
"""By name: what makes a sound value of what was given. Raises BadInput, TypeError, ValueError."""
