"""How every command talks: tables for a person, JSON for a program, errors with their cause and what to do, stable exit codes.

    0 done · 1 failed · 2 bad usage or input · 3 unknown: unreachable, timed out · 4 access denied · 5 not found
    6 refused: overloaded, shutting down, no agent, conflict · 130 interrupted
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from comity import errors

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_EXITS: list[tuple[type[errors.ComityError], int]] = [
    (errors.BadInput, 2),
    (errors.AccessDenied, 4),
    (errors.NotFound, 5),
    (errors.NoAgent, 6),
    (errors.Overloaded, 6),
    (errors.ShuttingDown, 6),
    (errors.Conflict, 6),
    (errors.Indefinite, 3),
]


class Output:
    """Where and how to write. ``as_json``: one JSON value on stdout, nothing else there."""

    def __init__(self, form: str | None = None, *, debug: bool = False) -> None:
        self.as_json = form == "json" if form is not None else not sys.stdout.isatty()
        self.debug = debug
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """For people: colours only on a terminal, and not with NO_COLOR."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        return self._console

    def show(self, value: Any) -> None:
        """One JSON value."""
        print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, default=str), flush=True)

    def line(self, value: Any) -> None:
        """One JSON value on one line, of a stream of them."""
        print(json.dumps(value, default=str), flush=True)

    def say(self, text: str) -> None:
        """A line for a person; not part of a JSON answer."""
        if self.as_json:
            print(text, file=sys.stderr, flush=True)
        else:
            self.console.print(text)

    def note(self, text: str) -> None:
        """An aside, on stderr."""
        print(text, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
        """A table for a person, or ``empty`` if there are no rows."""
        from rich.table import Table

        listed = list(rows)
        if not listed:
            self.console.print(empty)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in listed:
            table.add_row(*("" if cell is None else str(cell) for cell in row))
        self.console.print(table)


def exit_code(error: errors.ComityError) -> int:
    return next((code for kind, code in _EXITS if isinstance(error, kind)), 1)


def fail(error: errors.ComityError, output: Output) -> NoReturn:
    """Say what went wrong and what to do, and exit."""
    if output.debug:
        raise error
    if output.as_json:
        body = {"code": error.code, "message": error.message, "advice": error.advice, "definite": error.definite}
        print(json.dumps({"error": {**body, "details": error.details}}, default=str), file=sys.stderr)
    else:
        red, bold, off = ("\033[31m", "\033[1m", "\033[0m") if _coloured() else ("", "", "")
        print(f"{red}error[{error.code}]{off} {bold}{error.message}{off}", file=sys.stderr)
        if error.advice != error.message:
            print(f"  {error.advice}", file=sys.stderr)
        print(f"  More: comity explain {error.code}", file=sys.stderr)
    raise SystemExit(exit_code(error))


def _coloured() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


def run(work: Coroutine[Any, Any, T], output: Output) -> T:
    """Run a command's coroutine on uvloop; errors of ours become exits, Ctrl-C 130."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except errors.ComityError as error:
        fail(error, output)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
