"""``comity events``: what happens, as it happens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command

_COLOURS = {
    "completed": "green", "failed": "red", "evicted": "red", "rejected": "red", "refused": "red", "canceled": "yellow",
    "retrying": "yellow", "requeued": "yellow", "suspect": "yellow", "gap": "yellow", "joined": "green", "elected": "magenta",
}  # fmt: skip


def show_event(cli: Cli, event: dict[str, Any]) -> None:
    """One event: a line of JSON, or of text."""
    if cli.output.as_json:
        cli.output.line(event)
        return
    from rich.markup import escape

    when = datetime.fromtimestamp(event.get("at", 0) / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]
    kind = event["type"]
    colour = _COLOURS.get(kind.rpartition(".")[2], "cyan")
    about = " ".join(str(event[key]) for key in ("task", "capability", "agent") if key in event)
    if "node" in event and "agent" not in event:
        about += f" {event['node']}"
    shown = ("type", "at", "task", "agent", "node", "capability", "reason", "epoch")
    rest = "  ".join(f"{key}={value}" for key, value in event.items() if key not in shown)
    reason = f"  {event['reason']}" if event.get("reason") else ""
    cli.output.console.print(f"[dim]{when}[/] [{colour}]{kind:<15}[/] {escape(about.strip())}[dim]{escape(reason)}  {escape(rest)}[/]")


def register(app: typer.Typer) -> None:
    @command(app)
    async def events(
        cli: Cli,
        follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now.")] = False,
        after: Annotated[int | None, typer.Option("--after", help="Begin after this log index (0: from the start).")] = None,
        task: Annotated[str | None, typer.Option("--task", help="Only events of this task.")] = None,
    ) -> None:
        """The event stream: the log, projected. Without -f: what is kept of the past."""
        async with cli.net() as net:
            upto = 0 if follow else (await net.stats())["log_head"]
            start = after if after is not None else (None if follow else 0)
            async for event in net.events(after=start, task=task):
                if not follow and event.get("index", 0) > upto:
                    return
                show_event(cli, event)
                if not follow and event.get("index", 0) >= upto:
                    return
