"""``comity nodes``: the processes that host agents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command

app = typer.Typer(help="Nodes: list, show.", no_args_is_help=True)


@command(app, "list")
async def list_(cli: Cli) -> None:
    """All nodes with a lease, and how they are."""
    async with cli.net() as net:
        rows = await net.nodes()
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (
            r["id"], r["state"], r["agents"], r["attempts"], _unit(r["cpu"], "{:.0%}"), _unit(r["memory_mb"], "{:.0f} MB"),
            _unit(r["lag_s"], "{:.3f}s"), _unit(r["seen_ago_s"], "{:.1f}s"), r["host"], r["pid"],
        )
        for r in rows
    ]  # fmt: skip
    columns = ("NODE", "STATE", "AGENTS", "RUNNING", "CPU", "MEMORY", "LAG", "SEEN", "HOST", "PID")
    cli.output.table(columns, cells, "no nodes; start one with: comity run")


def _unit(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


@command(app)
async def show(cli: Cli, node: Annotated[str, typer.Argument(help="The node's id.")]) -> None:
    """One node, and its agents."""
    from comity.errors import UnknownNode

    async with cli.net() as net:
        found: dict[str, Any] | None = next((row for row in await net.nodes() if row["id"] == node), None)
        agents = [row for row in await net.agents() if row["node"] == node]
    if found is None:
        raise UnknownNode(f"no node {node!r} has a lease")
    if cli.output.as_json:
        cli.output.show({**found, "agents": agents})
        return
    say = cli.output.console.print
    say(f"[bold]{node}[/]  {found['state']}" + (f" ({found['reason']})" if found["reason"] else ""))
    for name in ("host", "pid", "region", "zone", "version", "incarnation", "attempts"):
        if found[name] not in (None, ""):
            say(f"  {name:<12} {found[name]}")
    cells = [(row["name"], row["status"], f"{row['load']}/{row['concurrency']}") for row in agents]
    cli.output.table(("  AGENT", "STATUS", "LOAD"), cells, "  no agents")
