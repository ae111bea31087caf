"""What a task's terms are called on the command line: options that several commands share, and lengths and moments of time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from comity import Retry

Priority = Annotated[int, typer.Option("--priority", metavar="0..9", help="Higher first.")]
Deadline = Annotated[
    float | None,
    typer.Option("--deadline", metavar="SECONDS", help="Fail it if it has not ended by then, counted from when it may start."),
]
Tags = Annotated[list[str], typer.Option("--tag", metavar="TAG", help="Only agents with this tag.")]
Needs = Annotated[
    list[str], typer.Option("--require", metavar="KEY=VALUE", help="What its agent must have: label=zone:a, gpu=1 ...")
]
StrategyName = Annotated[
    str | None,
    typer.Option("--strategy", metavar="NAME", help="least_loaded, round_robin, weighted_random, best_fit or power_of_two."),
]
Sticky = Annotated[str | None, typer.Option("--sticky", metavar="KEY", help="The same key goes to the same agent.")]
Retries = Annotated[int | None, typer.Option("--retries", metavar="N", help="How often it is tried again after a failure.")]
RetryFirst = Annotated[str | None, typer.Option("--retry-first", metavar="TIME", help="Pause before the first retry: 10s.")]
RetryFactor = Annotated[float | None, typer.Option("--retry-factor", metavar="X", help="Each further pause is X times as long.")]
RetryMax = Annotated[str | None, typer.Option("--retry-max", metavar="TIME", help="No pause is longer.")]
NoRetry = Annotated[list[str], typer.Option("--no-retry", metavar="ERROR", help="Not after this error, such as ValueError.")]
Silence = Annotated[
    str | None, typer.Option("--progress-timeout", metavar="TIME", help="Move an attempt that shows no progress for so long.")
]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")


def length(text: str) -> float:
    """``90``, ``90s``, ``10m``, ``1h30m``, ``2d`` in seconds. Raises BadInput."""
    from comity.errors import BadInput

    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise BadInput(f"{text!r} is no length of time; write 90s, 10m, 1h30m or 2d")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def moment(text: str, now: datetime) -> datetime:
    """``2026-12-01T09:00`` (local time, unless it says its zone), or ``09:00``: the next time it is that. Raises BadInput."""
    from comity.errors import BadInput

    try:
        if re.fullmatch(r"\d{1,2}:\d\d(:\d\d)?", text):
            hour, minute, second = map(int, (f"{text}:0").split(":")[:3])
            at = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
            return at if at > now else at + timedelta(days=1)
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{text!r} is no moment; write 2026-12-01T09:00 or 09:00") from None
    return at if at.tzinfo is not None else at.astimezone()


def ago(text: str, now: datetime) -> datetime:
    """A moment, or a length of time before now. Raises BadInput."""
    return now - timedelta(seconds=length(text)) if _PART.match(text) and not re.search(r"[-:T]", text) else moment(text, now)


def retry(first: str | None, factor: float | None, most: str | None, no_retry: list[str]) -> Retry | None:
    """What was said of retries, beside their number; None if nothing was. Raises BadInput."""
    from comity import Retry

    first_s, max_s = (length(text) if text is not None else None for text in (first, most))
    said = Retry(None, first_s, factor, max_s, tuple(no_retry))
    return said if said != Retry() else None


def given(**options: Any) -> dict[str, Any]:
    """Those that were."""
    return {name: value for name, value in options.items() if value is not None}
