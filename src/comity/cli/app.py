"""The tree of commands. A command's module is imported when the command is asked for: ``comity --help`` must be quick."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_group

from comity.cli.looks import Group, bold

if TYPE_CHECKING:
    from comity.errors import ComityError

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
        "tasks": ("tasks", "Tasks: list, show, watch, cancel, answer"),
        "schedules": ("schedules", "Tasks by the clock: add, list, show, remove"),
        "dead": ("dead", "Failed tasks: list, show, replay, drop"),
        "agents": ("agents_find", "Agents: list, find, watch, show, pause, resume, remove"),
        "capabilities": ("capabilities", "What can be done here: list, show"),
        "nodes": ("nodes", "Nodes: list, show, drain, isolate, resume"),
        "events": ("events", "What happens, as it happens"),
        "stats": ("network_commands", "What the network is doing, in numbers"),
        "cluster": ("cluster", "Servers: status, invite, forget"),
    },
    "Talk": {
        "send": ("messages", "Say something to an agent, and print its reply"),
        "broadcast": ("messages", "Say something to every agent"),
        "mail": ("mail", "Durable mail: list, boxes, show, dead, drop"),
        "groups": ("groups", "Groups of agents: list, show, watch, remove"),
    },
    "Look after": {
        "down": ("network_commands", "Shut the network down: tell everyone, let running tasks end, stop"),
        "backup": ("backup", "Copies of the network: create, list, verify, restore"),
        "raft": ("raft", "Members of the built-in Raft: serve, keys, status, hand-over, add, remove"),
        "context": ("contexts", "Named connections: list, show, use, add, remove, invite, import"),
        "doctor": ("doctor", "Is everything as it should be here? What to change if not"),
        "bench": ("bench", "Measure on this machine: tasks, messages, streams, scale, recovery, raft, overload"),
        "explain": ("tools", "What an error code means, and what to do about it"),
        "version": ("tools", "Versions of Comity and of what it runs on"),
    },
}
GROUPS = (
    "tasks", "schedules", "dead", "agents", "capabilities", "nodes", "cluster", "mail", "groups", "backup", "raft", "context",
    "bench",
)  # fmt: skip
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


_UsageError: Any = typer.BadParameter.__base__  # typer gives it no name of its own


def _form(words: list[str]) -> str | None:
    """How to answer, though the words as a whole cannot be read."""
    for name, value in pairwise(words):
        if name in ("-o", "--output") and value in ("table", "json"):
            return value
    given = {"--output=table": "table", "-otable": "table", "--output=json": "json", "-ojson": "json"}
    return next((given[word] for word in words if word in given), None)


def _check_words(words: list[str]) -> None:
    """Whatever the locale, what is typed is UTF-8: it is sent so."""
    from comity.errors import BadInput

    for word in words:
        try:
            os.fsencode(word).decode()
        except UnicodeError:
            raise BadInput(f"an argument is not UTF-8: {word[:60]!a}") from None


class Tree(Group):
    """The program: its commands by what they are for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._typed: list[str] = []
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        self._typed = list(args)
        with self._edge():
            _check_words(args)
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with self._edge():
            return super().invoke(ctx)

    @contextmanager
    def _edge(self) -> Iterator[None]:
        """For who reads JSON, bad usage is told as any other error; a person sees typer's words, with the usage."""
        from comity import errors

        try:
            yield
        except errors.ComityError as error:
            self._fail(error)
        except _UsageError as error:
            said = error.format_message()
            if said.startswith("Usage:"):  # nothing was typed: that is all of the help
                raise
            self._fail(errors.BadUsage(said), error)

    def _fail(self, error: ComityError, otherwise: Exception | None = None) -> None:
        """Tell of ``error`` and exit; who does not read JSON gets what there is ``otherwise``."""
        from comity.cli.output import Output, fail

        output = Output(_form(self._typed))
        if otherwise is not None and not output.as_json:
            raise otherwise
        fail(error, output)

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
