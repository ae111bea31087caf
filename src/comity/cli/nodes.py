"""``comity nodes``: the processes that host agents."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.choosing import meant
from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, megabytes, paint, plain, share, span

if TYPE_CHECKING:
    from comity import Client
    from comity.client.standing import NodeHandle

app = commands("Nodes, the processes that host agents.")
Id = Annotated[str, typer.Argument(help="Its id, or the beginning of it.", metavar="NODE")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; shown by list, show and events.")]

_STATES = {
    "alive": "green", "suspect": "yellow", "draining": "cyan", "isolated": "magenta", "dead": "red", "gone": "red",
    "unknown": "yellow",
}  # fmt: skip


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
            seconds(r["lag_s"], 3), seconds(r["seen_ago_s"], 1), r["host"], r["pid"], set_aside(r),
        )
        for r in rows
    ]  # fmt: skip
    columns = ("NODE", "STATE", "AGENTS", "RUNNING", "CPU", "MEMORY", "LAG", "SEEN", "HOST", "PID", "SET ASIDE")
    cli.output.table(columns, cells, "no nodes; start one with: comity run MODULE_OR_FILE")


def seconds(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}s"


def set_aside(row: dict[str, Any]) -> str:
    """For how long, and why; "" if it is not."""
    aside = row["aside"]
    if aside is None:
        return ""
    return plain(f"{span(time.time() - aside['since_ms'] / 1000)} ago {aside['reason']}".rstrip())


@command(app)
async def show(cli: Cli, node: Id) -> None:
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
    print(f"{bold(name)}  {state_of(found['state'])}" + (f"  {plain(found['reason'])}" if found["reason"] else ""))
    cli.output.facts((name, found[name]) for name in ("host", "pid", "region", "zone", "version", "incarnation", "attempts"))
    if found["aside"] is not None:
        since = datetime.fromtimestamp(found["aside"]["since_ms"] / 1000).astimezone()
        cli.output.facts([("set aside", f"{found['aside']['state']} since {since:%F %T}, until: comity nodes resume {name}")])
    print()
    cells = [(row["name"], row["status"], f"{row['load']}/{row['concurrency']}") for row in agents]
    cli.output.table(("AGENT", "STATUS", "LOAD"), cells, "no agents", indent="  ")


@command(app)
async def drain(
    cli: Cli,
    node: Id,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return once nothing runs there any more.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="S", min=0, help="Wait so long at most (drain_timeout_s).")
    ] = None,
) -> None:
    """Give a node no new attempts, until it is resumed; what runs there ends there."""
    async with cli.net() as net:
        told = await (await _find(net, node)).drain(reason, wait=wait, timeout=timeout)
    left = "nothing runs there" if not told["attempts"] else f"{told['attempts']} attempts still run there"
    _say(cli, told, f"is draining; {left}")


@command(app)
async def isolate(cli: Cli, node: Id, reason: Reason = "") -> None:
    """Give a node no new attempts, and move what runs there now. It stays in the network, to be looked at."""
    async with cli.net() as net:
        told = await (await _find(net, node)).isolate(reason)
    _say(cli, told, "is isolated; its work moved")


@command(app)
async def resume(cli: Cli, node: Id, reason: Reason = "") -> None:
    """Give a node attempts again: undoes drain and isolate."""
    async with cli.net() as net:
        told = await (await _find(net, node)).resume(reason)
    _say(cli, told, "takes work again" if told["state"] == "alive" else "will take work when it is back")


async def _find(net: Client, node: str) -> NodeHandle:
    """One that is not here may be meant too, by its whole id. Raises BadInput."""
    return net.node(meant(node, [row["id"] for row in await net.nodes()], "nodes") or node)


def _say(cli: Cli, told: dict[str, Any], said: str) -> None:
    if cli.output.as_json:
        cli.output.show(told)
    else:
        cli.output.say(f"{bold(told['node'])} {said}")
