"""``comity agents find`` and ``watch``: those that meet conditions, and all as they come and go."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.agents import app, row_of, status_of
from comity.cli.command import Cli, command
from comity.cli.figures import FIGURES, figures
from comity.cli.looks import bold

if TYPE_CHECKING:
    from comity.finding import Conditions

Words = list[str]
Tags = Annotated[Words, typer.Option("--tag", metavar="TAG", help="Only those with this tag; again: with all of them.")]
AnyTags = Annotated[Words, typer.Option("--any-tag", metavar="TAG", help="Only those with one of these tags.")]
Labels = Annotated[Words, typer.Option("--label", metavar="NAME=VALUE", help="Only those with this label.")]
Amounts = Annotated[Words, typer.Option("--need", metavar="NAME=N", help="So much free: gpu=1, cpu=2, memory_mb=4096.")]


def pairs(given: Words, flag: str) -> dict[str, str]:
    """``NAME=VALUE`` options. Raises BadInput."""
    from comity.errors import BadInput

    split = [text.partition("=") for text in given]
    for text, (name, equals, _) in zip(given, split, strict=True):
        if not name or not equals:
            raise BadInput(f"{flag} {text!r} must be NAME=VALUE")
    return {name: value for name, _, value in split}


def _amounts(given: Words) -> dict[str, float]:
    from comity.errors import BadInput

    try:
        return {name: float(value) for name, value in pairs(given, "--need").items()}
    except ValueError as error:
        raise BadInput(f"--need wants a number: {error}") from None


@command(app)
async def find(
    cli: Cli,
    capability: Annotated[
        str, typer.Argument(metavar="[CAPABILITY]", help="What they can do: review, or review>=1.2.", show_default=False)
    ] = "",
    tag: Tags = [],  # noqa: B006
    any_tag: AnyTags = [],  # noqa: B006
    label: Labels = [],  # noqa: B006
    need: Amounts = [],  # noqa: B006
    region: Annotated[str, typer.Option("--region", metavar="NAME", help="Only those there.")] = "",
    kind: Annotated[str, typer.Option("--kind", metavar="NAME", help="Only those of this kind.")] = "",
    node: Annotated[str, typer.Option("--node", metavar="ID", help="Only those on this node.")] = "",
    status: Annotated[str | None, typer.Option("--status", metavar="STATUS", help="active, paused, unhealthy ...")] = None,
    order_by: Annotated[
        str, typer.Option("--order-by", metavar="WHAT", help="id, name, load; of a capability latency, throughput, success.")
    ] = "id",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="No more than so many.")] = 50,
) -> None:
    """Agents that meet all conditions, the best first, with what the network measured of them at the capability."""
    conditions: Conditions = {
        "tags": tag, "any_tags": any_tag, "labels": pairs(label, "--label"), "needs": _amounts(need), "region": region,
        "kind": kind, "node": node, "status": status,
    }  # fmt: skip
    async with cli.net() as net:
        records = await net.discover(capability, order_by=order_by, limit=limit, **conditions)
        loads = {row["id"]: row for row in await net.agents()}
        measured = await net.performance(capability) if capability else {}
        age_s = net.directory.age_s
    rows = [{**row_of(one, loads.get(one.id, {})), **_measured(measured.get(one.id, {}))} for one in records]
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (r["id"], status_of(r["status"]), f"{r['load']}/{r['concurrency']}", *figures(r), r["region"], " ".join(r["tags"]))
        for r in rows
    ]
    cli.output.table(("AGENT", "STATUS", "LOAD", *FIGURES, "REGION", "TAGS"), cells, "no such agents")
    cli.output.note(f"as the registry said {age_s:.1f} s ago")


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("p50_ms", "p95_ms", "per_s", "success", "samples")}


@command(app)
async def watch(cli: Cli) -> None:
    """Agents and nodes that join, change and leave, as it happens, until Ctrl-C. None is missed, whatever becomes of servers."""
    from comity.model.capability import AgentRecord

    async with cli.net() as net, contextlib.aclosing(net.watch()) as seen:
        if not cli.output.as_json:
            cli.output.note("watching; Ctrl-C ends it")
        async for what, record in seen:
            is_agent = isinstance(record, AgentRecord)
            row = {"what": what, "kind": "agent" if is_agent else "node", "id": record.id}
            if isinstance(record, AgentRecord):
                row["status"] = str(record.status)
            if cli.output.as_json:
                cli.output.line(row)
            else:
                cli.output.say(f"{row['kind']} {bold(record.id)} {what}  {status_of(row.get('status', ''))}".rstrip())
