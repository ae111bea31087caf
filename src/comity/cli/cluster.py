"""``comity cluster``: the servers of a network that has more than one."""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim, paint, span

if TYPE_CHECKING:
    from comity.bus.base import Bus
    from comity.cluster.membership import Member
    from comity.cluster.status import Group, Server
    from comity.contexts import Context

app = commands("The servers of a network that has more than one: status, invite, forget.")
TTL_S = 3600.0
ANSWER_S = 0.5
ANSWERS_MAX = 16


@command(app, connects=False)
async def invite(
    cli: Cli,
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="The data of a server that runs here.")] = None,
    network: Annotated[str | None, typer.Option("--network", metavar="NAME", help="The network's name.")] = None,
    ttl: Annotated[float, typer.Option("--ttl", metavar="SECONDS", min=1.0, help="How long it is good.")] = TTL_S,
) -> None:
    """Make a token with which one more server may join. It is good once, and for an hour.

    Whoever has it gets the network's keys: give it to nobody but that machine.
    """
    from comity.cluster.membership import Member
    from comity.errors import NotFound

    folder = cli.settings(data_dir=data, network=network).data_dir
    member = Member.load(folder)
    if member is None:
        raise NotFound(f"{folder} is not a cluster's; begin one with: comity up --servers 3", path=str(folder))
    token = new_token(folder, member, ttl)
    if cli.output.as_json:
        ends = datetime.fromtimestamp(time.time() + ttl, UTC).isoformat(timespec="seconds")
        cli.output.show({"token": token, "expires": ends, "command": f"comity up --join {token}"})
        return
    cli.output.say(f"On the other machine, within {span(ttl)}:")
    cli.output.say(f"  comity up --join {token}")


def new_token(data: Path, member: Member, ttl_s: float = TTL_S) -> str:
    """A token for the endpoint of ``member``, whose data this is. Raises Corrupt, ForeignData."""
    from comity.cluster.config import bracketed
    from comity.cluster.invites import Token
    from comity.cluster.invites import invite as make
    from comity.cluster.tls import CertificateAuthority
    from comity.credentials import Authority
    from comity.embedded import identify
    from comity.errors import Corrupt

    network = Authority.load(data).network
    ca = CertificateAuthority.load(data)
    if ca is None:
        raise Corrupt(f"{data} has lost the network's certificates: put tls/ back", path=str(data))
    number, secret = make(data, time.time(), ttl_s)
    address = f"{bracketed(member.host)}:{member.join_port}"
    return Token((address,), network, identify(data, network), ca.fingerprint, number, secret).text()


@command(app)
async def forget(
    cli: Cli, server: Annotated[str, typer.Argument(metavar="SERVER", help="Its name or id; may be cut short.")]
) -> None:
    """Forget a server that is gone for good, so that another may join in its place.

    It must not run, and the others must hold everything without it. On the machine of a server that runs.
    """
    from comity.cli.forgetting import forget as work
    from comity.contexts import resolve

    name = await work(resolve(cli.loaded()), server)
    if cli.output.as_json:
        cli.output.show({"forgotten": name})
        return
    cli.output.say(f"forgot {bold(name)}. Empty its data directory before it is used again. In its place, another:")
    cli.output.say("  comity cluster invite")


@command(app)
async def status(cli: Cli) -> None:
    """Servers, replicas, controllers, and what the network can survive now."""
    from comity.contexts import resolve

    found = await survey(resolve(cli.loaded()))
    if cli.output.as_json:
        cli.output.show(found)
    else:
        _show(cli, found)


async def survey(context: Context) -> dict[str, Any]:
    """All that can be learned with what ``context`` may do. Raises Unreachable, AccessDenied, BadSettings."""
    from comity.buses import is_rabbitmq, open_nats
    from comity.cli import elsewhere
    from comity.cli.rabbit import survey as survey_rabbit
    from comity.cluster.status import SystemView, groups, meta_group, servers, survival
    from comity.connect import identity, secured
    from comity.credentials import Authority
    from comity.errors import ComityError
    from comity.jetstream import JetStream

    if is_rabbitmq(context.urls):
        return await survey_rabbit(context)
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        process, known = identity(context, "controller" if context.authority else "client")
        bus = await open_nats(context, process, known)
        stack.push_async_callback(bus.close)
        js = await JetStream(bus.connection, 2 * ANSWER_S).open()
        stack.push_async_callback(js.close)
        streams, missing = await groups(js, context.network)
        members = {replica.server for group in streams for replica in group.replicas}
        controllers = await positions(bus)
        places = {**next((said["doors"] for said in controllers if said.get("doors")), {}), **context.doors}
        others = await elsewhere.survey(places, context.network)
        streams = [group for group in streams if group.name not in places]
        notes += [said for said in missing if said.partition(":")[0] not in places] + others.notes
        pings: list[dict[str, Any]] = []
        if context.authority:
            name = f"{process}-view"
            system = secured(Authority.load(Path(context.authority)).mint("system", name).connect_options(), context.ca)
            try:
                view = await SystemView.connect(context.urls, name, system)
                stack.push_async_callback(view.close)
                pings = await view.ping(max(1, len(members)))
            except ComityError as error:
                notes.append(error.message)
        else:
            notes.append("without the keys of the system account it is not known which servers are up")
        meta = meta_group(pings)
        known_groups = [*streams, *([meta] if meta is not None else []), *others.groups]
        left = survival(known_groups, len(controllers))
    leading = next((found for found in controllers if found["role"] == "leader"), None)
    head = max([group.head for group in streams if group.name == "log"] + [found["log_head"] for found in controllers], default=0)
    return {
        "network": context.network,
        "survives": {**left._asdict(), "text": left.text()},
        "leader": leading and leading["process"],
        "term": leading and leading["term"],
        "log_head": head,
        "servers": [
            *(_server(server, known=bool(pings)) for server in servers(pings, sorted(members))),
            *(_server(server, known=True) for server in others.servers),
        ],
        "groups": [_group(group) for group in known_groups],
        "raft": others.raft,
        "controllers": [{**found, "lag": max(0, head - found["log_head"])} for found in controllers],
        "damaged": _damaged(controllers),
        "notes": notes,
    }


def _damaged(controllers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies that are damaged and not rebuilt yet, as any controller knows."""
    told = (found for said in controllers for found in said.get("damaged_copies", ()))
    return list({(found["server"], found["stream"]): found for found in told}.values())


def _server(server: Server, *, known: bool) -> dict[str, Any]:
    return {**server._asdict(), "up": server.up if known else None}


def _group(group: Group) -> dict[str, Any]:
    return {**group._asdict(), "replicas": [replica._asdict() for replica in group.replicas]}


async def positions(bus: Bus) -> list[dict[str, Any]]:
    """Where each controller is, as it says: those that answer at once."""
    found = await controllers_say(bus, "position")
    said = [about for process, about in found.items() if about.get("process") == process]
    return sorted(said, key=lambda about: (about["role"] != "leader", about["process"]))


async def controllers_say(bus: Bus, question: str, **args: Any) -> dict[str, dict[str, Any]]:
    """What each controller that answers at once says to a question, by its process."""
    from comity.bus.base import Delivery, to
    from comity.controller.controller import CONTROLLERS
    from comity.errors import InvalidInput
    from comity.model.codec import from_json, to_json
    from comity.model.wire import Answer, Ask, decode, encode

    found: dict[str, dict[str, Any]] = {}
    ref = secrets.randbits(53)

    def take(delivery: Delivery) -> None:
        try:
            items = decode(delivery.data)
        except InvalidInput:
            return
        for item in items:
            if isinstance(item, Answer) and item.ref == ref and not item.code and len(found) < ANSWERS_MAX:
                said = from_json(item.body)
                if isinstance(said, dict):
                    found[delivery.sender] = said

    cancel = await bus.subscribe(to(bus.process), take)
    await bus.send(CONTROLLERS, encode([Ask(ref, question, to_json(args))]))
    await asyncio.sleep(ANSWER_S)  # nobody knows how many there are
    await cancel()
    return found


def _show(cli: Cli, found: dict[str, Any]) -> None:
    from comity.cli import raft_looks
    from comity.model.server import Damage

    survives, output = found["survives"], cli.output
    style = "green" if survives["more"] > 0 else "yellow" if not survives["more"] else "red"
    output.say(f"{paint(style, '●')} network {bold(found['network'])}: {survives['text']}")
    led = f"{found['leader']} {dim('term')} {found['term']}" if found["leader"] else paint("red", "none answers")
    output.facts([("leader", led), ("log at", f"{found['log_head']:,}")])
    print()
    rows = [(_up(row["up"]), row["name"], row["address"], row["version"], _since(row)) for row in found["servers"]]
    output.table(("", "SERVER", "ADDRESS", "VERSION", "UP FOR"), rows, "no server can be seen with these credentials")
    print()
    groups = [(row["name"], row["leader"] or paint("red", "none"), _replicas(row)) for row in found["groups"]]
    output.table(("GROUP", "LEADER", "REPLICAS"), groups, "no group can be seen with these credentials")
    if found["raft"]:
        print()
        raft_looks.show(found["raft"], output)
    print()
    controllers = [(row["process"], row["place"], row["role"], row["term"], f"{row['lag']:,}") for row in found["controllers"]]
    output.table(("CONTROLLER", "AT", "ROLE", "TERM", "BEHIND"), controllers, "no controller answers")
    for known in found["damaged"]:
        damage = Damage(known["stream"], known["index"], known["reason"])
        where = f"{damage.place}: {damage.reason}"
        output.say(f"\n{paint('red', '✗')} the copy of {damage.stream} on {known['server']} is damaged at {where}")
    for note in found["notes"]:
        output.note(note)


def _since(row: dict[str, Any]) -> str:
    return span(row["uptime_s"]) if row["up"] and row["uptime_s"] is not None else ""


def _up(up: bool | None) -> str:
    return dim("?") if up is None else paint("green", "●") if up else paint("red", "✗")


def _replicas(group: dict[str, Any]) -> str:
    said = []
    for replica in group["replicas"]:
        if replica["current"]:
            how = ""
        elif replica["up"]:
            how = paint("yellow", f" ({replica['lag']:,} behind)")
        else:
            how = paint("red", " (down)")
        if replica["server"] != group["leader"]:
            said.append(replica["server"] + how)
    return ", ".join(said)
