"""``comity schedules``: tasks that are submitted by the clock."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from comity.cli import terms as t
from comity.cli.command import Cli, command, commands, read_json
from comity.cli.looks import bold, plain, span
from comity.cli.submit import requirements
from comity.cli.tasks import age, local_time, retry_of

app = commands("Schedules: tasks that are submitted by the clock.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@command(app)
async def add(
    cli: Cli,
    name: Name,
    cron: Annotated[str, typer.Argument(metavar="CRON", help="'30 9 * * mon-fri', @daily ...; 6 fields begin with seconds.")],
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", help="What is to be done.")],
    input_: Annotated[str, typer.Argument(metavar="[JSON|@FILE|-]", help="Its input.", show_default=False)] = "{}",
    zone: Annotated[str, typer.Option("--zone", metavar="ZONE", help="Whose time it is: Europe/Berlin ...")] = "UTC",
    priority: t.Priority = 5,
    deadline: t.Deadline = None,
    tag: t.Tags = [],  # noqa: B006
    require: t.Needs = [],  # noqa: B006
    retries: t.Retries = None,
    retry_first: t.RetryFirst = None,
    retry_factor: t.RetryFactor = None,
    retry_max: t.RetryMax = None,
    no_retry: t.NoRetry = [],  # noqa: B006
    progress_timeout: t.Silence = None,
) -> None:
    """Submit a task whenever CRON says so. A schedule of that name is changed.

    Each firing is a task with the key NAME/TIME. Times at which the network was down are made up for by one late firing.
    """
    options = t.given(
        deadline_s=deadline, retries=retries, requirements=requirements(require, tag),
        retry=t.retry(retry_first, retry_factor, retry_max, no_retry),
        progress_timeout_s=t.length(progress_timeout) if progress_timeout else None,
    )  # fmt: skip
    async with cli.net() as net:
        found = await net.schedules.add(name, cron, capability, read_json(input_), zone=zone, priority=priority, **options)
    if cli.output.as_json:
        cli.output.show(found)
    else:
        cli.output.say(f"{bold(name)} fires next at {local_time(found['next'])}")


@command(app, "list")
async def list_(cli: Cli) -> None:
    """All schedules: what they submit, and when."""
    async with cli.net() as net:
        found = await net.schedules.list()
    if cli.output.as_json:
        cli.output.show(found)
        return
    now = datetime.now(UTC)
    rows = [
        (s["name"], s["cron"], s["zone"], s["capability"], _until(s["next"], now), age(s["last"], now), s["fired"]) for s in found
    ]
    columns = ("SCHEDULE", "CRON", "ZONE", "CAPABILITY", "NEXT IN", "LAST", "FIRED")
    cli.output.table(columns, rows, "no schedules; make one with: comity schedules add NAME CRON CAPABILITY")


def _until(when: str | None, now: datetime) -> str:
    return span((datetime.fromisoformat(when) - now).total_seconds()) if when is not None else "never"


@command(app)
async def show(cli: Cli, name: Name) -> None:
    """One schedule, and the last tasks it submitted."""
    async with cli.net() as net:
        found = await net.schedules.get(name)
        tasks = [task for task in await net.tasks(capability=found["capability"], limit=1000) if _is_of(task, name)][:10]
    if cli.output.as_json:
        cli.output.show({**found, "tasks": [{key: task[key] for key in ("id", "key", "state")} for task in tasks]})
        return
    print(f"{bold(name)}  {found['cron']}  {found['zone']}")
    cli.output.facts(
        [
            ("capability", found["capability"]),
            ("input", plain(json.dumps(found["input"], ensure_ascii=False))),
            ("next", local_time(found["next"])),
            ("last", local_time(found["last"])),
            ("fired", found["fired"]),
            ("priority", found["priority"]),
            ("retries", found["retries"]),
            ("retry", retry_of(found["retry"])),
            ("deadline", f"{found['deadline_s']:g} s" if found["deadline_s"] else None),
            ("by", found["submitter"]),
        ]
    )
    print()
    rows = [(task["id"], task["state"], task["key"].removeprefix(f"{name}/")) for task in tasks]
    cli.output.table(("TASK", "STATE", "DUE"), rows, "it has submitted none of the last 1,000 tasks", indent="  ")


def _is_of(task: dict[str, Any], name: str) -> bool:
    return (task["key"] or "").startswith(f"{name}/")


@command(app)
async def remove(cli: Cli, name: Name) -> None:
    """No longer fire it. Tasks it has submitted go on."""
    async with cli.net() as net:
        found = await net.schedules.remove(name)
    if cli.output.as_json:
        cli.output.show(found)
    else:
        cli.output.say(f"{bold(name)} is removed; it fired {found['fired']} times")
