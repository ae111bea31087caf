"""``comity tasks``: what was asked for, and what became of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from comity.cli.choosing import find_task
from comity.cli.command import Cli, command, commands, read_json
from comity.cli.events import show_event
from comity.cli.looks import bold, dim, paint, plain, span
from comity.cli.recalling import LastKnown, last_known

app = commands("Tasks: what was asked for, and what became of it.")
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Its id, or the beginning of it.")]

ENDS = ("completed", "failed", "canceled", "rejected")
_STATES = {
    "completed": "green", "failed": "red", "rejected": "red", "canceled": "yellow", "working": "cyan", "assigned": "cyan",
    "input-required": "magenta",
}  # fmt: skip


def state_of(state: str) -> str:
    return paint(_STATES.get(state, ""), state)


def age(when: str | None, now: datetime) -> str:
    """How long ago an ISO time was, in a few characters."""
    if when is None:
        return ""
    return span((now - datetime.fromisoformat(when)).total_seconds())


def took(start: str | None, end: str | None) -> str:
    if start is None or end is None:
        return ""
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def error_of(item: dict[str, Any]) -> str:
    error = item["error"]
    return plain(f"{error['code']}: {error['message']}") if error else ""


def _state(name: str | None) -> str | None:
    from comity.errors import BadInput
    from comity.model.task import task_state

    try:
        return None if name is None else task_state(name)
    except BadInput as error:
        raise typer.BadParameter(error.message) from None


@command(app, "list")
async def list_(
    cli: Cli,
    state: Annotated[
        str | None,
        typer.Option("--state", metavar="STATE", callback=_state, help="Only those: waiting, working, input-required ..."),
    ] = None,
    capability: Annotated[str | None, typer.Option("--capability", metavar="NAME", help="Only those for this.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=1000, help="How many at most.")] = 20,
    before: Annotated[str | None, typer.Option("--before", metavar="TASK", help="The page after this task.")] = None,
    old: LastKnown = False,
) -> None:
    """The newest tasks first."""
    if old:
        found = await last_known(cli, "tasks", state=state, capability=capability, limit=limit, before=before)
    else:
        async with cli.net() as net:
            last = await find_task(net, before) if before is not None else None
            found = await net.tasks(state=state, capability=capability, limit=limit, before=last)
    if cli.output.as_json:
        cli.output.show(found)
        return
    now = datetime.now(UTC)
    rows = [
        (
            t["id"], state_of(t["state"]), t["capability"], t["agent"], age(t["created"], now),
            took(t["started"], t["finished"]), plain(t["reason"]) or error_of(t),
        )
        for t in found
    ]  # fmt: skip
    cli.output.table(("TASK", "STATE", "CAPABILITY", "AGENT", "AGE", "TOOK", "WHY"), rows, "no tasks")
    if len(found) == limit:
        cli.output.note(f"more: the same with --before {found[-1]['id']}")


@command(app)
async def show(
    cli: Cli,
    task: TaskId,
    why: Annotated[bool, typer.Option("--why", help="Why this agent: candidates, scores, choice.")] = False,
    old: LastKnown = False,
) -> None:
    """One task: where it is, its attempts, its result."""
    if old:
        await _show_old(cli, task)
        return
    async with cli.net() as net:
        handle = net.task(await find_task(net, task))
        found = await handle.status()
        reasons = await handle.why() if why else None
    if cli.output.as_json:
        cli.output.show({**found, "why": reasons} if why else found)
        return
    show_task(cli, found)
    if reasons is not None:
        _why(cli, reasons)


async def _show_old(cli: Cli, task: str) -> None:
    from comity.errors import UnknownTask
    from comity.model.ids import check_task_id

    found = await last_known(cli, "task", id=check_task_id(task))
    if cli.output.as_json:
        cli.output.show(found)
    elif found is None:
        raise UnknownTask(f"no task {task} is remembered; it may be among those that finished earlier", task=task)
    else:
        show_task(cli, found)


def show_task(cli: Cli, task: dict[str, Any]) -> None:
    print(f"{bold(task['id'])}  {state_of(task['state'])}")
    names = ("created", "not_before", "assigned", "started", "finished", "deadline")
    times = ((name.replace("_", " "), local_time(task[name])) for name in names)
    result = json.dumps(task["result"], ensure_ascii=False) if task["state"] == "completed" else None
    cli.output.facts(
        [
            ("capability", task["capability"]),
            ("input", plain(json.dumps(task["input"], ensure_ascii=False))),
            ("result", plain(result) if result else None),
            ("error", error_of(task)),
            ("waits", plain(task["reason"])),
            ("agent", task["agent"]),
            ("priority", task["priority"]),
            ("retries", f"{task['retries_used']} of {task['retries']} used"),
            ("retry", retry_of(task["retry"])),
            ("no progress", f"moved after {task['progress_timeout_s']:g} s" if task["progress_timeout_s"] else None),
            *times,
            ("took", took(task["created"], task["finished"])),
            ("parent", task["parent"]),
            ("replays", task["replays"]),
            ("key", task["key"]),
        ]
    )
    attempts = [
        (
            number, a["agent"], a["epoch"] & 0xFFFFFFFF, local_time(a["assigned"], short=True), took(a["started"], a["ended"]),
            paint(_ENDINGS.get(a["ending"] or "", ""), a["ending"] or "running"), error_of(a),
        )
        for number, a in enumerate(task["attempts"], 1)
    ]  # fmt: skip
    if attempts:
        print()
        columns = ("ATTEMPT", "AGENT", "EPOCH", "ASSIGNED", "TOOK", "ENDED", "WHY")
        cli.output.table(columns, attempts, "", indent="  ")
    _records(cli, task)


def _records(cli: Cli, task: dict[str, Any]) -> None:
    """What its attempts recorded, and asked."""
    steps = [
        (plain(s["name"]), local_time(s["at"], short=True), f"{s['size']} B", s["epoch"] & 0xFFFFFFFF) for s in task["steps"]
    ]
    if (saved := task["checkpoint"]) is not None:
        steps.append(("(checkpoint)", local_time(saved["at"], short=True), f"{saved['size']} B", saved["epoch"] & 0xFFFFFFFF))
    if steps:
        print()
        cli.output.table(("STEP", "RECORDED", "SIZE", "EPOCH"), steps, "", indent="  ")
    questions = [
        (
            plain(q["name"]), plain(json.dumps(q["ask"], ensure_ascii=False)), local_time(q["asked"], short=True),
            "nobody in time" if q["is_over"] else plain(json.dumps(q["answer"], ensure_ascii=False)) if q["answered"] else "",
        )
        for q in task["questions"]
    ]  # fmt: skip
    if questions:
        print()
        cli.output.table(("QUESTION", "ASK", "ASKED", "ANSWER"), questions, "", indent="  ")


def retry_of(retry: dict[str, Any] | None) -> str:
    """A policy in a line."""
    said = retry or {}
    parts = [f"{name} {said[field]:g}{unit}" for field, name, unit in _PAUSES if field in said]
    if "no_retry" in said:
        parts.append(f"not after {' or '.join(said['no_retry'])}")
    return ", ".join(parts)


_PAUSES = (("first_s", "first", " s"), ("factor", "times", ""), ("max_s", "at most", " s"))
_ENDINGS = {"completed": "green", "failed": "red", "canceled": "yellow"}


def local_time(when: str | None, *, short: bool = False) -> str:
    if when is None:
        return ""
    local = datetime.fromisoformat(when).astimezone()
    return local.strftime("%H:%M:%S.%f" if short else "%Y-%m-%d %H:%M:%S.%f")[:-3]


def _why(cli: Cli, why: dict[str, Any]) -> None:
    print()
    made = why["assignment"]
    if made is None:
        print(f"  {bold('now')}  {dim('(not assigned by the present leader; this is how it would choose)')}")
        made = why["now"]
    else:
        print(f"  {bold('why')}  {made.get('reason', '')}")
    cli.output.facts([("strategy", made.get("strategy")), ("choice", made.get("choice"))])
    rows = [
        (c["agent"], f"{c['load']}/{c['limit']}", _score(c.get("score")), "yes" if c["eligible"] else c.get("why_not") or "no")
        for c in made.get("candidates", [])
    ]
    print()
    cli.output.table(("CANDIDATE", "LOAD", "SCORE", "ELIGIBLE"), rows, "no candidates", indent="  ")


def _score(score: float | None) -> str:
    return "" if score is None else f"{score:.3g}"


@command(app)
async def watch(cli: Cli, task: TaskId) -> None:
    """Follow a task until it ends."""
    async with cli.net() as net:
        handle = net.task(await find_task(net, task))
        async for event in handle.events(after=0):
            show_event(cli, event)
        found = await handle.status()
    if not cli.output.as_json:
        print()
        show_task(cli, found)


@command(app)
async def cancel(
    cli: Cli,
    task: TaskId,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; its attempt is told.")] = "",
) -> None:
    """Ask for a task's end. A running attempt is told, and has a grace time."""
    async with cli.net() as net:
        found = await net.cancel(await find_task(net, task), reason)
    if cli.output.as_json:
        cli.output.show(found)
    elif found["state"] in ENDS:
        cli.output.say(f"{found['id']} is {state_of(found['state'])}")
    else:
        cli.output.say(f"{found['id']} was asked to stop")


@command(app)
async def answer(
    cli: Cli,
    task: TaskId,
    said: Annotated[
        list[str],
        typer.Argument(metavar="[NAME] JSON|@FILE|-", help="The answer; before it, which question is meant.", show_default=False),
    ],
) -> None:
    """Answer what a task waits for: it goes on. The first answer counts."""
    if len(said) > 2:
        raise typer.BadParameter("it is [NAME] and one JSON value; quote it", param_hint="JSON")
    value = read_json(said[-1])
    async with cli.net() as net:
        handle = net.task(await find_task(net, task))
        found = await handle.answer(value, name=said[0] if len(said) > 1 else "")
    if cli.output.as_json:
        cli.output.show(found)
    else:
        cli.output.say(f"{found['id']} was answered; it is {state_of(found['state'])}")
