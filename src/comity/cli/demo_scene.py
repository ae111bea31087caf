"""What the demo shows while it runs: the network's events, told as lanes and as a story. No network in here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

Tell = Callable[[str], None]


class Lane:
    """One node: its agents in order, which of them are busy, and what it did."""

    def __init__(self, agents: list[str]) -> None:
        self.agents = agents
        self.running: dict[str, str] = {}  # task -> agent
        self.done = 0
        self.taken_over = 0
        self.lost = 0
        self.is_gone = False


class Scene:
    """The run so far. ``tell`` hears each turn of the story, once. Invariant: a task runs in at most one lane."""

    def __init__(self, tell: Tell) -> None:
        self.lanes: dict[str, Lane] = {}
        self.files = 0
        self.files_done = 0
        self.victim = ""
        self.killed_at_ms = 0
        self.noticed_after_s: float | None = None
        self.story: list[str] = []
        self.moves: dict[str, int | None] = {}  # task -> when it ran elsewhere
        self._tell = tell
        self._where: dict[str, str] = {}
        self._began = time.monotonic()

    def enter(self, agents: dict[str, list[str]]) -> None:
        """The nodes, and the ids of the agents on each, in the order in which they are shown."""
        self.lanes = {node: Lane(ids) for node, ids in agents.items()}

    @property
    def seconds(self) -> float:
        """Since the scene was set."""
        return time.monotonic() - self._began

    @property
    def done(self) -> int:
        """Tasks completed."""
        return sum(lane.done for lane in self.lanes.values())

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of the network's stream."""
        kind, task, node = event["type"], event.get("task", ""), event.get("node", "")
        if kind in ("task.assigned", "task.started") and node in self.lanes:
            self._leave(task)
            self._where[task] = node
            self.lanes[node].running[task] = event["agent"]
            if kind == "task.started" and task in self.moves and self.moves[task] is None:
                self._moved(task, node, event["at"])
        elif kind in ("task.completed", "task.failed", "task.canceled"):
            self._leave(task)
            if kind == "task.completed" and node in self.lanes:
                self.lanes[node].done += 1
        elif kind in ("task.requeued", "task.retrying"):
            self._leave(task)
            if node and node == self.victim:
                self.moves[task] = None
                self.lanes[node].lost += 1
        elif kind == "node.evicted" and node == self.victim:
            self.lanes[node].running.clear()
            self.noticed_after_s = max(event["at"] - self.killed_at_ms, 0) / 1000
            self.say(f"{self._after(event['at'])} s later the network gave {node} up and put its work back")

    def kill(self, node: str, at_ms: int) -> None:
        """``node`` was killed just now."""
        self.victim, self.killed_at_ms = node, at_ms
        self.lanes[node].is_gone = True
        self.say(f"{node} killed (SIGKILL) in the midst of it")

    def busiest(self, nodes: list[str]) -> str:
        """Of ``nodes``, the one with most work in hand; the last of several."""
        return max(reversed(nodes), key=lambda node: len(self.lanes[node].running))

    def line(self, text: str) -> str:
        return f"{self.seconds:5.1f} s  {text}"

    def say(self, text: str) -> None:
        """A turn of the story."""
        self.story.append(self.line(text))
        self._tell(self.story[-1])

    def _leave(self, task: str) -> None:
        node = self._where.pop(task, None)
        if node is not None:
            self.lanes[node].running.pop(task, None)

    def _moved(self, task: str, node: str, at_ms: int) -> None:
        self.moves[task] = at_ms
        self.lanes[node].taken_over += 1
        ran = sum(at is not None for at in self.moves.values())
        if ran == 1:
            self.say(f"{self._after(at_ms)} s after the kill the first of its tasks ran again, on {node}")
        if ran == len(self.moves) > 1:
            self.say(f"{self._after(at_ms)} s after the kill all {ran} of them ran elsewhere")

    def _after(self, at_ms: int) -> str:
        return f"{max(at_ms - self.killed_at_ms, 0) / 1000:.2f}"

    # For a terminal

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 2), expand=False)
        bar = ProgressBar(total=max(self.files, 1), completed=self.files_done, width=44, complete_style="cyan")
        count = f"{self.files_done:,} of {self.files:,} files" if self.files else "looking for files"
        head.add_row(bar, Text(count, "bold"), Text(f"{self.seconds:.1f} s", "dim"))
        lanes = Table.grid(padding=(0, 2))
        for node, lane in self.lanes.items():
            lanes.add_row(Text(node, "bold red" if lane.is_gone else "bold"), _dots(lane), Text(_summary(lane), "dim"))
        story = Text("\n".join(self.story), "dim")
        return Group(Text(), head, Text(), lanes, Text(), story)


def _dots(lane: Lane) -> Any:
    """A dot per agent: full while it works."""
    from rich.text import Text

    busy = set(lane.running.values())
    dots = Text()
    for agent in lane.agents:
        if lane.is_gone:
            dots.append("✕ ", "red")
        elif agent in busy:
            dots.append("● ", "cyan")
        else:
            dots.append("○ ", "dim")
    return dots


def _summary(lane: Lane) -> str:
    parts = [f"{lane.done} done"]
    if lane.taken_over:
        parts.append(f"{lane.taken_over} taken over")
    if lane.is_gone:
        parts.append(f"killed, {_count(lane.lost, 'task')} moved")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
