"""The report of a run: a summary for the terminal, a page in Markdown, and a timeline of throughput and faults in SVG."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from availability import ANSWER_S, FINISH_S, GOAL, Figures, nines
from load import Job
from nemesis import Fault

WIDTH, LEFT, RIGHT = 1120.0, 150.0, 10.0
CURVE, ROW, AXIS = 110.0, 15.0, 26.0
TICKS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1e9)


@dataclass
class Run:
    """What came of a run. ``problems`` empty: all is as promised."""

    stack: str
    seed: int
    every_s: float
    longest_s: float
    seconds: float = 0.0
    jobs: list[Job] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    figures: Figures | None = None


def write(run: Run, folder: Path) -> None:
    """``summary.txt``, ``timeline.svg`` and ``report.md`` into ``folder``, which is made."""
    folder.mkdir(parents=True)
    (folder / "summary.txt").write_text("\n".join(summary(run)) + "\n")
    (folder / "timeline.svg").write_text(timeline(run))
    (folder / "report.md").write_text("\n".join(page(run)) + "\n")


def summary(run: Run) -> list[str]:
    completed, canceled = (sum(job.state == state for job in run.jobs) for state in ("completed", "canceled"))
    accepted = sum(bool(job.task) for job in run.jobs)
    lines = [f"{run.stack}, seed {run.seed}: {run.seconds:.0f} s of load, {len(run.faults)} faults of {_kinds(run)} kinds"]
    lines.append(f"{len(run.jobs):,} tasks asked for, {accepted:,} accepted, {completed:,} completed, {canceled:,} canceled")
    if run.figures is not None:
        lines += availability(run.figures)
    lines += [f"left out: {kind} ({why})" for kind, why in run.skipped.items()]
    lines += [f"WRONG: {problem}" for problem in run.problems] or ["nothing lost, nothing twice, every answer explained"]
    return lines


def availability(figures: Figures) -> list[str]:
    """What callers saw, in sentences."""
    return [
        f"{figures.per_s:.0f} calls/s answered; a fault every {figures.fault_every_s:.0f} s",
        f"submits answered within {ANSWER_S:g} s: {figures.answered:.3%} ({_nines(figures.answered)})",
        f"tasks finished within {FINISH_S:g} s: {figures.finished:.3%} ({_nines(figures.finished)})",
        f"longest time without a finished task: {figures.longest_stop_s:.1f} s",
        f"{GOAL:.2%} of submits holds up to {_rate(figures.every_s_answered)}, of tasks up to {_rate(figures.every_s_finished)}",
    ]


def page(run: Run) -> list[str]:
    title = f"# Chaos, {run.stack}, seed {run.seed}"
    lines = [title, "", *[f"- {line}" for line in summary(run)], "", "![timeline](timeline.svg)", ""]
    if run.figures is None:
        return lines
    lines += [
        "Of each fault and the time until the next: how long submits were not answered in time, how long tasks were not finished",
        "in time (shares of the constant load, as seconds), and the longest time without a finished task.",
        "",
        "| at | fault | lasted | submits late | tasks late | stop |",
        "|---|---|---|---|---|---|",
    ]
    for fault, window in zip(run.faults, run.figures.windows, strict=True):
        figures = f"{window.lost_s:.1f} s | {window.late_s:.1f} s | {window.stop_s:.1f} s"
        what = f"{fault.kind}: {fault.what}".replace("|", "\\|")  # a cell's end otherwise
        lines.append(f"| {fault.began:.1f} s | {what} | {fault.ended - fault.began:.1f} s | {figures} |")
    lines += ["", "| kind | times | submits late, mean | tasks late, mean | longest stop |", "|---|---|---|---|---|"]
    for kind in sorted({window.kind for window in run.figures.windows}):
        mine = [window for window in run.figures.windows if window.kind == kind]
        lost, late = (sum(getattr(w, name) for w in mine) / len(mine) for name in ("lost_s", "late_s"))
        lines.append(f"| {kind} | {len(mine)} | {lost:.1f} s | {late:.1f} s | {max(w.stop_s for w in mine):.1f} s |")
    return lines


def _kinds(run: Run) -> int:
    return len({fault.kind for fault in run.faults})


def _nines(share: float) -> str:
    found = nines(share)
    return "all of them" if found == "all" else f"{found} {'nine' if found == '1' else 'nines'}"


def _rate(every_s: float) -> str:
    """``every_s`` between faults, in words."""
    if every_s <= 0:
        return "any rate seen here"
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if every_s >= 2 * size:
            return f"one fault every {every_s / size:.1f} {unit}"
    return f"one fault every {every_s:.0f} s"


def timeline(run: Run) -> str:
    """Tasks finished and submits answered in each second; below, a row for each kind of fault."""
    kinds = sorted({fault.kind for fault in run.faults})
    end = max([run.seconds, *(fault.ended for fault in run.faults), 1.0])
    height = CURVE + 14 + ROW * len(kinds) + AXIS
    scale = (WIDTH - LEFT - RIGHT) / end
    step = max(1.0, round(end / 480))
    ended = _counts([job.ended for job in run.jobs], end, step)
    answered = _counts([job.accepted for job in run.jobs], end, step)
    top = max([1.0, *ended, *answered])
    parts = [_grid(end, scale, height), _label(0, 16, "tasks/s"), _label(0, 32, f"up to {top:.0f}", faint=True)]
    parts.append(f'<path d="{_area(ended, step, scale, top)}" fill="#b6c9bb"><title>finished</title></path>')
    line = "M" + "L".join(f"{LEFT + (n + 0.5) * step * scale:.1f} {_y(count, top):.1f}" for n, count in enumerate(answered))
    parts.append(f'<path d="{line}" fill="none" stroke="#2f6f5e"><title>accepted</title></path>')
    for row, kind in enumerate(kinds):
        y = CURVE + 14 + row * ROW
        parts.append(_label(0, y + 10, kind))
        for fault in run.faults:
            if fault.kind == kind:
                x, width = LEFT + fault.began * scale, max(2.0, (fault.ended - fault.began) * scale)
                told = escape(f"{fault.kind}: {fault.what}, {fault.began:.1f} to {fault.ended:.1f} s")
                parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW - 3}" rx="1.5" fill="#c8553d">'
                             f"<title>{told}</title></rect>")  # fmt: skip
                parts.append(f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{CURVE}" fill="#c8553d" opacity="0.10"/>')
    size = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11" role="img" '
        f'aria-label="{len(run.faults)} faults in {end:.0f} seconds"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _counts(moments: list[float | None], end: float, step: float) -> list[float]:
    counts = [0] * (int(end / step) + 1)
    for at in moments:
        if at is not None and at <= end:
            counts[int(at / step)] += 1
    return [count / step for count in counts]


def _y(count: float, top: float) -> float:
    return CURVE - (CURVE - 8) * count / top


def _area(counts: list[float], step: float, scale: float, top: float) -> str:
    steps = [f"{LEFT + n * step * scale:.1f} {_y(c, top):.1f}H{LEFT + (n + 1) * step * scale:.1f}" for n, c in enumerate(counts)]
    return f"M{LEFT} {CURVE}L" + "L".join(steps) + f"V{CURVE}Z"


def _label(x: float, y: float, text: str, *, faint: bool = False) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{"#888" if faint else "#333"}">{escape(text)}</text>'


def _grid(end: float, scale: float, height: float) -> str:
    step = next(step for step in TICKS if end / step <= 16)
    parts = []
    for number in range(int(end / step) + 1):
        x, bottom = LEFT + number * step * scale, height - AXIS + 4
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.1f}" stroke="#e4e4e4"/>')
        parts.append(_label(x + 2, bottom + 13, f"{number * step:g} s", faint=True))
    return "".join(parts)
