"""The tree of commands. A command's module is imported when the command is asked for: ``comity --help`` must be quick."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_group

from comity.cli.looks import Group, bold

HELP = """Run many AI agents, or any Python workers, on many machines as one network."""

# Section -> command -> its module, and what it is for.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Begin": {
        "up": ("network_commands", "Start a network on this machine, in the foreground"),
        "run": ("running", "Start agents: a node that hosts those of a module or file"),
        "submit": ("submit", "Give the network a task, and print its result"),
        "demo": ("tools", "Watch 32 agents survey a folder of code, and lose a node on the way"),
    },
    "Look": {
        "tasks": ("tasks", "Tasks: list, show, watch, cancel"),
        "agents": ("agents", "Agents: list, show, pause, resume, remove"),
        "nodes": ("nodes", "Nodes: list, show"),
        "events": ("events", "What happens, as it happens"),
        "stats": ("network_commands", "What the network is doing, in numbers"),
    },
    "Talk": {
        "send": ("messages", "Say something to an agent, and print its reply"),
        "broadcast": ("messages", "Say something to every agent"),
    },
    "Look after": {
        "down": ("network_commands", "Shut the network down: tell everyone, let running tasks end, stop"),
        "context": ("contexts", "Named connections: list, show, use, add, remove"),
        "doctor": ("doctor", "Is everything as it should be here? What to change if not"),
        "bench": ("bench", "Measure durable tasks or live messages on this machine"),
        "explain": ("tools", "What an error code means, and what to do about it"),
        "version": ("tools", "Versions of Comity and of what it runs on"),
    },
}
GROUPS = ("tasks", "agents", "nodes", "context", "bench")
_MODULES = {name: module for rows in SECTIONS.values() for name, (module, _) in rows.items()}


class _Commands(MutableMapping[str, Any]):
    """All commands by name; each is made when it is taken out."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            module = import_module(f"comity.cli.{_MODULES[name]}")
            group = get_group(module.app)
            self._made[name] = group if name in GROUPS else group.commands[name]
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class Tree(Group):
    """The program: its commands by what they are for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, _MODULES))
        for section, rows in SECTIONS.items():
            with formatter.section(bold(section)):
                formatter.write_dl([(f"{name:<{width}}", what) for name, (_, what) in rows.items()])


app = typer.Typer(
    name="comity",
    cls=Tree,
    help=HELP,
    no_args_is_help=True,
    subcommand_metavar="COMMAND",
    options_metavar="",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"comity {version('comity')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log lines.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which this is.")] = False,
) -> None:
    if debug:
        os.environ["COMITY_DEBUG"] = "1"
