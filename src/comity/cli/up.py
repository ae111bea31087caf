"""What ``comity up`` does: a server and a controller in the foreground, until Ctrl-C or ``comity down``. Or a controller only, on
servers that are there."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from comity.cli.garbage import collect, without_stops
from comity.cli.logs import configure
from comity.cli.looks import bold, dim, paint
from comity.cli.output import Output, started

if TYPE_CHECKING:
    from comity.cli.foreign import ForeignNetwork
    from comity.cli.network import EmbeddedNetwork
    from comity.cli.raft_member import OwnMember
    from comity.cli.seat import Seat, Waiting
    from comity.config import Settings
    from comity.contexts import Context
    from comity.raft.server import RaftServer

SYNCED = "(each accepted task is synced to disk)"
UNSYNCED = "(fsync is off: a power cut loses what was accepted last)"
NEXT = (
    ("comity run examples/hello.py", "start an agent"),
    ("""comity submit greet '{"name": "Ada"}'""", "give it a task, and see the result"),
    ("comity events -f", "watch what happens"),
)


def with_last_port(settings: Settings) -> Settings:
    """Where the network of this data directory listened before, so that its nodes find it again."""
    from urllib.parse import urlsplit

    import msgspec

    from comity.contexts import Context

    last = Context.read_local(settings.data_dir)
    port = urlsplit(last.urls[0]).port if last is not None and last.urls else None
    return msgspec.structs.replace(settings, port=port) if port else settings


def with_last_doors(settings: Settings, member: OwnMember | None = None) -> Settings:
    """Where the network of this data directory has its log (with our own ``member``: there), registry and store. Raises
    BadSettings if they are to be elsewhere: accepted tasks would not move with them."""
    import msgspec

    from comity.buses import is_rabbitmq
    from comity.contexts import Context
    from comity.errors import BadSettings

    last = Context.read_local(settings.data_dir)
    if last is not None and is_rabbitmq(last.urls):
        rabbit = f"the network in {settings.data_dir} has RabbitMQ as its bus: start it as before, with --stack or --bus"
        raise BadSettings(rabbit, setting="urls")
    if last is None or settings.doors.keys() == last.doors.keys():
        return settings
    said = settings.doors if member is None else {name: at for name, at in settings.doors.items() if name != "log"}
    if said or ("log" in settings.doors and "log" not in last.doors):
        had = ", ".join(last.doors) or "none"
        where = f"of the network in {settings.data_dir} these lie elsewhere than the bus: {had}"
        raise BadSettings(f"{where}. To move, restore a backup into a new one", setting="doors", value=sorted(settings.doors))
    return msgspec.structs.replace(settings, doors={**last.doors, **settings.doors})


class Plan(NamedTuple):
    """What to start: a server of our own, by itself or in a cluster (``servers``, ``token``), or only a controller, on the
    servers of ``context``. ``asserts``: what is said of their durability. ``is_clock_right``: however far it is ahead of when the
    network last ran. ``is_stack``: what the servers do not keep is in our data directory. ``member``: of a built-in Raft, beside
    it."""

    servers: int | None = None
    token: str = ""
    context: Context | None = None
    asserts: str = ""
    is_clock_right: bool = False
    is_stack: bool = False
    member: OwnMember | None = None


async def up(settings: Settings, output: Output, plan: Plan) -> None:
    """Run until told to stop. Raises what keeps a network from starting or running."""
    from comity.cli.place import must_fit

    configure(logging.DEBUG if output.debug else logging.WARNING, as_json=output.as_json)
    loop = asyncio.get_running_loop()
    began = loop.time()
    asked = asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, starting.cancel)
    collect()  # now, when nobody waits yet: it takes some 30 ms
    if plan.is_stack:
        _own_folder(settings.data_dir)
    if plan.context is None:
        must_fit(settings, clusters=bool(plan.token) or plan.servers not in (None, 1))
    member = await _begin_member(settings, output, plan)
    try:
        network = await _start(settings, output, plan, member)
    except BaseException:
        if member is not None:
            await member.close()
        raise
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked.set)
    try:
        async with without_stops():
            started()
            _greet(network, settings, output, plan.member, loop.time() - began)
            stopped = asyncio.create_task(asked.wait())
            ends = [asyncio.create_task(one.wait()) for one in (network, member) if one is not None]
            done, pending = await asyncio.wait([stopped, *ends], return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for ended in done - {stopped}:
                ended.result()
            output.note(output.over_ctrl_c + "stopping" if stopped in done else "shut down by comity down; stopping")
    finally:
        await network.stop()
        if member is not None:
            await member.leave()


def _own_folder(data: Path) -> None:
    """For what a stack keeps on this machine. Raises BadSettings if it is a network's that has a server of its own."""
    from comity.errors import BadSettings

    if (data / "network.json").exists():
        raise BadSettings(f"{data} holds a network with a server of its own: name another folder (--data)", setting="data_dir")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.chmod(0o700)


async def _begin_member(settings: Settings, output: Output, plan: Plan) -> RaftServer | None:
    """The log's own member first: the network waits for it."""
    from comity.buses import must_have_doors
    from comity.cli.raft_member import begin
    from comity.embedded import identify, prepare

    if plan.member is None:
        return None
    if plan.context is not None:
        must_have_doors(plan.context)
    else:  # a server of our own will have this folder too
        prepare(settings.data_dir)
        identify(settings.data_dir, settings.network)
    return await begin(settings, plan.member, output.note)


async def _start(
    settings: Settings, output: Output, plan: Plan, member: RaftServer | None
) -> EmbeddedNetwork | ForeignNetwork:
    """With the log's own ``member``: as long as that runs."""
    from comity.cli.network import while_it_runs

    work = _started(settings, output, plan)
    return await (while_it_runs(member.wait, work) if member is not None else work)


async def _started(settings: Settings, output: Output, plan: Plan) -> EmbeddedNetwork | ForeignNetwork:
    from comity.cli.foreign import ForeignNetwork
    from comity.cli.network import EmbeddedNetwork
    from comity.cli.place import take_place
    from comity.controller.controller import JUMP_S

    jump_s = inf if plan.is_clock_right else JUMP_S
    if plan.context is not None:
        foreign = await ForeignNetwork.start(settings, plan.context, asserts=plan.asserts, jump_s=jump_s)
        if plan.is_stack:  # part of it is in this folder: who looks here finds the rest
            plan.context.write_local(settings.data_dir)
        return foreign
    place = await take_place(settings, servers=plan.servers, token=plan.token)
    return await EmbeddedNetwork.start(settings, place=place, tell=partial(_wait, output), jump_s=jump_s)


def _wait(output: Output, waiting: Waiting, seat: Seat) -> None:
    """Say which servers are awaited, and what to type for that."""
    from comity.cli.cluster import TTL_S, new_token

    missing = waiting.size - waiting.up
    tokens = [new_token(seat.data, seat.member) for _ in range(missing)] if waiting.first else []
    if output.as_json:
        output.line({"waiting_for": missing, "servers": waiting.up, "size": waiting.size, "tokens": tokens})
        return
    more = "1 more server" if missing == 1 else f"{missing} more servers"
    output.say(f"{paint('yellow', '●')} {waiting.up} of {waiting.size} servers here; waiting for {more}")
    if tokens:
        output.say("  On each, with a token of its own:")
        for token in tokens:
            output.say(f"    comity up --join {token}")
        output.say(dim(f"  Each lets one server in, within {TTL_S / 60:.0f} minutes; comity cluster invite makes more."))


def _greet(
    network: EmbeddedNetwork | ForeignNetwork, settings: Settings, output: Output, member: OwnMember | None, took_s: float
) -> None:
    open_tasks = sum(not task.is_terminal for task in network.controller.state.tasks.values())
    metrics = f"http://127.0.0.1:{network.metrics.port}/metrics" if network.metrics is not None else None
    seat, data = network.seat, network.data
    level, reason = network.durability
    if output.as_json:
        facts: dict[str, Any] = {"url": network.url, "network": network.name, "data": data, "metrics": metrics}
        if seat is not None:
            facts |= {"server": seat.member.member, "size": seat.member.size, "leader": network.controller.state.leader}
        if member is not None:
            facts["raft"] = member.id
        facts["durability"] = level
        output.line({**facts, "open_tasks": open_tasks, "start_s": round(took_s, 3), "notes": network.notes})
        return
    output.say(f"{paint('green', '●')} network {bold(network.name)} is up {dim(f'({took_s:.1f} s)')}")
    role = "leads" if network.controller.leading is not None else f"stands by; {network.controller.state.leader} leads"
    output.facts(
        [
            ("listening" if data else "servers", f"{network.url}  {dim(network.reach)}"),
            ("cluster", f"server {seat.member.member}, one of {seat.member.size}; its controller {role}" if seat else None),
            ("raft", f"member {member.id} of {len(member.members)}, at {member.listen}" if member is not None else None),
            ("data", f"{data}  {dim(SYNCED) if settings.fsync else paint('yellow', UNSYNCED)}" if data else None),
            ("durability", None if data else f"{paint('yellow', level)}  {dim(f'({reason})')}"),
            ("metrics", metrics),
            ("carries on", f"{open_tasks:,} {'task' if open_tasks == 1 else 'tasks'} accepted before" if open_tasks else None),
            *(("note", paint("yellow", note)) for note in network.notes),
        ]
    )
    width = max(len(words) for words, _ in NEXT)
    output.say(f"\nNext, in another terminal{_where(settings) if data else dim(' (add --connect as here)')}:")
    for words, what in NEXT:
        output.say(f"  {bold(words)}{' ' * (width - len(words))}   {dim(what)}")
    output.say(f"\n{dim('Ctrl-C stops it.')}")


def _where(settings: Settings) -> str:
    """What the next commands need to find a network that is not in the default place."""
    from os import environ

    from comity.config import data_home

    if settings.data_dir == data_home(environ) / "main" or "COMITY_DATA_DIR" in environ:
        return ""
    return f" {dim(f'(add --data {settings.data_dir}, or set COMITY_DATA_DIR)')}"
