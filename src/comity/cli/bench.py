"""``comity bench``: the real path, measured: a server and a controller, nodes in processes of their own, a client here.

CPU is what *all* these processes used, the server's included, as the operating system counts it. Durability is printed with
every figure, because a figure without it says nothing.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, dim
from comity.cli.output import Output

app = commands("Measure this machine: a network of its own is started, and gone afterwards.")


class Fault(enum.StrEnum):
    KILL = "kill"
    PAUSE = "pause"
    PARTITION = "partition"
    STUCK = "stuck"
    LEADER = "leader"
    SERVER = "server"
    RESTART = "restart"
    BROKER = "broker"


Count = Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="How many; fewer unless told if one by one.")]
Payload = Annotated[int, typer.Option("--payload", metavar="BYTES", min=16, max=1_000_000, help="Size of each input.")]
Sequential = Annotated[bool, typer.Option("--sequential", help="One at a time: what a single call takes when all is idle.")]
Nodes = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Node processes.")]
Doors = Annotated[
    str, typer.Option("--doors", metavar="DOOR=ADDRESS...", help="What lies elsewhere: 'log=etcd://... registry=...'.")
]
BusAddress = Annotated[str, typer.Option("--bus", metavar="ADDRESS", help="RabbitMQ, with all doors elsewhere: amqp://...")]
Profile = Annotated[Path | None, typer.Option("--profile", metavar="FILE", help="Write a flame graph (SVG) of all processes.")]

SLOTS = 256
CALLS = 1024
DURABLE_AT_ONCE, MAILBOX = 1024, 1_000_000
"""Mails in flight, at least, and waiting for one agent, at most: what is measured is the pipeline, not its limits."""


@command(app, connects=False)
async def tasks(
    cli: Cli,
    count: Count = None,
    payload: Payload = 256,
    nodes: Nodes = 2,
    agents: Annotated[int, typer.Option("--agents", metavar="N", min=1, help="Agents, over all nodes.")] = 8,
    sequential: Sequential = False,
    callers: Annotated[int, typer.Option("--callers", metavar="N", min=0, help="Single submits, by so many at a time.")] = 0,
    in_flight: Annotated[int, typer.Option("--in-flight", metavar="N", min=256, help="Tasks in flight, in batches.")] = 16_384,
    waiting: Annotated[bool, typer.Option("--waiting", help="Submit all before any agent is there.")] = False,
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Each write is on disk before it is acknowledged.")] = True,
    servers: Annotated[int, typer.Option("--servers", metavar="1|3|5", help="Servers, each with a copy of the log.")] = 1,
    doors: Doors = "",
    bus: BusAddress = "",
    profile: Profile = None,
) -> None:
    """Durable tasks, from submit to result, each on disk before it is acknowledged."""
    from comity.cli import bench_tasks as work
    from comity.cli.bench_network import network
    from comity.cli.bench_profile import profiled

    slots = max(1, SLOTS * 8 // agents)
    count = count or (100_000 if waiting else 1000 if sequential else 20_000)
    settings: dict[str, Any] = {"max_waiting": count + 1, "max_waiting_per_submitter": count + 1} if waiting else {}
    settings |= {} if fsync else {"fsync": False}
    settings |= _elsewhere(doors, bus)
    _check_size(servers)
    hired = 0 if waiting else nodes
    async with network(hired, agents, slots=slots, servers=servers, **settings) as bench, profiled(bench, profile):
        if waiting:
            mode, figures = "waiting", await work.waiting(bench, count, payload, nodes, agents)
        elif sequential:
            mode, figures = "sequential", await work.one_by_one(bench, count, payload)
        else:
            mode = f"{callers} callers" if callers else f"batches of {work.BATCH}, {in_flight} in flight"
            figures = await work.throughput(bench, count, payload, callers, in_flight // work.BATCH)
    figures["settings"] |= {"payload": payload, "mode": mode} | _told(doors, bus)
    _print(cli.output, "durable tasks", figures)


@command(app, connects=False)
async def messages(
    cli: Cli,
    count: Count = None,
    payload: Payload = 256,
    nodes: Nodes = 1,
    agents: Annotated[int, typer.Option("--agents", metavar="N", min=1, help="Agents, over all nodes.")] = 1,
    in_flight: Annotated[int, typer.Option("--in-flight", metavar="N", min=1, help="Requests at a time.")] = 64,
    sequential: Sequential = False,
    one_way: Annotated[bool, typer.Option("--one-way", help="Messages that nobody answers.")] = False,
    broadcast: Annotated[bool, typer.Option("--broadcast", help="Messages to every agent.")] = False,
    durable: Annotated[bool, typer.Option("--durable", help="Durable mail: on disk before the sender is told.")] = False,
    profile: Profile = None,
) -> None:
    """Messages between this process and agents in others: live requests and replies, or one way, or to everyone; or durable
    mail. Of live ones, raw_us is what one takes by the client library alone, both measured in turn; ratio: how many times as long
    ours take."""
    from comity.cli import bench_mail
    from comity.cli import bench_messages as work
    from comity.cli.bench_network import network
    from comity.cli.bench_profile import profiled

    settings = {"max_mailbox": MAILBOX} if durable else {}
    async with network(nodes, agents, slots=CALLS, **settings) as bench, profiled(bench, profile):
        if durable:
            at_once = 1 if sequential else max(in_flight, DURABLE_AT_ONCE)
            count = count or (1000 if sequential else 50_000)
            mode, figures = f"durable, {at_once} in flight", await bench_mail.durable(bench, count, payload, at_once)
        elif one_way:
            mode, figures = "one way", await work.one_way(bench, count or 100_000, payload)
        elif broadcast:
            mode, figures = "broadcast", await work.broadcasts(bench, count or 100_000, payload)
        elif sequential:
            mode, figures = "sequential", await work.requests(bench, count or 1000, payload, 1)
        else:
            mode, figures = f"{in_flight} in flight", await work.requests(bench, count or 20_000, payload, in_flight)
    figures["settings"] |= {"payload": payload, "mode": mode}
    _print(cli.output, "durable mail" if durable else "live messages", figures)


@command(app, connects=False)
async def streams(
    cli: Cli,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Parts of the long stream.")] = 50_000,
    number: Annotated[int, typer.Option("--streams", metavar="N", min=1, help="Short streams, one after the other.")] = 100,
    payload: Payload = 64,
) -> None:
    """Streams: how many parts a second, and how late each part is, from where it is made to its reader."""
    from comity.cli.bench_network import network
    from comity.cli.bench_streams import measure

    async with network(1, 1, slots=CALLS) as bench:
        figures = await measure(bench, number, count, payload)
    figures["settings"] |= {"payload": payload}
    _print(cli.output, "streams", figures)


@command(app, connects=False)
async def scale(
    cli: Cli,
    agents: Annotated[int, typer.Option("--agents", metavar="N", min=1, help="Agents, over all nodes.")] = 10_000,
    nodes: Nodes = 1,
) -> None:
    """Many agents: how fast they are there, what each takes, how fast they are found and reached."""
    from comity.cli.bench_network import network
    from comity.cli.bench_scale import SLOTS, measure

    async with network(0, 0, slots=SLOTS) as bench:
        figures = await measure(bench, nodes, agents)
    _print(cli.output, "many agents", figures)


@command(app, connects=False)
async def recovery(
    cli: Cli,
    fault: Annotated[
        Fault,
        typer.Option(
            "--fault",
            help="A node is killed, paused or cut off, or its attempts show no progress any more (stuck); or of three servers, "
            "each with a controller, the one whose controller leads is killed (leader), or the one that leads the log (server), "
            "or that one is stopped in order and started again (restart); or the only nats-server is killed (broker).",
        ),
    ] = Fault.KILL,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="How many rounds.")] = 20,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=3, help="Node processes.")] = 4,
    attempts: Annotated[int, typer.Option("--attempts", metavar="N", min=3, help="Tasks that run all the time.")] = 32,
    doors: Doors = "",
    bus: BusAddress = "",
) -> None:
    """How long work stands still after a fault: until all that its node had runs elsewhere (stuck: was moved), or until the
    network again accepts and finishes tasks."""
    from comity.cli.bench_failover import measure as measure_servers
    from comity.cli.bench_figures import Lateness
    from comity.cli.bench_network import network
    from comity.cli.bench_recovery import measure
    from comity.cli.bench_stuck import measure as measure_stuck
    from comity.errors import BadSettings

    on_servers = fault in (Fault.LEADER, Fault.SERVER, Fault.RESTART, Fault.BROKER)
    if (doors or bus) and fault not in (Fault.KILL, Fault.PAUSE, Fault.STUCK):
        raise BadSettings(f"--fault {fault} is for servers of our own, and these are somebody else's", setting="doors")
    blameless: dict[str, Any] = {"poison_nodes": 0, "breaker_failures": 1_000_000}  # no task, and no agent
    blameless |= _elsewhere(doors, bus)
    async with network(0, 0, slots=0, servers=3 if on_servers and fault is not Fault.BROKER else 1, **blameless) as bench:
        lateness = Lateness(bench)
        if fault is Fault.STUCK:
            figures = await measure_stuck(bench, count, nodes, attempts)
        elif on_servers:
            figures = await measure_servers(bench, fault, count, nodes, attempts)
        else:
            figures = await measure(bench, fault, count, nodes, attempts)
        settings = figures.pop("settings") | _told(doors, bus)
        figures |= {**await lateness.figures(lateness.stop()), "settings": settings}
    _print(cli.output, "recovery", figures)


def _elsewhere(doors: str, bus: str) -> dict[str, Any]:
    """Settings for a network of which not all is in a nats-server. It has a name of its own on those servers."""
    from secrets import token_hex

    return ({"doors": doors, "network": f"bench-{token_hex(4)}"} if doors else {}) | ({"urls": bus} if bus else {})


def _told(doors: str, bus: str) -> dict[str, str]:
    return ({"doors": doors} if doors else {}) | ({"bus": "RabbitMQ"} if bus else {})


@command(app, connects=False)
async def raft(
    cli: Cli,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Appends of each kind.")] = 2000,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=0, help="How often the leader is killed.")] = 5,
) -> None:
    """The built-in Raft, three processes: how long an append takes, how many commands a second, and a new leader after a kill."""
    from comity.cli.bench_raft import measure

    _print(cli.output, "built-in Raft", await measure(count, rounds))


@command(app, connects=False)
async def overload(
    cli: Cli,
    agents: Annotated[int, typer.Option("--agents", metavar="N", min=1, help="Agents, over all nodes.")] = 5100,
    burst: Annotated[int, typer.Option("--burst", metavar="N", min=1, help="Tasks that each submits.")] = 20,
    nodes: Nodes = 2,
    max_waiting: Annotated[int, typer.Option("--max-waiting", metavar="N", min=1, help="Tasks that may wait.")] = 20_000,
    patience: Annotated[
        float, typer.Option("--patience", metavar="S", min=0, help="Those refused come again for so long; 0: they give up.")
    ] = 300.0,
) -> None:
    """Every agent submits a burst at the same moment, more together than may wait: what is accepted completes."""
    from comity.cli.bench_network import network
    from comity.cli.bench_overload import Order, measure

    async with network(0, 0, slots=0, max_waiting=max_waiting) as bench:
        figures = await measure(bench, nodes, agents, Order(burst, patience))
    _print(cli.output, "overload", figures)


def _check_size(servers: int) -> None:
    from comity.cluster.config import SIZES
    from comity.errors import BadSettings

    if servers not in (1, *SIZES):
        raise BadSettings(f"a network has 1, {' or '.join(map(str, SIZES))} servers, not {servers}", setting="servers")


def _print(output: Output, title: str, figures: dict[str, Any]) -> None:
    if output.as_json:
        output.show(figures)
        return
    settings = figures.pop("settings")
    print(f"{bold(title)}  {dim(', '.join(f'{key} {value}' for key, value in settings.items()))}")
    output.facts((key, f"{value:,}" if isinstance(value, int | float) else str(value)) for key, value in figures.items())
