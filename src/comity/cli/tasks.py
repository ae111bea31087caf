"""``comity tasks``: what was asked for, and what became of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command

app = typer.Typer(help="Tasks: list, show, watch, cancel.", no_args_is_help=True)

_COLOURS = {"completed": "green", "failed": "red", "canceled": "yellow", "rejected": "red", "working": "cyan", "assigned": "cyan"}


def coloured(state: str) -> str:
    colour = _COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def age(when: str | None) -> str:
    """How long ago an ISO time was, in a few characters."""
    if when is None:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def took(task: dict[str, Any]) -> str:
    if task["started"] is None or task["finished"] is None:
        return ""
    span = datetime.fromisoformat(task["finished"]) - datetime.fromisoformat(task["started"])
    return f"{span.total_seconds():.3f}s"


@command(app, "list")
async def list_(
    cli: Cli,
    state: Annotated[str | None, typer.Option("--state", help="Only tasks in this state.")] = None,
    capability: Annotated[str | None, typer.Option("--capability", help="Only tasks of this capability.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 20,
    before: Annotated[str | None, typer.Option("--before", help="Older than this task: for the next page.")] = None,
) -> None:
    """The newest tasks first."""
    async with cli.net() as net:
        found = await net.tasks(state=state, capability=capability, limit=limit, before=before)
    if cli.output.as_json:
        cli.output.show(found)
        return
    rows = [
        (t["id"], coloured(t["state"]), t["capability"], t["agent"], age(t["created"]), took(t), t["reason"] or _error(t))
        for t in found
    ]
    cli.output.table(("TASK", "STATE", "CAPABILITY", "AGENT", "AGE", "TOOK", ""), rows, "no tasks")


def _error(task: dict[str, Any]) -> str:
    error = task["error"]
    return f"{error['code']}: {error['message']}" if error else ""


@command(app)
async def show(
    cli: Cli,
    task: Annotated[str, typer.Argument(help="The task's id.")],
    why: Annotated[bool, typer.Option("--why", help="Why this agent: candidates, scores, choice.")] = False,
) -> None:
    """One task: where it is, its attempts, its result."""
    async with cli.net() as net:
        found = await net.task(task).status()
        reasons = await net.why(task) if why else None
    if cli.output.as_json:
        cli.output.show({**found, "why": reasons} if why else found)
        return
    _show(cli, found)
    if reasons is not None:
        _why(cli, reasons)


def _show(cli: Cli, task: dict[str, Any]) -> None:
    import json

    say = cli.output.console.print
    say(f"[bold]{task['id']}[/]  {coloured(task['state'])}")
    rows: list[tuple[str, Any]] = [
        ("capability", task["capability"]),
        ("agent", task["agent"]),
        ("epoch", task["epoch"] or None),
        ("priority", task["priority"]),
        ("retries", f"{task['retries_used']} of {task['retries']} used"),
        *((name, task[name]) for name in ("created", "assigned", "started", "finished", "deadline", "parent", "key")),
        ("waits", task["reason"] or None),
        ("input", json.dumps(task["input"])),
        ("result", json.dumps(task["result"]) if task["state"] == "completed" else None),
        ("error", _error(task) or None),
    ]
    for name, value in rows:
        if value is not None:
            say(f"  {name:<11}", end="")
            say(str(value), markup=False)
    if task["attempts"]:
        say("  attempts")
        for number, attempt in enumerate(task["attempts"], 1):
            error = attempt["error"]
            said = f"  {error['code']}: {error['message']}" if error else ""
            say(f"    {number}  {attempt['agent']}  epoch {attempt['epoch']}  {attempt['ending'] or 'running'}", end="")
            say(said, markup=False)


def _why(cli: Cli, why: dict[str, Any]) -> None:
    say = cli.output.console.print
    made = why.get("assignment")
    if made is None:
        say("  [bold]why[/]        not assigned by this leader" + (f"; {why['reason']}" if why.get("reason") else ""))
        made = why["now"]
    say(f"  [bold]why[/]        strategy {made.get('strategy')}, choice {made.get('choice')}: {made.get('reason', '')}")
    rows = [
        (c["agent"], f"{c['load']}/{c['limit']}", _score(c.get("score")), "yes" if c["eligible"] else "no", c.get("why_not"))
        for c in made.get("candidates", [])
    ]
    cli.output.table(("  CANDIDATE", "LOAD", "SCORE", "ELIGIBLE", "WHY NOT"), rows, "  no candidates")


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"


@command(app)
async def watch(cli: Cli, task: Annotated[str, typer.Argument(help="The task's id.")]) -> None:
    """Follow a task until it ends."""
    from comity.cli.events import show_event

    async with cli.net() as net:
        handle = net.task(task)
        async for event in handle.events():
            show_event(cli, event)
        found = await handle.status()
    if not cli.output.as_json:
        _show(cli, found)


@command(app)
async def cancel(
    cli: Cli,
    task: Annotated[str, typer.Argument(help="The task's id.")],
    reason: Annotated[str, typer.Option("--reason")] = "",
) -> None:
    """Ask for a task's end. A running attempt is told and has a grace time."""
    async with cli.net() as net:
        found = await net.cancel(task, reason)
    if cli.output.as_json:
        cli.output.show(found)
    elif found["state"] in ("canceled", "completed", "failed", "rejected"):
        cli.output.say(f"{task} is {coloured(found['state'])}")
    else:
        cli.output.say(f"{task} was asked to stop")
