"""``comity submit``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command, read_json


def requirements(needs: list[str], tags: list[str]) -> dict[str, Any]:
    """``--require`` words (tag=, any-tag=, label=KEY:VALUE, cpu=, memory_mb=, gpu=, version=, kind=, agent=, avoid=) and
    ``--tag`` words as a task's requirements. Raises BadInput."""
    from comity.errors import BadInput

    found: dict[str, Any] = {"tags": list(tags), "any_tags": [], "labels": {}, "avoid": []}
    for need in needs:
        key, equals, value = need.partition("=")
        if not equals or not value:
            raise BadInput(f"--require {need!r} must be KEY=VALUE")
        if key == "tag":
            found["tags"].append(value)
        elif key == "any-tag":
            found["any_tags"].append(value)
        elif key == "label":
            name, _, wanted = value.partition(":")
            found["labels"][name] = wanted
        elif key == "avoid":
            found["avoid"].append(value)
        elif key in ("cpu", "memory_mb", "gpu"):
            try:
                found[key] = float(value)
            except ValueError:
                raise BadInput(f"--require {key} must be a number, not {value!r}") from None
        elif key in ("version", "kind", "agent"):
            found[key] = value
        else:
            raise BadInput(f"--require {key!r} is not known; one of tag, any-tag, label, cpu, memory_mb, gpu, version, kind, agent, avoid")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if value}


def register(app: typer.Typer) -> None:
    @command(app)
    async def submit(
        cli: Cli,
        capability: Annotated[str, typer.Argument(help="What is to be done, e.g. greet or review>=1.2.")],
        input_: Annotated[str, typer.Argument(metavar="[JSON | @file | -]", help="Its input.")] = "{}",
        wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result.")] = True,
        timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait; the task goes on after.")] = None,
        priority: Annotated[int, typer.Option("--priority", min=0, max=9, help="Higher first.")] = 5,
        deadline: Annotated[float | None, typer.Option("--deadline", help="Seconds until it is too late.")] = None,
        key: Annotated[str | None, typer.Option("--key", help="The same key is the same task.")] = None,
        tag: Annotated[list[str], typer.Option("--tag", help="Only agents with this tag.")] = [],  # noqa: B006
        require: Annotated[list[str], typer.Option("--require", metavar="KEY=VALUE", help="What its agent must have.")] = [],  # noqa: B006
        strategy: Annotated[str | None, typer.Option("--strategy", help="How its agent is chosen.")] = None,
        retries: Annotated[int | None, typer.Option("--retries", min=0)] = None,
        queue: Annotated[bool, typer.Option("--queue/--no-queue", help="Wait for an agent if none is there.")] = True,
    ) -> None:
        """Give the network a task, and print its result."""
        options: dict[str, Any] = {"priority": priority, "queue": queue}
        optional = {"deadline_s": deadline, "key": key, "strategy": strategy, "retries": retries}
        options |= {name: value for name, value in optional.items() if value is not None}
        value = read_json(input_)
        async with cli.net() as net:
            from comity import Requirements

            needs = requirements(require, tag)
            if needs:
                options["requirements"] = Requirements(**needs)
            if not await net.discover(capability) and queue:
                cli.output.note(f"nobody offers {capability} yet; the task waits (Ctrl-C leaves it waiting)")
            task = await net.submit(capability, value, **options)
            if not wait:
                cli.output.show({"id": task.id}) if cli.output.as_json else cli.output.say(task.id)
                return
            followed = asyncio.create_task(_tell(cli, task)) if not cli.output.as_json else None
            try:
                cli.output.show(await task.result(timeout))
            finally:
                if followed is not None:
                    followed.cancel()


async def _tell(cli: Cli, task: Any) -> None:
    """Progress and log lines of the task, on stderr."""
    async for event in task.events():
        if event["type"] == "task.progress":
            cli.output.note(f"  {event.get('value', '')} {event.get('message', '')}".rstrip())
        elif event["type"] == "task.log":
            cli.output.note(f"  {event.get('message', '')}")
        elif event["type"] in ("task.retrying", "task.requeued"):
            cli.output.note(f"  {event['type'].removeprefix('task.')}: {event.get('reason', '')}")
