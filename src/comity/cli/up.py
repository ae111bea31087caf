"""``comity up``: a server and a controller in the foreground, until Ctrl-C or ``comity down``."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING

from comity.cli.output import Output

if TYPE_CHECKING:
    from comity.cli.network import EmbeddedNetwork
    from comity.config import Settings


async def up(settings: Settings, output: Output) -> None:
    """Run until told to stop. Raises what keeps a network from starting."""
    from comity.cli.network import EmbeddedNetwork

    loop = asyncio.get_running_loop()
    began = loop.time()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    network = await EmbeddedNetwork.start(settings)
    try:
        gc.collect()
        gc.freeze()  # what start-up made lives as long as we do
        _greet(network, settings, output, loop.time() - began)
        waits = [asyncio.create_task(network.wait()), asyncio.create_task(stop.wait())]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        output.note("stopping" if stop.is_set() else "the network was shut down; stopping")
        if waits[0] in done:
            waits[0].result()
    finally:
        await network.stop()


def _greet(network: EmbeddedNetwork, settings: Settings, output: Output, took_s: float) -> None:
    state = network.controller.state
    facts = {
        "url": network.url,
        "network": settings.network,
        "data": str(settings.data_dir),
        "metrics": f"http://127.0.0.1:{network.metrics.port}/metrics" if network.metrics is not None else None,
        "durability": "verified",
        "open_tasks": sum(not task.is_terminal for task in state.tasks.values()),
        "start_s": round(took_s, 3),
        "notes": network.notes,
    }
    if output.as_json:
        output.line(facts)
        return
    say = output.console.print
    say(f"[bold green]●[/] [bold]Comity[/] network [bold]{settings.network}[/] is up  [dim]({took_s:.1f} s)[/]")
    say(f"  listening   {network.url}  [dim](this machine only)[/]")
    say(f"  data        {settings.data_dir}  [dim](every acknowledged task is synced to disk)[/]")
    if facts["metrics"]:
        say(f"  metrics     {facts['metrics']}")
    if facts["open_tasks"]:
        say(f"  carrying on with [bold]{facts['open_tasks']}[/] tasks accepted before")
    for note in network.notes:
        say(f"  [yellow]note[/]        {note}")
    say("\nNext, in another terminal:")
    for command, what in _NEXT:
        say(f"  [bold]{command:<46}[/] [dim]{what}[/]")
    say("\nCtrl-C stops it; started again on the same data it carries on.")


_NEXT = (
    ("comity run examples/hello.py", "start an agent"),
    ("""comity submit greet '{"name": "Ada"}'""", "give it a task and see the result"),
    ("comity events -f", "watch what happens"),
)
