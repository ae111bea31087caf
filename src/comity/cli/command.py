"""What every command shares: the options that say which network and how to answer, and the way from a coroutine to an exit."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.output import Output, run

if TYPE_CHECKING:
    from comity import Client
    from comity.config import Loaded, Settings

Form = Annotated[str | None, typer.Option("--output", "-o", metavar="table|json", help="json is the default in a pipe.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ContextName = Annotated[str | None, typer.Option("--context", help="A named connection (see: comity context).")]
Connect = Annotated[str | None, typer.Option("--connect", metavar="URL", help="The server's address.")]
Network = Annotated[str | None, typer.Option("--network", help="The network's name.")]
Creds = Annotated[Path | None, typer.Option("--credentials", help="A credentials file.")]
Data = Annotated[Path | None, typer.Option("--data", help="An embedded network's data directory.")]

_ALWAYS: dict[str, Any] = {"output": Form, "debug": Debug}
_CONNECTING: dict[str, Any] = {
    "context": ContextName,
    "connect": Connect,
    "network": Network,
    "credentials": Creds,
    "data": Data,
}


class Cli:
    """One invocation: how to answer, and which network is meant."""

    def __init__(self, output: Output, flags: dict[str, Any]) -> None:
        self.output = output
        self._flags = {key: value for key, value in flags.items() if value is not None}

    def loaded(self, **more: Any) -> Loaded:
        """The settings, with flags on top. Raises BadSettings."""
        from comity.config import Settings

        flags = {key: value for key, value in more.items() if value is not None}
        names = {"connect": "urls", "data": "data_dir", "context": "context", "network": "network", "credentials": "credentials"}
        for flag, setting in names.items():
            if flag in self._flags:
                value = self._flags[flag]
                flags[setting] = tuple(value.split(",")) if flag == "connect" else value
        return Settings.load(flags)

    def settings(self, **more: Any) -> Settings:
        return self.loaded(**more).settings

    @contextlib.asynccontextmanager
    async def net(self) -> AsyncIterator[Client]:
        """A client of the network that is meant."""
        import comity

        async with comity.connect(settings=self.loaded()) as net:
            yield net


Work = Callable[..., Coroutine[Any, Any, None]]


def command(app: typer.Typer, name: str | None = None, *, connects: bool = True, **options: Any) -> Callable[[Work], Work]:
    """Make a coroutine function a command of ``app``. Its first parameter gets the ``Cli``; the shared options are added."""

    def register(work: Work) -> Work:
        shared = {**(_CONNECTING if connects else {}), **_ALWAYS}

        @wraps(work)
        def invoke(*args: Any, **kwargs: Any) -> None:
            given = {key: kwargs.pop(key) for key in shared}
            form = given.pop("output")
            if form not in (None, "table", "json"):
                raise typer.BadParameter("table or json", param_hint="--output")
            output = Output(form, debug=given.pop("debug"))
            run(work(Cli(output, given), *args, **kwargs), output)

        signature = inspect.signature(work, eval_str=True)
        own = [parameter for parameter in signature.parameters.values()][1:]
        extra = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=False if key == "debug" else None, annotation=annotation
            )
            for key, annotation in shared.items()
        ]
        invoke.__signature__ = signature.replace(parameters=[*own, *extra])  # type: ignore[attr-defined]
        invoke.__annotations__ = {p.name: p.annotation for p in [*own, *extra]}
        del invoke.__wrapped__
        app.command(name, **options)(invoke)
        return work

    return register


def read_json(text: str) -> Any:
    """JSON given on the command line: itself, ``@file``, or ``-`` for standard input; a plain word is a string.
    Raises InvalidInput."""
    from comity.errors import InvalidInput
    from comity.model.codec import from_json

    source = ""
    if text == "-":
        text, source = sys.stdin.read(), "standard input: "
    elif text.startswith("@"):
        try:
            text, source = Path(text[1:]).read_text(), f"{text[1:]}: "
        except OSError as error:
            raise InvalidInput(f"cannot read {text[1:]}: {error.strerror}") from error
    try:
        return from_json(text.encode())
    except InvalidInput as error:
        raise InvalidInput(f"{source}{error.message}") from error
