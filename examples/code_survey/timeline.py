"""The run as SVG: a lane per node, a row per agent, a bar per attempt, and what was lost and done again elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

WIDTH, LEFT, RIGHT = 1120.0, 92.0, 8.0
ROW, GAP, AXIS, CURVE = 7.0, 16.0, 26.0, 58.0


@dataclass(slots=True)
class Try:
    """One attempt at a piece of work. Times are seconds from the start of the job; ``kept``: its result counts."""

    node: str
    agent: str
    started: float
    ended: float
    kept: bool


@dataclass(slots=True)
class Work:
    """One task of the job: what it is, how many files it covers, and its attempts in order."""

    what: str
    files: int
    tries: list[Try]


@dataclass(slots=True)
class Loss:
    """A node that went away during the job, at ``at`` seconds from its start."""

    node: str
    at: float


@dataclass(slots=True)
class Run:
    """How the job went. ``nodes`` in the order of their lanes; ``seconds`` is how long it took so far."""

    nodes: list[str] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    seconds: float = 0.0

    def moved(self) -> list[tuple[Try, Try]]:
        """Attempts that ended without a result, each with the one that followed."""
        return [pair for work in self.work for pair in pairwise(work.tries) if not pair[0].kept]

    def gap(self) -> float | None:
        """Seconds from the (first) loss until all work that it interrupted ran elsewhere; None if nothing moved."""
        if not self.losses or not self.moved():
            return None
        return max(after.started for _, after in self.moved()) - self.losses[0].at


def timeline(run: Run) -> str:
    """The SVG element: files done over time, and below it the lanes."""
    return _Drawing(run).svg()


class _Drawing:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.end = max([run.seconds, *(work_try.ended for work in run.work for work_try in work.tries), 0.1])
        self.rows: dict[tuple[str, str], float] = {}
        self.lanes: dict[str, tuple[float, float]] = {}
        top = CURVE + 20
        for node in run.nodes:
            agents = sorted({t.agent for work in run.work for t in work.tries if t.node == node}, key=_natural)
            for number, agent in enumerate(agents):
                self.rows[node, agent] = top + number * ROW
            height = max(len(agents), 3) * ROW
            self.lanes[node] = (top, height)
            top += height + GAP
        self.height = top - GAP + AXIS

    def svg(self) -> str:
        box = f"0 0 {WIDTH:.0f} {self.height:.0f}"
        label = f"Timeline of {self.end:.1f} seconds on {len(self.run.nodes)} nodes"
        body = "".join([*self._grid(), *self._curve(), *self._lanes(), *self._bars(), *self._moves(), *self._losses()])
        return f'<svg class="timeline" viewBox="{box}" role="img" aria-label="{label}">{_HATCH}{body}</svg>'

    def _x(self, seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * min(max(seconds / self.end, 0), 1)

    def _grid(self) -> list[str]:
        step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300, 1e9) if self.end / step <= 14)
        parts = []
        for number in range(int(self.end / step) + 1):
            x, bottom = self._x(number * step), self.height - AXIS + 6
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom:.1f}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14:.1f}">{number * step:g}</text>')
        parts.append(f'<text class="unit" x="{LEFT - 12:.0f}" y="{self.height - AXIS + 20:.1f}">seconds</text>')
        return parts

    def _curve(self) -> list[str]:
        """Files done over time."""
        ends = sorted((t.ended, work.files) for work in self.run.work for t in work.tries if t.kept and work.files)
        total = sum(files for _, files in ends)
        if not total:
            return []
        done, path = 0, [f"M{LEFT:.1f} {CURVE:.1f}"]
        for ended, files in ends:
            done += files
            path.append(f"L{self._x(ended):.1f} {CURVE - (CURVE - 6) * done / total:.1f}")
        line = "".join(path)
        last = self._x(ends[-1][0])
        return [
            f'<path class="area" d="{line}V{CURVE:.1f}Z"><title>{total:,} files done by {ends[-1][0]:.1f} s</title></path>',
            f'<path class="curve" d="{line}"/>',
            f'<text class="lane" x="0" y="{CURVE - 18:.1f}">files done</text>',
            f'<text class="sub" x="0" y="{CURVE - 4:.1f}">{total:,}</text>',
            f'<circle class="dot" cx="{last:.1f}" cy="6" r="2.6"/>',
        ]

    def _lanes(self) -> list[str]:
        parts = []
        for node, (top, height) in self.lanes.items():
            width = WIDTH - LEFT - RIGHT
            frame = f'x="{LEFT:.1f}" y="{top - 3:.1f}" width="{width:.1f}" height="{height + 5:.1f}"'
            agents = sum(1 for lane, _ in self.rows if lane == node)
            parts.append(f'<rect class="bed" {frame} rx="3"/>')
            parts.append(f'<text class="lane" x="0" y="{top + 10:.1f}">{escape(node)}</text>')
            parts.append(f'<text class="sub" x="0" y="{top + 24:.1f}">{agents} agents</text>')
        return parts

    def _bars(self) -> list[str]:
        parts = []
        for work in self.run.work:
            for number, one in enumerate(work.tries):
                again = number > 0 and not work.tries[number - 1].kept
                css = ("again" if again else "done" if work.files else "other") if one.kept else "lost"
                x, row = self._x(one.started), self.rows[one.node, one.agent]
                width = max(self._x(one.ended) - x - 0.6, 1.2)
                covers = f", {work.files} files" if work.files else ""
                fate = "" if one.kept else " (lost)"
                told = f"{work.what}{covers}{fate}\n{one.agent} on {one.node}\n{one.started:.2f} to {one.ended:.2f} s"
                place = f'x="{x:.1f}" y="{row:.1f}" width="{width:.1f}" height="{ROW - 1.6:.1f}"'
                parts.append(f'<rect class="{css}" {place} rx="1.4"><title>{escape(told)}</title></rect>')
        return parts

    def _moves(self) -> list[str]:
        """A thread from where an attempt was lost to where the work went on."""
        parts = []
        for lost, after in self.run.moved():
            x1, y1 = self._x(lost.ended), self.rows[lost.node, lost.agent] + ROW / 2 - 0.8
            x2, y2 = self._x(after.started), self.rows[after.node, after.agent] + ROW / 2 - 0.8
            bend = max(x2 - x1, 14) * 0.9
            curve = f"{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
            parts.append(f'<path class="move" d="M{x1:.1f} {y1:.1f}C{curve}"/>')
        return parts

    def _losses(self) -> list[str]:
        parts = []
        for loss in self.run.losses:
            if loss.node not in self.lanes:
                continue
            top, height = self.lanes[loss.node]
            x, end = self._x(loss.at), WIDTH - RIGHT
            gone = f'x="{x:.1f}" y="{top - 3:.1f}" width="{end - x:.1f}" height="{height + 5:.1f}"'
            parts.append(f'<rect class="gone" {gone}><title>{escape(loss.node)} is gone</title></rect>')
            parts.append(f'<line class="kill" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{self.height - AXIS + 6:.1f}"/>')
            late = loss.at > 0.7 * self.end
            anchor = f'x="{x - 8 if late else x + 8:.1f}" text-anchor="{"end" if late else "start"}"'
            text = f"{loss.node} killed at {loss.at:.1f} s"
            parts.append(f'<text class="killed" {anchor} y="12">{escape(text)}</text>')
            gap = self.run.gap()
            if gap is not None and end - x > 360:
                text = f"What it held ran elsewhere within {gap:.2f} s"
                at = f'x="{(x + end) / 2:.1f}" y="{top + height / 2 + 3:.1f}"'
                parts.append(f'<text class="moved" {at}>{text}</text>')
        return parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts surveyor-10 after surveyor-9."""
    return [(int(part) if part.isdigit() else 0, part) for part in name.replace("-", " ").split()]


def lanes(work: Sequence[Work]) -> list[str]:
    """The nodes that took part, in natural order."""
    return sorted({one.node for item in work for one in item.tries}, key=_natural)


_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line class="hatch" x1="0" y1="0" x2="0" y2="5"/></pattern></defs>'
)
