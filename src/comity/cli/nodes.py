"""``comity nodes``: the processes that host agents."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from comity.cli.choosing import meant
from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, megabytes, paint, share

app = commands("Nodes, the processes that host agents.")

_STATES = {"alive": "green", "suspect": "yellow", "draining": "cyan", "dead": "red", "unknown": "yellow"}


def state_of(state: str) -> str:
    return paint(_STATES.get(state, ""), state)


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
            r["id"], state_of(r["state"]), r["agents"], r["attempts"], share(r["cpu"]), megabytes(r["memory_mb"]),
            seconds(r["lag_s"], 3), seconds(r["seen_ago_s"], 1), r["host"], r["pid"],
        )
        for r in rows
    ]  # fmt: skip
    columns = ("NODE", "STATE", "AGENTS", "RUNNING", "CPU", "MEMORY", "LAG", "SEEN", "HOST", "PID")
    cli.output.table(columns, cells, "no nodes; start one with: comity run MODULE_OR_FILE")


def seconds(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}s"


@command(app)
async def show(cli: Cli, node: Annotated[str, typer.Argument(help="Its id, or the beginning of it.", metavar="NODE")]) -> None:
    """One node, and its agents."""
    from comity.errors import UnknownNode

    async with cli.net() as net:
        rows: dict[str, dict[str, Any]] = {row["id"]: row for row in await net.nodes()}
        name = meant(node, rows, "nodes")
        if name is None:
            raise UnknownNode(f"no node {node!r} has a lease", node=node)
        found = rows[name]
        agents = [row for row in await net.agents() if row["node"] == name]
    if cli.output.as_json:
        cli.output.show({**found, "agents": agents})
        return
    print(f"{bold(name)}  {state_of(found['state'])}" + (f"  {found['reason']}" if found["reason"] else ""))
    cli.output.facts((name, found[name]) for name in ("host", "pid", "region", "zone", "version", "incarnation", "attempts"))
    print()
    cells = [(row["name"], row["status"], f"{row['load']}/{row['concurrency']}") for row in agents]
    cli.output.table(("AGENT", "STATUS", "LOAD"), cells, "no agents", indent="  ")
