"""``comity submit``: give the network a task."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli import terms as t
from comity.cli.command import Cli, command, commands, read_json
from comity.cli.events import reason_of
from comity.cli.looks import plain
from comity.cli.parts import printed

if TYPE_CHECKING:
    from comity import Requirements, Task

app = commands()

LOOK_S = 1.0
_LISTS = {"tag": "tags", "any-tag": "any_tags", "avoid": "avoid"}
_NUMBERS = ("cpu", "memory_mb", "gpu")
_WORDS = ("version", "kind", "agent")


def requirements(needs: list[str], tags: list[str]) -> Requirements | None:
    """``--require KEY=VALUE`` and ``--tag`` words as a task's requirements. Raises BadInput."""
    from comity import Requirements
    from comity.errors import BadInput

    found: dict[str, Any] = {"tags": list(tags), "labels": {}}
    for need in needs:
        key, _, value = need.partition("=")
        if not value:
            raise BadInput(f"--require {need!r} must be KEY=VALUE")
        if key in _LISTS:
            found.setdefault(_LISTS[key], []).append(value)
        elif key == "label":
            name, colon, wanted = value.partition(":")
            if not colon:
                raise BadInput(f"--require {need!r} must be label=NAME:VALUE")
            found["labels"][name] = wanted
        elif key in _NUMBERS:
            try:
                found[key] = float(value)
            except ValueError:
                raise BadInput(f"--require {key} must be a number, not {value!r}") from None
        elif key in _WORDS:
            found[key] = value
        else:
            raise BadInput(f"--require {key!r} is not known; one of: {', '.join((*_LISTS, 'label', *_NUMBERS, *_WORDS))}")
    needed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if value}
    return Requirements(**needed) if needed else None


@command(app)
async def submit(
    cli: Cli,
    capability: Annotated[str, typer.Argument(metavar="CAPABILITY", help="What is to be done: greet, or review>=1.2.")],
    input_: Annotated[str, typer.Argument(metavar="[JSON|@FILE|-]", help="Its input.", show_default=False)] = "{}",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result, and print it.")] = True,
    stream: Annotated[bool, typer.Option("--stream", help="Print what it yields, as it comes; Ctrl-C cancels it.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="How long to wait; the task goes on after.")
    ] = None,
    priority: t.Priority = 5,
    deadline: t.Deadline = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="Not before 2026-12-01T09:00, or 09:00.")] = None,
    in_: Annotated[str | None, typer.Option("--in", metavar="TIME", help="Not before so long from now: 90s, 10m, 1h30m.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="The same key is the same task.")] = None,
    tag: t.Tags = [],  # noqa: B006
    require: t.Needs = [],  # noqa: B006
    strategy: t.StrategyName = None,
    sticky: t.Sticky = None,
    retries: t.Retries = None,
    retry_first: t.RetryFirst = None,
    retry_factor: t.RetryFactor = None,
    retry_max: t.RetryMax = None,
    no_retry: t.NoRetry = [],  # noqa: B006
    progress_timeout: t.Silence = None,
    patience: Annotated[
        float | None, typer.Option("--patience", metavar="SECONDS", help="If the network is overloaded, try again for so long.")
    ] = None,
    queue: Annotated[bool, typer.Option("--queue/--no-queue", help="Wait if no live agent can do it, or be refused.")] = True,
) -> None:
    """Give the network a task, and print its result.

    It is durable once it is accepted: Ctrl-C stops the waiting, not the task.
    """
    from comity.model.limits import check_timeout

    timeout, value = check_timeout(timeout), read_json(input_)  # before it is submitted, not after
    options = t.given(
        deadline_s=deadline, strategy=strategy, sticky=sticky, retries=retries, requirements=requirements(require, tag),
        retry=t.retry(retry_first, retry_factor, retry_max, no_retry),
        progress_timeout_s=t.length(progress_timeout) if progress_timeout else None,
        at=t.moment(at, datetime.now().astimezone()) if at else None, in_s=t.length(in_) if in_ else None,
        patience_s=patience,
    )  # fmt: skip
    async with cli.net() as net:
        if stream:
            return await printed(cli, net.stream(capability, value, key=key, priority=priority, queue=queue, **options), timeout)
        task = await net.submit(capability, value, key=key, priority=priority, queue=queue, **options)
        if not wait:
            cli.output.show({"id": task.id}) if cli.output.as_json else cli.output.say(task.id)
            return None
        telling = asyncio.create_task(_tell(cli, task))
        try:
            cli.output.show(await task.result(timeout))
        except asyncio.CancelledError:
            if not cli.output.as_json:
                cli.output.note(f"{cli.output.over_ctrl_c}the task goes on: comity tasks watch {task.id}")
            raise
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _tell(cli: Cli, task: Task) -> None:
    """On stderr: why it waits if it does; for a person its progress and log lines too."""
    if cli.output.as_json:
        await _why_waiting(cli, task)
        return
    looking = asyncio.create_task(_why_waiting(cli, task))
    try:
        async with contextlib.aclosing(task.events()) as events:
            async for event in events:
                kind = event["type"].removeprefix("task.")
                if kind == "progress":
                    cli.output.note(plain(_progress(event)))
                elif kind == "log":
                    cli.output.note(plain(_more(event)))
                elif kind == "input_required":
                    name = event["reason"]
                    cli.output.note(plain(f"it asks for {name}; answer with: comity tasks answer {task.id} {name} JSON"))
                elif kind in ("retrying", "requeued"):
                    cli.output.note(plain(f"{kind}: {reason_of(event)}"))
    finally:
        looking.cancel()


def _progress(event: dict[str, Any]) -> str:
    value = event.get("value")
    told = [f"{value:.0%}" if isinstance(value, float) and 0 <= value <= 1 else str(value)] if value is not None else []
    return "  ".join([*told, _more(event)] if _more(event) else told)


def _more(event: dict[str, Any]) -> str:
    """What the attempt said beside the value."""
    known = ("type", "at", "task", "agent", "node", "index", "value")
    said = {name: more for name, more in event.items() if name not in known}
    return "  ".join(str(more) if name == "message" else f"{name}={more}" for name, more in said.items())


async def _why_waiting(cli: Cli, task: Task) -> None:
    await asyncio.sleep(LOOK_S)  # most tasks have ended by then
    found = await task.why()
    if found["reason"]:
        cli.output.note(f"{task.id} waits: {plain(found['reason'])} (Ctrl-C leaves it waiting)")
