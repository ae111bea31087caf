"""How every command talks: tables for a person, JSON for a program, errors with their cause and what to do, stable exit codes.

    0 done · 1 failed · 2 bad usage or input · 3 unknown: unreachable, timed out · 4 access denied · 5 not found
    6 refused: overloaded, shutting down, no agent, conflict · 130 interrupted
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from comity import errors
from comity.cli.looks import paint, table

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
    """Where and how to write. ``as_json``: JSON on stdout, and nothing else there; notes and errors go to stderr."""

    def __init__(self, form: str | None = None, *, debug: bool = False) -> None:
        self.as_json = form == "json" if form is not None else not sys.stdout.isatty()
        self.debug = debug
        self.over_ctrl_c = "\r" if sys.stderr.isatty() else ""
        """Begins a line where the terminal has shown ``^C``."""

    def show(self, value: Any) -> None:
        """The one JSON value that is the answer."""
        print(_json(value, indent=2 if sys.stdout.isatty() else None), flush=True)

    def line(self, value: Any) -> None:
        """One JSON value on one line, of a stream of them."""
        print(_json(value), flush=True)

    def say(self, text: str = "") -> None:
        """A line for a person; not part of a JSON answer."""
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """An aside, on stderr."""
        print(paint("dim", text, sys.stderr), file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str, *, indent: str = "") -> None:
        """A table for a person, or ``empty`` if there are no rows."""
        listed = list(rows)
        for line in table(columns, listed, indent=indent) if listed else [indent + paint("dim", empty)]:
            print(line)

    def facts(self, facts: Iterable[tuple[str, Any]], *, indent: str = "  ") -> None:
        """Names and values, one a line; those without a value are left out."""
        known = [(name, str(value)) for name, value in facts if value not in (None, "")]
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            print(f"{indent}{paint('dim', f'{name:<{width}}')}  {value}")


def started() -> None:
    """What was made until now lives as long as the process: look for garbage only in what comes."""
    gc.freeze()
    gc.enable()


def _json(value: Any, indent: int | None = None) -> str:
    shows_all = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, indent=indent, default=str, ensure_ascii=not shows_all)


def exit_code(kind: type[errors.ComityError]) -> int:
    return next((code for parent, code in _EXITS if issubclass(kind, parent)), 1)


def tell(error: errors.ComityError, output: Output) -> None:
    """Say what went wrong and what to do."""
    if output.debug:
        traceback.print_exception(error)
    if output.as_json:
        body = {"code": error.code, "message": error.message, "advice": error.advice, "definite": error.definite}
        print(_json({"error": {**body, "details": error.details}}), file=sys.stderr)
    else:
        err = sys.stderr
        print(f"{paint('bold red', f'error[{error.code}]', err)} {paint('bold', error.message, err)}", file=err)
        if error.advice != error.message:
            print(f"  {error.advice}", file=err)
        print(paint("dim", f"  comity explain {error.code}", err), file=err)


def fail(error: errors.ComityError, output: Output) -> NoReturn:
    """Tell of it, and exit."""
    tell(error, output)
    raise SystemExit(exit_code(type(error)))


def run(work: Coroutine[Any, Any, T], output: Output) -> T:
    """Run a command's coroutine on uvloop; errors become exits: ours as they say, others 1, Ctrl-C 130."""
    import asyncio

    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    except errors.ComityError as error:
        fail(error, output)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise  # whoever read our output has gone; typer ends quietly
    except Exception as error:
        from errno import EDQUOT, ENOSPC

        from comity.node.failing import said_by

        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            fail(errors.DiskFull(f"no room is left{f' for {error.filename}' if error.filename else ''}"), output)

        unexpected = errors.ComityError(f"unexpected {type(error).__name__}: {said_by(error)}")
        unexpected.__cause__ = error
        fail(unexpected, output)
