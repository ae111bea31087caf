"""``comity run``: a node process with the agents of a module or file."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.command import AWAY, BACK, Cli, command, commands
from comity.cli.garbage import collect
from comity.cli.looks import bold, dim, paint
from comity.cli.output import Output, started, tell

if TYPE_CHECKING:
    from comity.agent import Agent
    from comity.bus.base import Bus
    from comity.config import Loaded
    from comity.connect import Doors
    from comity.contexts import Context
    from comity.node.node import Node

app = commands()

LOOK_S = 0.3
"""How often files are looked at for changes."""
TICK_NS = 20_000_000
"""By how much a file's time may lag behind the clock: the kernel takes it from its last tick."""
APPEARS_S = 15.0
"""How long we wait for a network that is not there yet: it may be starting just now."""
RETRY_S = 0.1
TAKEN_S = 0.2
"""How long we listen for another process with our name."""


@command(app)
async def run(
    cli: Cli,
    target: Annotated[str, typer.Argument(metavar="MODULE|FILE[:NAME]", help="Where the agents are. NAME: one, or a list.")],
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", min=1, help="So many of each agent.")] = 1,
    tag: Annotated[list[str], typer.Option("--tag", metavar="TAG", help="A tag that every agent gets.")] = [],  # noqa: B006
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the node is called.")] = "",
    reload: Annotated[bool, typer.Option("--reload", help="Drain, and start again, when the code changes.")] = False,
) -> None:
    """Start agents: a node process that hosts those of a module or file.

    Ctrl-C drains it: it takes nothing new, and lets what runs end. A second Ctrl-C does not wait for that.
    """
    from comity.cli.loading import files_of, load, replicate
    from comity.cli.logs import configure
    from comity.errors import ModuleFailed

    sys.dont_write_bytecode = sys.dont_write_bytecode or reload  # compiled code is told from new code by whole seconds only
    configure(logging.DEBUG if cli.output.debug else logging.WARNING, as_json=cli.output.as_json)
    before, since = list(sys.modules), time.time_ns() - TICK_NS
    try:
        agents = replicate(load(target), replicas)
    except ModuleFailed as error:
        if not reload:
            raise
        tell(error, cli.output)
        cli.output.note("waiting for the code to change")
        await _changed(files_of(before, target, error), since)
        is_over = is_stuck = False
    else:
        for agent in agents:
            agent.update(tags=(*agent.tags, *tag))
        files = files_of(before, target) if reload else []
        async with _hosted(cli, name or _name_for(target), agents, fixed=bool(name)) as (node, bus, context):
            signals = Signals()
            _greet(cli.output, node, context, files)
            change = _changed(files, since) if reload else None
            is_over = await _live(cli.output, node, bus, signals, change)
        is_stuck = node.pools.running > 0
    if not is_over:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves, with the new code
    if is_stuck:  # plain functions that were given up are still in their threads, which cannot be ended
        sys.stdout.flush()
        os._exit(0)


class Signals:
    """SIGINT and SIGTERM: ``asked`` after the first, ``hurried`` after the second."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, self._came)

    def _came(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


async def _first(*works: Coroutine[Any, Any, Any]) -> int:
    """Which one ended first; the others are canceled. Raises what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.wait(tasks)
    ended = next(number for number, task in enumerate(tasks) if not task.cancelled())
    tasks[ended].result()
    return ended


async def _changed(files: list[Path], since_ns: int) -> None:
    """Return when one of ``files`` was written to after ``since_ns`` (since 1970), or is gone."""

    def look() -> list[int]:
        return [path.stat().st_mtime_ns if path.is_file() else 0 for path in files]

    before = look()
    if any(since_ns < at < time.time_ns() for at in before):
        return
    while look() == before:  # noqa: ASYNC110 - a change of a file cannot be awaited
        await asyncio.sleep(LOOK_S)


def _name_for(target: str) -> str:
    from secrets import token_hex

    from comity.cli.loading import split

    stem = Path(split(target)[0].removesuffix("/__init__.py")).stem.rpartition(".")[2]
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in stem).strip("-")
    return f"{plain[:40] or 'node'}-{token_hex(3)}"


@asynccontextmanager
async def _hosted(
    cli: Cli, name: str, agents: list[Agent], *, fixed: bool
) -> AsyncIterator[tuple[Node, Bus, Context]]:
    """A node with ``agents``, known to the leader. Raises what keeps it from that. It leaves at the end."""
    import random

    import msgspec

    from comity.node.node import Node

    loaded = cli.loaded()
    async with AsyncExitStack() as stack:
        context, process, (bus, registry, store, _) = await _joined(stack, loaded, name, fixed, cli.output)
        await _be_alone(bus)
        settings = msgspec.structs.replace(loaded.settings, network=context.network)
        node = Node(
            bus, registry, store, settings, agents=agents, wall=time.time, rng=random.SystemRandom(), about=_about(process)
        )
        stack.push_async_callback(node.stop)
        collect()  # now, when nobody waits yet
        await node.start()
        await node.ready()
        started()
        yield node, bus, context


async def _joined(
    stack: AsyncExitStack, loaded: Loaded, name: str, fixed: bool, output: Output
) -> tuple[Context, str, Doors]:
    """The network, who we are there, and our way to it. One that is not there yet is waited for. Raises Unreachable and what else
    keeps us out."""
    from comity.buses import own_name
    from comity.connect import doors, identity
    from comity.contexts import resolve
    from comity.errors import Indefinite

    loop = asyncio.get_running_loop()
    began = loop.time()
    is_said = False
    while True:
        try:
            async with AsyncExitStack() as trial:
                context = resolve(loaded)
                chosen = fixed or context.authority or not (context.credentials or own_name(context, ""))
                process, known = identity(context, "node", name if chosen else "")
                opened = await doors(trial, context, process, known)
                stack.push_async_exit(trial.pop_all())
                return context, process, opened
        except Indefinite:
            if loop.time() - began > APPEARS_S:
                raise
            if not is_said:
                output.note("no network can be reached yet; waiting for it to come up")
                is_said = True
        await asyncio.sleep(RETRY_S)  # that a network appears cannot be awaited


async def _be_alone(bus: Bus) -> None:
    """Raises Conflict if another process has our name: two would get one another's messages."""
    from comity.bus.base import to
    from comity.connect import lasting
    from comity.errors import Conflict, TimedOut, Unreachable
    from comity.model.wire import Ping, encode

    async def is_taken() -> bool:
        try:
            await bus.request(to(bus.process), encode([Ping(0)]), TAKEN_S)
        except Unreachable:
            return False
        except TimedOut:
            pass
        return True

    if await lasting(bus, is_taken):
        raise Conflict(f"another process in the network is called {bus.process}: choose another --name", name=bus.process)


def _about(process: str) -> Any:
    import platform
    from importlib.metadata import version

    import psutil

    from comity.model.capability import NodeRecord, Resources
    from comity.model.ids import ProcessId

    resources = Resources(cpu=psutil.cpu_count() or 1, memory_mb=psutil.virtual_memory().total / 2**20)
    return NodeRecord(
        id=ProcessId(process), incarnation=0, host=platform.node(), pid=os.getpid(), version=version("comity"),
        resources=resources,
    )  # fmt: skip


def _greet(output: Output, node: Node, context: Context, files: list[Path]) -> None:
    from comity.model.ids import shown_urls

    agents = [(agent.name, list(agent.offered), list(agent.listeners)) for agent in node.agents]
    if output.as_json:
        rows = [{"id": f"{node.node}/{name}", "capabilities": offers, "topics": topics} for name, offers, topics in agents]
        output.line({"node": node.node, "network": context.network, "url": shown_urls(context.urls[:1]), "agents": rows})
        return
    many = "1 agent" if len(agents) == 1 else f"{len(agents):,} agents"
    output.say(f"{paint('green', '●')} node {bold(node.node)} is in network {bold(context.network)} with {many}")
    width = max(len(name) for name, _, _ in agents[:12])
    for name, offers, topics in agents[:12]:
        does = [f"offers {', '.join(offers)}"] if offers else []
        does += [f"listens to {', '.join(topics)}"] if topics else []
        output.say(f"  {bold(name)}{' ' * (width - len(name))}  {dim('; '.join(does) or 'does nothing yet')}")
    if len(agents) > 12:
        output.say(dim(f"  and {len(agents) - 12:,} more"))
    if files:
        output.say(dim(f"  starts again when {'its file' if len(files) == 1 else f'one of its {len(files)} files'} changes"))
    output.say(dim("Ctrl-C lets what runs end, and leaves."))


async def _live(output: Output, node: Node, bus: Bus, signals: Signals, change: Coroutine[Any, Any, None] | None) -> bool:
    """Until a signal, a ``change`` of the code, or the end of the connection; then drain. Whether it is over: False if the code
    changed. Raises Disconnected, what made the node fail, and ForeignData if another network answers now."""
    from comity.bus.base import Link
    from comity.errors import Disconnected

    closed = asyncio.Event()

    def tell_link(link: Link) -> None:
        if link is Link.CLOSED:
            closed.set()
        else:
            output.note(BACK if link is Link.UP else AWAY)

    bus.on_state(tell_link)
    waits = [signals.asked.wait(), closed.wait(), node.failed.wait(), _replaced(node, closed)]
    ended = await _first(*waits, *([change] if change is not None else []))
    if ended == 1:
        raise Disconnected("the server closed the connection for good: are the credentials still valid?")
    if ended == 2 and node.failure is not None:
        raise node.failure
    running = len(node.attempts.running)
    why = "stopping" if ended == 0 else "the code changed; starting again"
    more = f", once what runs has ended ({running})" if running else ""
    output.note(f"{output.over_ctrl_c}{why}{more}")
    if bus.link is Link.UP:
        await _first(node.drain(), signals.hurried.wait())
    return signals.asked.is_set()


async def _replaced(node: Node, closed: asyncio.Event) -> None:
    """Raises ForeignData if another network answers where ours did. The end of the connection is told of by ``closed``."""
    from comity.errors import Disconnected

    try:
        await node.client.ended()
    except Disconnected:
        await closed.wait()
