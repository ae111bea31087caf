"""``comity agents``: who is here and what they can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.choosing import meant
from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim, paint, plain
from comity.cli.nodes import state_of

if TYPE_CHECKING:
    from comity import Client
    from comity.model.capability import AgentRecord

app = commands("Agents: who is here and what they can do.")
Name = Annotated[str, typer.Argument(metavar="AGENT", help="Its id (node/name) or the beginning of it, or its name.")]

_STATUS = {"active": "green", "paused": "yellow", "unhealthy": "red", "draining": "cyan"}


def status_of(status: str) -> str:
    return paint(_STATUS.get(status, ""), status)


@command(app, "list")
async def list_(
    cli: Cli,
    capability: Annotated[str, typer.Option("--capability", metavar="NAME", help="Only those that offer it.")] = "",
    tag: Annotated[list[str], typer.Option("--tag", metavar="TAG", help="Only those with this tag.")] = [],  # noqa: B006
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="Only those: active, paused, unhealthy, draining.")
    ] = None,
) -> None:
    """All agents, with what is in flight at each."""
    async with cli.net() as net:
        records = await net.discover(capability, tags=tag, status=status)
        loads = {row["id"]: row for row in await net.agents()}
    rows = [row_of(record, loads.get(record.id, {})) for record in records]
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (
            r["id"], status_of(r["status"]), state_of(r["node_state"]),
            f"{r['load']}/{r['concurrency']}", " ".join(r["tags"]), " ".join(r["capabilities"]), " ".join(r["broken"]),
        )
        for r in rows
    ]  # fmt: skip
    columns = ("AGENT", "STATUS", "NODE", "LOAD", "TAGS", "CAPABILITIES", "BROKEN")
    asked = capability or tag or status
    cli.output.table(columns, cells, "no such agents" if asked else "no agents; start some with: comity run MODULE_OR_FILE")


def row_of(record: AgentRecord, load: dict[str, Any]) -> dict[str, Any]:
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
        "broken": load.get("broken", {}),
        "tags": list(record.tags),
        "labels": record.labels,
        "capabilities": [offer.name for offer in record.offers],
    }


async def _find(net: Client, agent: str) -> AgentRecord:
    """The agent of that id or name, or whose id begins so. Raises UnknownAgent, BadInput (several)."""
    from comity.errors import BadInput, UnknownAgent

    records = {str(record.id): record for record in await net.discover()}
    found = [record for record in records.values() if agent in (record.id, record.name)]
    if not found and (whole := meant(agent, records, "agents")) is not None:
        found = [records[whole]]
    if not found:
        raise UnknownAgent(f"no agent is called {agent!r}", agent=agent)
    if len(found) > 1:
        raise BadInput(f"{len(found)} agents are called {agent!r}, such as {found[0].id}: name one by its id", name=agent)
    return found[0]


@command(app)
async def show(cli: Cli, agent: Name) -> None:
    """One agent: its record, its capabilities and their schemas."""
    import msgspec

    async with cli.net() as net:
        record = await _find(net, agent)
        offered = [net.directory.capability(offer.name, offer.schema) for offer in record.offers]
        load = next((row for row in await net.agents() if row["id"] == record.id), {})
    capabilities = [msgspec.to_builtins(capability) for capability in offered if capability is not None]
    value = {
        **row_of(record, load),
        "region": record.region,
        "zone": record.zone,
        "weight": record.weight,
        "resources": msgspec.structs.asdict(record.resources),
        "endpoints": record.endpoints,
        "registered_at": record.registered_at,
        "last_seen_ago_s": load.get("last_seen_ago_s"),
        "capabilities": capabilities,
    }
    if cli.output.as_json:
        cli.output.show(value)
        return
    print(f"{bold(record.id)}  {status_of(record.status)}")
    known = [
        ("node", f"{record.node}  {state_of(value['node_state'])}"),
        ("in flight", f"{value['load']} of {record.concurrency}"),
        ("tags", " ".join(record.tags)),
        ("labels", " ".join(f"{key}={text}" for key, text in record.labels.items())),
        ("endpoints", " ".join(f"{key}={text}" for key, text in record.endpoints.items())),
        *((name, value[name]) for name in ("kind", "version", "region", "zone")),
        *(("gets none", plain(f"{name}: {why}")) for name, why in value["broken"].items()),
    ]
    cli.output.facts(known)
    for capability in capabilities:
        print(f"\n{bold(capability['name'])} {capability['version']}  {dim(plain(capability['description']))}")
        schemas = [capability["input_schema"], capability["output_schema"]]
        named = {name: part for schema in schemas for name, part in schema.get("$defs", {}).items()}
        parts = [*zip(("input", "output"), schemas, strict=True), *named.items()]
        cli.output.facts((name, plain(brief(part))) for name, part in parts)


def brief(schema: Any) -> str:
    """A JSON Schema as one would say it: names and types; as JSON if it is not that simple."""
    if not isinstance(schema, dict) or not schema:
        return "anything"
    properties = schema.get("properties")
    if schema.get("type") == "object" and isinstance(properties, dict):
        required = schema.get("required", ())
        names = sorted(properties, key=lambda name: name not in required)
        parts = [f"{name}{'' if name in required else '?'}: {brief(properties[name])}" for name in names]
        return "{" + ", ".join(parts) + "}"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(brief(part) for part in schema["anyOf"])
    if schema.get("type") == "array" and "prefixItems" in schema:
        return f"[{', '.join(brief(part) for part in schema['prefixItems'])}]"
    if schema.get("type") == "array" and "items" in schema:
        return f"[{brief(schema['items'])}]"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"{{string: {brief(schema['additionalProperties'])}}}"
    return str(schema["type"]) if isinstance(schema.get("type"), str) else json.dumps(schema)


def _verb(name: str, help_: str, said: str) -> None:
    async def work(cli: Cli, agent: Name) -> None:
        async with cli.net() as net:
            found = await _find(net, agent)
            await getattr(net, name)(found.id)
        if cli.output.as_json:
            cli.output.show({"agent": found.id, "done": name})
        else:
            cli.output.say(f"{bold(found.id)} {said}")

    work.__doc__ = help_
    command(app, name)(work)


_verb("pause", "Give an agent nothing new; what it runs goes on.", "is paused")
_verb("resume", "Give a paused agent work again.", "takes work again")
_verb("remove", "Take an agent off its node.", "was removed")
