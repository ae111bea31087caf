"""``comity up``, ``down``, ``stats``: the network as a whole."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim, megabytes, paint, share, span
from comity.cli.recalling import LastKnown, last_known

if TYPE_CHECKING:
    from comity.cli.up import Plan
    from comity.client import Client
    from comity.config import Loaded

STOP_S = 15.0
STILL_S = 3.0
"""After so long without an answer the figures are old."""
SHOWN = 10
_CLUSTER: dict[str, Any] = {"rich_help_panel": "A cluster"}
_FOREIGN: dict[str, Any] = {"rich_help_panel": "Servers that are there"}
_RAFT: dict[str, Any] = {"rich_help_panel": "The built-in Raft"}
_DOOR: dict[str, Any] = {"metavar": "ADDRESS", "rich_help_panel": "Servers that are there"}
app = commands()

BusAddress = Annotated[
    str | None, typer.Option("--bus", help="Carry messages by RabbitMQ: amqp://USER:PASSWORD@HOST,HOST.", **_DOOR)
]
Stack = Annotated[
    str | None, typer.Option("--stack", metavar="nats|classic|consul", help="RabbitMQ and etcd; or Consul and Raft.", **_FOREIGN)
]
RaftMembers = Annotated[
    str | None, typer.Option("--raft", metavar="ID=HOST:PORT,...", help="Keep the log here, and on these machines.", **_RAFT)
]
RaftId = Annotated[str | None, typer.Option("--raft-id", metavar="ID", help="Which of them this one is.", **_RAFT)]
RaftKeys = Annotated[
    Path | None, typer.Option("--raft-keys", metavar="FOLDER", help="Its certificates: comity raft keys.", **_RAFT)
]
Listen = Annotated[
    str | None, typer.Option("--listen", metavar="ADDRESS", help="Where other machines reach it, with TLS.", **_CLUSTER)
]
Connect = Annotated[
    str | None, typer.Option("--connect", metavar="URL", help="Only a controller, on these servers.", **_FOREIGN)
]
AssertDurable = Annotated[bool, typer.Option("--assert-durable", help="They sync before they acknowledge.", **_FOREIGN)]
ClockIsRight = Annotated[bool, typer.Option("--clock-is-right", help="It did stand still for over a week.")]


@command(app, connects=False)
async def up(
    cli: Cli,
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="Where it keeps its data.")] = None,
    network: Annotated[str | None, typer.Option("--network", metavar="NAME", help="What it is called.")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="N", help="Where it listens (0: any free port).")] = None,
    http_port: Annotated[int | None, typer.Option("--http-port", metavar="N", help="Where /metrics is (0: any).")] = None,
    nats_server: Annotated[Path | None, typer.Option("--nats-server", metavar="FILE", help="The server program.")] = None,
    listen: Listen = None,
    servers: Annotated[
        int | None, typer.Option("--servers", metavar="3|5", help="Begin a cluster of so many servers.", **_CLUSTER)
    ] = None,
    join: Annotated[str | None, typer.Option("--join", metavar="TOKEN", help="Take part in a cluster.", **_CLUSTER)] = None,
    connect: Connect = None,
    bus: BusAddress = None,
    stack: Stack = None,
    raft: RaftMembers = None,
    raft_id: RaftId = None,
    raft_keys: RaftKeys = None,
    credentials: Annotated[Path | None, typer.Option("--credentials", metavar="FILE", help="Whose to use.", **_FOREIGN)] = None,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Who vouches for them.", **_FOREIGN)] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", metavar="N", help="Copies of each stream.", **_FOREIGN)] = None,
    log: Annotated[str | None, typer.Option("--log", help="Where the log is: etcd or raft://HOST:PORT,...", **_DOOR)] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="The registry: etcd or consul://HOST:PORT.", **_DOOR)] = None,
    store: Annotated[str | None, typer.Option("--store", help="The store: file:///PATH or s3://BUCKET/PREFIX.", **_DOOR)] = None,
    assert_durable: AssertDurable = False,
    clock_is_right: ClockIsRight = False,
) -> None:
    """Start a network in the foreground: a server and a controller, on this machine. Or one server of a cluster.

    Ctrl-C stops it. Started again on the same data it carries on where it was.
    """
    from comity.buses import is_rabbitmq
    from comity.cli.place import chosen
    from comity.cli.raft_member import own_member, told
    from comity.cli.up import Plan, with_last_doors, with_last_port
    from comity.cli.up import up as run_up

    given = {"bus": bus, "log": log, "registry": registry, "store": store}
    at, places = chosen(cli.settings(data_dir=data, network=network).data_dir, stack, connect, given)
    flags: dict[str, Any] = {
        "data_dir": data, "port": port, "http_port": http_port, "nats_server": nats_server, "listen": listen,
        "urls": at, "credentials": credentials, "ca": ca, "replicas": replicas, "network": network,
        "doors": places or None, "raft": told(raft, raft_id, raft_keys),
    }  # fmt: skip
    member = own_member(cli.settings(**flags), is_asked=raft is not None, is_alone=stack == "consul")
    if member is not None:
        flags["doors"] = {**places, "log": member.log}
    if at is not None or is_rabbitmq(cli.settings(**flags).urls):
        own = {"servers": servers, "join": join, "listen": listen}
        plan = _on_foreign(cli, flags, assert_durable, own)
        plan = plan._replace(is_clock_right=clock_is_right, member=member, is_stack=stack not in (None, "nats"))
        await run_up(cli.settings(**flags), cli.output, plan)
        return
    if join is not None:
        flags["network"] = network or _network_of(join)
    loaded = cli.loaded(**flags)
    is_free = loaded.settings.port == 0 or loaded.sources["port"] == "default"
    settings = with_last_port(loaded.settings) if is_free else loaded.settings
    plan = Plan(servers, join or "", is_clock_right=clock_is_right, member=member)
    await run_up(with_last_doors(settings, member), cli.output, plan)


def _network_of(token: str) -> str:
    from comity.cluster.invites import Token

    return Token.parse(token).network


def _on_foreign(cli: Cli, flags: dict[str, Any], asserted: bool, own: dict[str, Any]) -> Plan:
    """A controller only. Raises BadSettings for what is only for servers of our ``own``."""
    from getpass import getuser

    from comity.cli.up import Plan
    from comity.contexts import resolve
    from comity.errors import BadSettings

    if wrong := [f"--{name}" for name, value in own.items() if value is not None]:
        raise BadSettings(f"{wrong[0]} is for servers of our own, and these are somebody else's", setting=wrong[0][2:])
    asserts = f"an operator ({getuser()}) says that the servers sync to disk before they acknowledge" if asserted else ""
    return Plan(context=resolve(cli.loaded(**flags)), asserts=asserts)


@command(app)
async def down(
    cli: Cli,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=0.0, help="How long running tasks may go on.")
    ] = None,
    member: Annotated[bool, typer.Option("--member", help="Only this server of a cluster; the others go on.")] = False,
) -> None:
    """Shut the network down: tell every agent, refuse submits, let running tasks end, stop.

    Tasks that wait, or still run when the time is over, go on after the next comity up.
    """
    pid = _process_of(cli.loaded())
    if member:
        await _member_down(cli, pid)
        return
    async with cli.net() as net:
        if not cli.output.as_json:
            cli.output.note("announced; waiting for running tasks to end")
        left = await net.shutdown(timeout)
    if pid:
        await _end_of(pid)
    if cli.output.as_json:
        cli.output.show(left)
        return
    cli.output.say(f"{paint('green', '●')} the network is down")
    for count, what in ((left["running"], "still ran"), (left["waiting"], "wait")):
        if count:
            cli.output.say(f"  {bold(str(count))} {'task' if count == 1 else 'tasks'} {what}: comity up goes on with them")


async def _member_down(cli: Cli, pid: int) -> None:
    """Stop the server of this data directory, which hands over what it leads. Raises NotFound if it does not run."""
    import os
    import signal

    from comity.cluster.membership import Member
    from comity.errors import NotFound

    data = cli.settings().data_dir
    known = Member.load(data)
    if known is None or not pid:
        raise NotFound(f"no server of a cluster runs on {data}", path=str(data))
    os.kill(pid, signal.SIGTERM)
    await _end_of(pid)
    if cli.output.as_json:
        cli.output.show({"server": known.member, "stopped": True})
    else:
        cli.output.say(f"{paint('green', '●')} server {bold(known.member)} is down; the others go on")


def _process_of(loaded: Loaded) -> int:
    """The process that runs the network, if it is on this machine, else 0."""
    from comity.contexts import resolve

    context = resolve(loaded)
    try:
        return int((Path(context.authority) / "lock").read_text()) if context.authority else 0
    except (OSError, ValueError):
        return 0


async def _end_of(pid: int) -> None:
    """Wait for the end of a process, so that the next command finds it gone. Raises TimedOut."""
    import psutil

    from comity.errors import TimedOut

    def is_there() -> bool:
        try:
            return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    try:
        async with asyncio.timeout(STOP_S):
            while is_there():  # noqa: ASYNC110 - the end of another's child cannot be awaited
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimedOut(f"the network has drained, but process {pid} has not ended within {STOP_S:.0f} s", pid=pid) from None


@command(app)
async def stats(
    cli: Cli,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second, until Ctrl-C.")] = False,
    old: LastKnown = False,
) -> None:
    """What the network is doing, in numbers."""
    from comity.cli.network import while_it_runs

    if old:
        found = await last_known(cli, "stats")
        if cli.output.as_json:
            cli.output.show(found)
        else:
            said = (("leader", f"{found['leader']} {dim('term')} {found['term']}"), ("tasks", _counts(found["tasks"])))
            cli.output.facts([*said, ("nodes", ", ".join(found["nodes"]))], indent="")
        return
    async with cli.net() as net:
        if watch:
            await while_it_runs(net.ended, _watch(cli, net))
        elif cli.output.as_json:
            cli.output.show(await net.stats())
        else:
            _stats(cli, await net.stats())


async def _watch(cli: Cli, net: Client) -> None:
    """Each second, also after a time without a leader: figures that are not of now are said not to be."""
    from comity.errors import Indefinite

    numbers, at = await net.stats(), time.strftime("%H:%M:%S")
    while True:
        if cli.output.as_json:
            cli.output.line(numbers)
        else:
            print("\x1b[H\x1b[J" if sys.stdout.isatty() else "", end="")
            _stats(cli, numbers)
        await asyncio.sleep(1)
        while True:
            try:
                async with asyncio.timeout(STILL_S):
                    numbers, at = await net.stats(), time.strftime("%H:%M:%S")
                break
            except (Indefinite, TimeoutError) as error:
                cli.output.note(f"no leader answers; the last figures are of {at}  {error}".rstrip())
                await asyncio.sleep(1)


def _stats(cli: Cli, numbers: dict[str, Any]) -> None:
    from comity.cli.figures import FIGURES, figures

    totals, rates, durability = numbers["totals"], numbers["rates"], numbers["log_durability"]
    held = numbers["held_retries"]
    safe = paint("green" if durability == "verified" else "yellow", durability)
    rate = f"{rates['submitted_per_s']:,.0f} submitted, {rates['completed_per_s']:,.0f} completed a second"
    ever = ", ".join(f"{totals[what]:,} {what}" for what in ("submitted", "completed", "failed", "canceled", "retries"))
    cli.output.facts(
        [
            ("leader", f"{numbers['leader']} {dim('term')} {numbers['term']} {dim('log at')} {numbers['log_head']:,}"),
            ("durability", safe),
            ("tasks", _counts(numbers["tasks"])),
            ("oldest", f"has waited for {span(numbers['oldest_waiting_s'])}" if numbers["oldest_waiting_s"] else ""),
            ("held back", f"{held:,} retries: too many attempts fail" if held else ""),
            ("dead letters", f"{numbers['dead_letters']:,}" if numbers["dead_letters"] else ""),
            ("ever", ever + (f", {numbers['refused_submits']:,} refused" if numbers["refused_submits"] else "")),
            ("now", rate),
            ("nodes", _counts(numbers["nodes"])),
            ("agents", _counts(numbers["agents"])),
        ],
        indent="",
    )
    rows = [
        (node["id"], node["state"], node["agents"], node["attempts"], share(node["cpu"]), megabytes(node["memory_mb"]))
        for node in numbers["per_node"]
    ]
    if rows:
        print()
        cli.output.table(("NODE", "STATE", "AGENTS", "RUNNING", "CPU", "MEMORY"), rows, "")
    done = [(row["name"], f"{row['live']}/{row['agents']}", *figures(row)) for row in numbers["per_capability"][:SHOWN]]
    if done:
        print()
        cli.output.table(("CAPABILITY", "LIVE", *FIGURES), done, "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or dim("none")
