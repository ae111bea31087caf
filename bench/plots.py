"""How the cost of a task grows: measures with ``comity bench tasks``, and draws what came of it.

    python bench/plots.py [--comity PROGRAM] [--rounds N] [--only NAME] [--draw]

Each curve varies one thing and leaves the others as they come: 20,000 tasks of 256 bytes, two nodes, eight agents, one server
that syncs each write. Rounds take turns over all points of a curve; a point is the median of its rounds. What was measured is
kept in ``bench/curves.json``, from which ``--draw`` makes the plots (``bench/plots/NAME.svg``) again without measuring.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

HERE = Path(__file__).parent
DATA = HERE / "curves.json"
PARTS = {"client": "#b6c9bb", "controller": "#2f6f5e", "server": "#e0a458", "nodes": "#6d8ea0"}
LINE = "#2f6f5e"
POINT_LIMIT_S = 180


class Curve(NamedTuple):
    """``points``: for each value on the axis, what to add to ``comity bench tasks``."""

    name: str
    axis: str
    points: dict[str, list[str]]


def option(flag: str, values: list[int], *more: str, few: int = 1 << 62) -> dict[str, list[str]]:
    """A point for each value; those from ``few`` on take a tenth of the tasks."""
    return {f"{value}": [flag, f"{value}", "--count", "2000" if value >= few else "20000", *more] for value in values}


CURVES = (
    Curve("payload", "bytes of each input", option("--payload", [16, 256, 1024, 4096, 16_384, 65_536], few=16_384)),
    Curve("nodes", "node processes", option("--nodes", [1, 2, 4, 8, 16], "--agents", "16")),
    Curve("agents", "agents", option("--agents", [10, 100, 1000, 10_000, 100_000])),
    Curve("in-flight", "tasks in flight", option("--in-flight", [256, 1024, 4096, 16_384, 65_536])),
    Curve("replicas", "replicas of the log (servers, all on this machine)", option("--servers", [1, 3])),
    Curve("fsync", "each write on disk before it is acknowledged", {"yes": ["--fsync"], "no": ["--no-fsync"]}),
)


def measure(comity: str, curve: Curve, rounds: int) -> dict[str, Any]:
    """The median figures of each point, and the lowest and highest tasks/s."""
    runs: dict[str, list[dict[str, float]]] = {value: [] for value in curve.points}
    for number in range(rounds):
        for value, words in curve.points.items():
            command = [comity, "bench", "tasks", *words, "-o", "json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=POINT_LIMIT_S, check=True)
            figures = json.loads(done.stdout)
            if figures["lost"] or figures["duplicated"]:
                raise SystemExit(f"{curve.name} {value}: lost {figures['lost']}, duplicated {figures['duplicated']}")
            runs[value].append(figures)
            print(f"{curve.name} {value} ({number + 1}/{rounds}): {figures['tasks_per_s']:,} tasks/s", flush=True)
    keys = ("tasks_per_s", "cpu_us_per_task", "pace_us", *(f"cpu_us_{part}" for part in PARTS))
    return {
        value: {key: median(run[key] for run in took) for key in keys}
        | {"lowest": min(run["tasks_per_s"] for run in took), "highest": max(run["tasks_per_s"] for run in took)}
        for value, took in runs.items()
    }


def draw(curve: Curve, points: dict[str, dict[str, float]]) -> None:
    """Tasks a second on the left, and on the right whose processor time a task takes."""
    rcParams.update({"svg.hashsalt": curve.name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(points))
    labels = [f"{int(value):,}" if value.isdigit() else value for value in points]
    for axes, title in ((left, "tasks/s"), (right, "µs of processor time per task")):
        axes.set_title(title, loc="left", fontsize=9, color="#444")
        axes.set_xticks(places, labels)
        axes.set_xlabel(curve.axis)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
    rates = [point["tasks_per_s"] for point in points.values()]
    spread = [[rate - point["lowest"] for rate, point in zip(rates, points.values(), strict=True)],
              [point["highest"] - rate for rate, point in zip(rates, points.values(), strict=True)]]  # fmt: skip
    left.errorbar(
        places, rates, yerr=spread, color=LINE, marker="o", markersize=4, linewidth=1.6, capsize=3, elinewidth=0.8
    )
    left.set_ylim(bottom=0)
    base = [0.0] * len(points)
    for part, color in PARTS.items():
        used = [point[f"cpu_us_{part}"] for point in points.values()]
        right.bar(places, used, 0.62, bottom=base, color=color, label=part)
        base = [low + more for low, more in zip(base, used, strict=True)]
    right.legend(frameon=False, fontsize=8, ncols=4, loc="upper left", columnspacing=0.9, handlelength=0.9)
    right.set_ylim(top=max(base) * 1.22)
    target = HERE / "plots" / f"{curve.name}.svg"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comity", default="comity", help="the program to measure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=[curve.name for curve in CURVES], help="one curve")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    known: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    for curve in CURVES:
        if asked.only in (None, curve.name):
            if not asked.draw:
                known[curve.name] = measure(asked.comity, curve, asked.rounds)
                DATA.write_text(json.dumps(known, indent=1) + "\n")
            if curve.name in known:
                draw(curve, known[curve.name])


if __name__ == "__main__":
    main()
