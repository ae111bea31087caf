"""Whose processor time a task takes, stage by stage, as a table.

    python bench/budget.py [--count N] [--rounds N]

Runs ``comity bench tasks --profile`` and shares out what each process used, as the operating system counts it, over the stages in
which py-spy saw it. A sample belongs to its innermost frame that a stage names.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

STAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "client": {
        "make and check inputs": ("Directory.encode", "terms ", "Client._submit"),
        "send submits": ("Submissions.", "Outbox.post", "Outbox._pump"),
        "take in answers": ("Submissions.on_accepted", "Outcomes.on_ended", "Exchange.", "NatsBus._on_message", "Connection."),
        "wait for results": ("Task.result", "Outcomes.end", "Work.in_batches"),
    },
    "controller": {
        "take in messages: decode, admit, check epochs": ("Leader.receive", "NatsBus._on_message"),
        "choose agents, fill the entry": ("Leader.fill",),
        "seal the entry, append it to the log": ("seal ", "Pipeline._append", "JetStreamLog.append", "JetStream.", "Connection."),
        "apply it": ("Tasks.apply", "Pipeline._count", "Leader.effective"),
        "see what follows": ("Reconcile.observe",),
        "tell: accepted, run, settled, ended": ("Telling.", "Events.publish"),
        "send messages": ("Outbox._pump",),
        "archive, snapshots": ("Keeping.", "Archive.", "JetStreamStore."),
    },
    "nodes": {
        "take in messages": ("Node.", "NatsBus._on_message", "Attempts.run", "Connection."),
        "run the function": ("Performer.", "Attempts._perform", "Attempts._attempt", "echo "),
        "report": ("Attempts.",),
        "send messages": ("Outbox._pump",),
    },
}
WHO = (("comity up", "controller"), ("bench_agents", "nodes"), ("bench tasks", "client"))
ROOT = Path(__file__).parents[1]


def owner(stack: str) -> str:
    processes = re.findall(r'process \d+:"([^"]*)"', stack)
    return next(part for word, part in WHO if word in processes[-1])


def stage(part: str, frames: list[str]) -> str:
    for frame in reversed(frames):
        for name, marks in STAGES[part].items():
            if any(frame.startswith(mark) for mark in marks):
                return name
    return "the event loop and the rest"


def sample(count: int, folder: Path) -> dict[tuple[str, str], float]:
    """Microseconds a task, by process and stage, of one run."""
    words = ("bench", "tasks", "--count", f"{count}", "--profile", f"{folder}/stacks.txt", "-o", "json")
    done = subprocess.run([sys.executable, "-m", "comity", *words], capture_output=True, text=True, timeout=120, check=True)
    figures = json.loads(done.stdout)
    seen: Counter[tuple[str, str]] = Counter()
    for line in (folder / "stacks.txt").read_text().splitlines():
        stack, _, number = line.rpartition(" ")
        if "threading.py" not in stack:
            part = owner(stack)
            seen[part, stage(part, stack.split(";"))] += int(number)
    whole = Counter[str]()
    for (part, _), number in seen.items():
        whole[part] += number
    return {
        (part, name): number / whole[part] * figures[f"cpu_us_{part}"] for (part, name), number in seen.items()
    } | {("server", "nats-server: messages, the log's file, fsync"): figures["cpu_us_server"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [sample(asked.count, Path(folder)) for _ in range(asked.rounds)]
    print("| process | stage | µs per task |\n|---|---|---|")
    total = 0.0
    for part in ("client", "server", "controller", "nodes"):
        rows = {key: median(run.get(key, 0.0) for run in runs) for run in runs for key in run if key[0] == part}
        print(f"| **{part}** | | **{sum(rows.values()):.1f}** |")
        total += sum(rows.values())
        for (_, name), used in sorted(rows.items(), key=lambda row: -row[1]):
            print(f"| | {name} | {used:.1f} |")
    print(f"| **all** | | **{total:.1f}** |")


if __name__ == "__main__":
    main()
