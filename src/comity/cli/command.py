"""What every command shares: the options that say which network and how to answer, and the way from a coroutine to an exit."""

from __future__ import annotations

import codecs
import contextlib
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.looks import Command, Group
from comity.cli.output import Output, run, started

if TYPE_CHECKING:
    from comity import Client
    from comity.config import Loaded, Settings

_HERE: dict[str, Any] = {"rich_help_panel": "Which network"}
_OUT: dict[str, Any] = {"rich_help_panel": "Output"}

AWAY, BACK = "the server is away; trying to reach it again", "connected again"

Connect = Annotated[str | None, typer.Option("--connect", metavar="URL", help="The server's address.", **_HERE)]
ContextName = Annotated[str | None, typer.Option("--context", metavar="NAME", help="A saved one: comity context.", **_HERE)]
Network = Annotated[str | None, typer.Option("--network", metavar="NAME", help="The network's name.", **_HERE)]
Creds = Annotated[Path | None, typer.Option("--credentials", metavar="FILE", help="Whose credentials to use.", **_HERE)]
Ca = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Whose certificates its servers have.", **_HERE)]
Data = Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="A local network's data.", **_HERE)]
Form = Annotated[str | None, typer.Option("--output", "-o", metavar="table|json", help="In a pipe it is json.", **_OUT)]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="COMITY_DEBUG", show_envvar=False, help="Show tracebacks and log lines.", **_OUT)
]

_CONNECTING: dict[str, Any] = {
    "connect": Connect, "context": ContextName, "network": Network, "credentials": Creds, "ca": Ca, "data": Data,
}  # fmt: skip
_ALWAYS: dict[str, Any] = {"output": Form, "debug": Debug}
_SETTINGS = {
    "connect": "urls", "context": "context", "network": "network", "credentials": "credentials", "ca": "ca", "data": "data_dir",
}  # fmt: skip
_FLAGS = {f"--{setting.replace('_', '-')}": f"--{flag}" for flag, setting in _SETTINGS.items()}


class Cli:
    """One invocation: how to answer, and which network is meant."""

    def __init__(self, output: Output, flags: dict[str, Any]) -> None:
        self.output = output
        self._flags = {_SETTINGS[key]: value for key, value in flags.items() if value is not None}

    def loaded(self, **more: Any) -> Loaded:
        """The settings, with flags on top. Raises BadSettings."""
        from comity.config import Loaded, Settings

        settings, sources = Settings.load(self._flags | {key: value for key, value in more.items() if value is not None})
        return Loaded(settings, {name: _FLAGS.get(source, source) for name, source in sources.items()})

    def settings(self, **more: Any) -> Settings:
        return self.loaded(**more).settings

    @contextlib.asynccontextmanager
    async def net(self) -> AsyncIterator[Client]:
        """A client of the network that is meant."""
        import comity

        async with comity.connect(settings=self.loaded()) as net:
            started()
            if not self.output.as_json:
                net.on_link(self._tell_link)
            yield net

    def _tell_link(self, up: bool) -> None:
        self.output.note(BACK if up else AWAY)


Work = Callable[..., Coroutine[Any, Any, None]]


def commands(help_: str = "") -> typer.Typer:
    """A place to put commands in."""
    settings = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        cls=Group, help=help_, no_args_is_help=True, subcommand_metavar="COMMAND", options_metavar="", add_completion=False,
        pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=settings,
    )  # fmt: skip


def command(
    app: typer.Typer, name: str | None = None, *, connects: bool = True, form: str | None = None
) -> Callable[[Work], Work]:
    """Make a coroutine function a command of ``app``. Its first parameter gets the ``Cli``; the shared options are added.
    ``form``: how it answers unless told, in a pipe too."""
    shared = {**(_CONNECTING if connects else {}), **_ALWAYS}

    def register(work: Work) -> Work:
        @wraps(work)
        def invoke(*args: Any, **kwargs: Any) -> None:
            given = {key: kwargs.pop(key) for key in shared}
            asked, debug = given.pop("output"), given.pop("debug")
            if asked not in (None, "table", "json"):
                raise typer.BadParameter("it is table or json", param_hint="--output")
            output = Output(asked or form, debug=debug)
            run(work(Cli(output, given), *args, **kwargs), output)

        signature = inspect.signature(work, eval_str=True)
        parameters = list(signature.parameters.values())[1:]
        for key, annotation in shared.items():
            default = False if key == "debug" else None
            parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
        invoke.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        invoke.__annotations__ = {p.name: p.annotation for p in parameters}
        del invoke.__wrapped__
        settings = {"help_option_names": ["-h", "--help"]}
        app.command(name, cls=Command, options_metavar="", context_settings=settings)(invoke)
        return work

    return register


def read_json(text: str) -> Any:
    """JSON given on the command line: itself, ``@file``, or ``-`` for standard input. Raises BadInput."""
    from comity.errors import BadInput, InvalidInput
    from comity.model.codec import from_json

    source, data = "", os.fsencode(text)  # bytes as they came: the locale has no say in what JSON is
    try:
        if text == "-":
            data, source = sys.stdin.buffer.read(), "standard input: "
        elif text.startswith("@"):
            data, source = Path(text[1:]).read_bytes(), f"{text[1:]}: "
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {text[1:]}: {getattr(error, 'strerror', None) or error}") from error
    try:
        return from_json(data.removeprefix(codecs.BOM_UTF8))
    except InvalidInput as error:
        hint = "" if source or text[:1] in ("{", "[", '"') else f"; a text is written with quotes: '\"{text}\"'"
        raise BadInput(f"{source}{error.message}{hint}") from error
