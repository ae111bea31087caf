"""``comity agents``: who is here and what they can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command

app = typer.Typer(help="Agents: list, show, pause, resume, remove.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The agent: its id (node/name), or its name if only one has it.")]


@command(app, "list")
async def list_(
    cli: Cli,
    capability: Annotated[str | None, typer.Option("--capability", help="Only those that offer this.")] = None,
    tag: Annotated[list[str], typer.Option("--tag", help="Only those with this tag.")] = [],  # noqa: B006
    status: Annotated[str | None, typer.Option("--status", help="Only those with this status.")] = None,
) -> None:
    """All agents, with what is in flight at each."""
    async with cli.net() as net:
        options: dict[str, Any] = {"tags": tuple(tag), "status": status}
        records = await net.discover(capability, **{key: value for key, value in options.items() if value})
        loads = {row["id"]: row for row in await net.agents()}
    rows = [_row(record, loads.get(record.id, {})) for record in records]
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (r["id"], r["status"], r["node_state"], f"{r['load']}/{r['concurrency']}", ", ".join(r["capabilities"]), ", ".join(r["tags"]))
        for r in rows
    ]
    cli.output.table(("AGENT", "STATUS", "NODE", "LOAD", "CAPABILITIES", "TAGS"), cells, "no agents; start some with: comity run")


def _row(record: Any, load: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "node": record.node,
        "kind": record.kind,
        "version": record.version,
        "status": str(record.status),
        "node_state": load.get("node_state", "unknown"),
        "load": load.get("load", 0),
        "concurrency": record.concurrency,
        "tags": list(record.tags),
        "labels": record.labels,
        "capabilities": [offer.name for offer in record.offers],
    }


@command(app)
async def show(cli: Cli, agent: Name) -> None:
    """One agent: its record, and its capabilities with their schemas."""
    import msgspec

    async with cli.net() as net:
        record = await net.agent(agent)
        capabilities = net.directory.capabilities_of(record.id)
        loads = {row["id"]: row for row in await net.agents()}
    load = loads.get(record.id, {})
    value = {
        **_row(record, load),
        "region": record.region,
        "zone": record.zone,
        "weight": record.weight,
        "resources": msgspec.structs.asdict(record.resources),
        "endpoints": record.endpoints,
        "registered_at": record.registered_at,
        "last_seen_ago_s": load.get("last_seen_ago_s"),
        "capabilities": [msgspec.to_builtins(capability) for capability in capabilities],
    }
    if cli.output.as_json:
        cli.output.show(value)
        return
    say = cli.output.console.print
    say(f"[bold]{record.id}[/]  {record.status}, node {value['node_state']}")
    say(f"  in flight   {value['load']} of {record.concurrency}")
    for name in ("kind", "version", "region", "zone"):
        if value[name]:
            say(f"  {name:<11} {value[name]}")
    if record.tags:
        say(f"  tags        {', '.join(record.tags)}")
    for capability in capabilities:
        say(f"\n  [bold]{capability.name}[/] {capability.version}  [dim]{capability.description}[/]")
        for title, schema in (("input", capability.input_schema), ("output", capability.output_schema)):
            say(f"    {title:<7}", end="")
            say(msgspec.json.encode(schema).decode(), markup=False)


def _verb(name: str, help_: str, said: str) -> None:
    async def work(cli: Cli, agent: Name) -> None:
        async with cli.net() as net:
            await getattr(net, f"{name}_agent")(agent)
        if cli.output.as_json:
            cli.output.show({"agent": agent, "done": name})
        else:
            cli.output.say(f"{agent} {said}")

    work.__doc__ = help_
    command(app, name)(work)


_verb("pause", "Give an agent nothing new; what it runs goes on.", "is paused")
_verb("resume", "Give a paused agent work again.", "takes work again")
_verb("remove", "Take an agent off its node.", "was removed")
