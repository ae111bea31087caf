"""The tree of commands."""

from __future__ import annotations

import typer

from comity.cli import agents, events, messages, network_commands, nodes, running, submit, tasks, tools
from comity.cli import bench as _bench

HELP = """Run many AI agents (or any Python workers) on many machines as one network.

Start with:  comity up   ·   comity run examples/hello.py   ·   comity submit greet '{"name": "Ada"}'
"""

app = typer.Typer(
    name="comity",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
network_commands.register(app)
running.register(app)
submit.register(app)
messages.register(app)
events.register(app)
tools.register(app)
app.add_typer(tasks.app, name="tasks")
app.add_typer(agents.app, name="agents")
app.add_typer(nodes.app, name="nodes")
app.add_typer(tools.contexts_app, name="context")
app.add_typer(_bench.app, name="bench")
