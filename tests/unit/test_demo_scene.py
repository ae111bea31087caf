"""What the demo tells of a run, from the network's events."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from comity.cli.demo_scene import Scene


def scene() -> tuple[Scene, list[str]]:
    told: list[str] = []
    agents = {node: [f"{node}/s-1", f"{node}/s-2"] for node in ("node-1", "node-2", "node-3")}
    seen = Scene(lambda line: told.append(line.partition(" s  ")[2]))
    seen.enter(agents)
    return seen, told


def on(kind: str, task: str = "", node: str = "", at: int = 0, agent: str = "") -> dict[str, Any]:
    return {"type": kind, "task": task, "node": node, "at": at, "agent": agent or f"{node}/s-{task[-1:]}"}


def test_a_task_is_in_one_lane_at_a_time() -> None:
    seen, _ = scene()
    seen.event(on("task.assigned", "t1", "node-2"))
    seen.event(on("task.started", "t1", "node-2"))
    assert list(seen.lanes["node-2"].running) == ["t1"]
    seen.event(on("task.requeued", "t1", "node-2"))
    assert not seen.lanes["node-2"].running
    seen.event(on("task.assigned", "t1", "node-3"))
    seen.event(on("task.completed", "t1", "node-3"))
    assert not seen.lanes["node-3"].running
    assert [lane.done for lane in seen.lanes.values()] == [0, 0, 1]
    assert seen.moves == {}


def test_the_story_of_a_killed_node() -> None:
    seen, told = scene()
    for task in ("t1", "t2"):
        seen.event(on("task.assigned", task, "node-2"))
    seen.event(on("task.assigned", "t3", "node-3", agent="node-3/s-1"))
    assert seen.busiest(["node-2", "node-3"]) == "node-2"
    seen.kill("node-2", 10_000)
    seen.event({"type": "node.evicted", "node": "node-2", "at": 10_090})
    for task in ("t1", "t2"):
        seen.event(on("task.requeued", task, "node-2", 10_090))
    assert seen.noticed_after_s == 0.09
    seen.event(on("task.started", "t1", "node-3", 10_200))
    seen.event(on("task.started", "t2", "node-3", 10_340))
    assert seen.moves == {"t1": 10_200, "t2": 10_340}
    assert [line.partition(" s  ")[2] for line in seen.story] == told
    assert told == [
        "node-2 killed (SIGKILL) in the midst of it",
        "0.09 s later the network gave node-2 up and put its work back",
        "0.20 s after the kill the first of its tasks ran again, on node-3",
        "0.34 s after the kill all 2 of them ran elsewhere",
    ]
    assert (seen.lanes["node-2"].lost, seen.lanes["node-3"].taken_over) == (2, 2)


def test_an_idle_node_may_die_without_a_move() -> None:
    seen, told = scene()
    seen.kill("node-2", 5)
    seen.event({"type": "node.evicted", "node": "node-2", "at": 9})
    assert seen.moves == {}
    assert len(told) == 2


def test_events_of_strangers_and_of_other_kinds_change_nothing() -> None:
    seen, told = scene()
    for event in (on("task.started", "t1", "elsewhere"), on("task.completed", "t9"), {"type": "leader.elected", "at": 1}):
        seen.event(event)
    assert told == []
    assert not any(lane.running or lane.done for lane in seen.lanes.values())


def test_the_picture_shows_lanes_and_agents() -> None:
    seen, _ = scene()
    seen.files, seen.files_done = 20, 5
    seen.event(on("task.started", "t1", "node-2"))
    seen.kill("node-3", 5)
    screen = StringIO()
    Console(file=screen, width=100).print(seen)
    shown = screen.getvalue()
    assert "5 of 20 files" in shown
    assert "node-2  ● ○" in shown
    assert "node-3  ✕ ✕" in shown
    assert "killed, 0 tasks moved" in shown
