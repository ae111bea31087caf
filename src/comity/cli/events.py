"""``comity events``: what happens, as it happens."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

import typer

from comity.cli.choosing import find_task
from comity.cli.command import Cli, command, commands
from comity.cli.looks import dim, paint, plain

app = commands()

_STYLES = {
    "completed": "green", "failed": "red", "evicted": "red", "rejected": "red", "refused": "red", "canceled": "yellow",
    "dead": "red", "poisoned": "red", "stuck": "yellow", "delayed": "", "fired": "magenta", "replayed": "yellow",
    "retrying": "yellow", "requeued": "yellow", "suspect": "yellow", "gap": "yellow", "interrupted": "yellow", "joined": "green",
    "elected": "magenta", "broken": "red", "probing": "cyan", "mended": "green",
    "isolated": "magenta", "draining": "cyan",
    "resumed": "green", "suspected": "red", "unseen": "yellow",
    "progress": "dim", "log": "dim", "submitted": "", "started": "cyan", "assigned": "cyan",
    "input_required": "magenta", "answered": "cyan", "unanswered": "yellow", "step": "dim", "checkpoint": "dim",
}  # fmt: skip
_TOLD = ("type", "at", "task", "agent", "node", "capability", "code", "reason", "epoch", "index")


def show_event(cli: Cli, event: dict[str, Any]) -> None:
    """One event: a line of JSON, or of text."""
    if cli.output.as_json:
        cli.output.line(event)
        return
    when = datetime.fromtimestamp(event["at"] / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind = event["type"]
    about = [event[key] for key in ("task", "capability", "agent") if event.get(key)]
    if event.get("node") and "agent" not in event:
        about.append(event["node"])
    about += [f"{key}={value}" for key, value in event.items() if key not in _TOLD and value not in (None, "")]
    style = _STYLES.get(kind.rpartition(".")[2], "")
    reason = dim(plain(f"  {reason_of(event)}")) if reason_of(event) else ""
    print(f"{dim(when)}  {paint(style, f'{kind:<15}')}  {plain('  '.join(map(str, about)))}{reason}", flush=True)


def reason_of(event: dict[str, Any]) -> str:
    """Why: an exception with its name, for its message alone may say little."""
    code, reason = str(event.get("code") or ""), str(event.get("reason") or "")
    return reason or code if code.islower() or not code else f"{code}: {reason}".removesuffix(": ")


@command(app)
async def events(
    cli: Cli,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now.")] = False,
    after: Annotated[
        int | None, typer.Option("--after", metavar="INDEX", min=0, help="Begin after this log index (0: from the start).")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="ID", help="Only what happens to this task.")] = None,
) -> None:
    """What happened: the log, told as events. With -f: what happens from now on."""
    async with cli.net() as net:
        wanted = await find_task(net, task) if task else None
        async with aclosing(net.events(after, follow=follow)) as stream:
            async for event in stream:
                if wanted is None or event.get("task") == wanted:
                    show_event(cli, event)
