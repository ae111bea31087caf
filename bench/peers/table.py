"""Figures of several rounds, as tables: for a terminal and for a page alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

BEGIN = "<!-- peers: from here on written by `make bench-peers` -->"
END = "<!-- peers: to here -->"

COLUMNS = {
    "tasks/s": "tasks_per_s",
    "CPU µs/task": "cpu_us_per_task",
    "idle p50 ms": "p50_ms",
    "idle p99 ms": "p99_ms",
    "idle CPU µs/task": "idle_cpu_us_per_task",
    "lost": "lost",
    "duplicated": "duplicated",
    "pace µs": "pace_us",
}
COUNTS = ("lost", "duplicated")
"""Not averaged: what happened in any round happened."""


def over_rounds(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each figure its median, least and most."""
    by_key = {key: [one[key] for one in rounds] for key in (rounds[0] if rounds else {})}
    return {key: {"median": median(values), "min": min(values), "max": max(values)} for key, values in by_key.items()}


def tables(report: dict[str, Any]) -> str:
    """The whole report in Markdown."""
    systems = report["systems"]
    figures = _table(("system", *COLUMNS), [_row(system) for system in systems])
    promises = _table(
        ("system", "accepted means", "a broker's `kill -9` may lose", "a power cut may lose"),
        [(system["name"], system["accepted"], system["killed"], system["power_cut"]) for system in systems],
    )
    notes = [f"- **{system['name']}** ({', '.join(system['versions'])}): {system['settings']}." for system in systems]
    return "\n".join([_said(report["settings"]), "", figures, "", promises, "", *notes])


def _said(settings: dict[str, Any]) -> str:
    return (
        f"{settings['count']:,} tasks with {settings['payload']} bytes each, then {settings['sequential']:,} one after the "
        f"other; {settings['workers']} workers; median (least to most) of {settings['rounds']} rounds; {settings['machine']}."
    )


def _row(system: dict[str, Any]) -> list[str]:
    figures = system["figures"]
    if system["problem"]:
        return [system["name"], system["problem"], *[""] * (len(COLUMNS) - 1)]
    return [system["name"], *(_cell(key, figures.get(key)) for key in COLUMNS.values())]


def _cell(key: str, figure: dict[str, float] | None) -> str:
    if figure is None:
        return "-"
    if key in COUNTS:
        return _number(figure["max"])
    middle, least, most = (_number(figure[which]) for which in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least}-{most})"


def _number(value: float) -> str:
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_into(page: Path, text: str) -> None:
    """Put ``text`` between the page's two marks. Raises ValueError if they are not there."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: put {BEGIN} and {END} there")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
