"""``comity up``, ``down``, ``stats``: the network as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command


def register(app: typer.Typer) -> None:
    @command(app, connects=False)
    async def up(
        cli: Cli,
        data: Annotated[Path | None, typer.Option("--data", help="Where the network keeps its data.")] = None,
        network: Annotated[str | None, typer.Option("--network", help="Its name.")] = None,
        port: Annotated[int | None, typer.Option("--port", help="Where it listens (0: any free port).")] = None,
        http_port: Annotated[int | None, typer.Option("--http-port", help="Where /metrics is served (0: any).")] = None,
        nats_server: Annotated[Path | None, typer.Option("--nats-server", help="The nats-server to run.")] = None,
    ) -> None:
        """Start a network in the foreground: a server and a controller, on this machine."""
        from comity.cli.up import up as run_up

        settings = cli.settings(
            data_dir=data, network=network, port=port, http_port=http_port, nats_server=nats_server
        )
        await run_up(settings, cli.output)

    @command(app)
    async def down(
        cli: Cli,
        timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait for running tasks.")] = None,
    ) -> None:
        """Shut the network down: tell every agent, refuse submits, let running tasks end, stop."""
        async with cli.net() as net:
            left = await net.shutdown(timeout)
        if cli.output.as_json:
            cli.output.show(left)
            return
        running, waiting = left.get("running", 0), left.get("waiting", 0)
        cli.output.say("the network is down")
        if running or waiting:
            cli.output.say(f"  {running} tasks still ran and {waiting} wait: they go on after the next [bold]comity up[/]")

    @command(app)
    async def stats(
        cli: Cli,
        watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second.")] = False,
    ) -> None:
        """What the network is doing, in numbers."""
        async with cli.net() as net:
            while True:
                numbers = await net.stats()
                if cli.output.as_json:
                    cli.output.line(numbers) if watch else cli.output.show(numbers)
                else:
                    if watch:
                        cli.output.console.clear()
                    _stats(cli, numbers)
                if not watch:
                    return
                await asyncio.sleep(1)


def _stats(cli: Cli, numbers: dict[str, Any]) -> None:
    say = cli.output.console.print
    tasks, rates = numbers["tasks"], numbers["rates"]
    open_ = {state: count for state, count in tasks.items() if count and state not in ("archived",)}
    say(f"[bold]network[/]   led by {numbers['leader']}, term {numbers['term']}, log at {numbers['log_head']:,}", end="")
    say(f", durability [bold]{numbers['log_durability']}[/]")
    say("[bold]tasks[/]     " + (", ".join(f"{count:,} {state}" for state, count in open_.items()) or "none at hand"))
    totals = numbers["totals"]
    say(
        f"[bold]ever[/]      {totals['submitted']:,} submitted, {totals['completed']:,} completed, {totals['failed']:,} failed,"
        f" {totals['canceled']:,} canceled, {totals['retries']:,} retries, {numbers['refused_submits']:,} refused"
    )
    say(f"[bold]rate[/]      {rates['submitted_per_s']:,.0f} submitted/s, {rates['completed_per_s']:,.0f} completed/s", end="")
    say(f", oldest waiting {numbers['oldest_waiting_s']:.1f} s")
    nodes, agents = numbers["nodes"], numbers["agents"]
    say("[bold]nodes[/]     " + (", ".join(f"{count} {state}" for state, count in nodes.items() if count) or "none"))
    say("[bold]agents[/]    " + (", ".join(f"{count:,} {status}" for status, count in agents.items()) or "none"))
