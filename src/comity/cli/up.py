"""What ``comity up`` does: a server and a controller in the foreground, until Ctrl-C or ``comity down``."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from typing import TYPE_CHECKING

from comity.cli.logs import configure
from comity.cli.looks import bold, dim, paint
from comity.cli.output import Output, started

if TYPE_CHECKING:
    from comity.cli.network import EmbeddedNetwork
    from comity.config import Settings

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


async def up(settings: Settings, output: Output) -> None:
    """Run until told to stop. Raises what keeps a network from starting or running."""
    from comity.cli.network import EmbeddedNetwork

    configure(logging.DEBUG if output.debug else logging.WARNING, as_json=output.as_json)
    loop = asyncio.get_running_loop()
    began = loop.time()
    asked = asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, starting.cancel)
    gc.collect()  # now, when nobody waits yet: it takes some 30 ms
    network = await EmbeddedNetwork.start(settings)
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked.set)
    try:
        started()
        _greet(network, settings, output, loop.time() - began)
        ended, stopped = asyncio.create_task(network.wait()), asyncio.create_task(asked.wait())
        done, pending = await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if ended in done:
            ended.result()
        output.note(output.over_ctrl_c + "stopping" if stopped in done else "shut down by comity down; stopping")
    finally:
        await network.stop()


def _greet(network: EmbeddedNetwork, settings: Settings, output: Output, took_s: float) -> None:
    open_tasks = sum(not task.is_terminal for task in network.controller.state.tasks.values())
    metrics = f"http://127.0.0.1:{network.metrics.port}/metrics" if network.metrics is not None else None
    durability = "verified" if settings.fsync else "unverified"
    if output.as_json:
        facts = {"url": network.url, "network": settings.network, "data": str(settings.data_dir), "metrics": metrics}
        output.line(
            {**facts, "durability": durability, "open_tasks": open_tasks, "start_s": round(took_s, 3), "notes": network.notes}
        )
        return
    output.say(f"{paint('green', '●')} network {bold(settings.network)} is up {dim(f'({took_s:.1f} s)')}")
    output.facts(
        [
            ("listening", f"{network.url}  {dim('(this machine only)')}"),
            ("data", f"{settings.data_dir}  {dim(SYNCED) if settings.fsync else paint('yellow', UNSYNCED)}"),
            ("metrics", metrics),
            ("carries on", f"{open_tasks:,} {'task' if open_tasks == 1 else 'tasks'} accepted before" if open_tasks else None),
            *(("note", paint("yellow", note)) for note in network.notes),
        ]
    )
    width = max(len(words) for words, _ in NEXT)
    output.say(f"\nNext, in another terminal{_where(settings)}:")
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
