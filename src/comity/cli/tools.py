"""``comity explain``, ``version`` and ``demo``."""

from __future__ import annotations

import inspect
import logging
import platform
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from comity import errors
from comity.cli.command import Cli, command, commands
from comity.cli.looks import bold, paint
from comity.cli.output import exit_code, started

app = commands()

_BRANCH = re.compile(r"^[ │├└─]*(\w+) {2,}(\S.*)$", re.MULTILINE)


def meanings() -> dict[str, str]:
    """What each class of error says, by its name: the tree in the ``errors`` module tells it."""
    return dict(_BRANCH.findall(inspect.getdoc(errors) or ""))


@command(app, connects=False)
async def explain(
    cli: Cli, code: Annotated[str, typer.Argument(metavar="[CODE]", help="As an error shows it: unreachable, no-agent ...")] = ""
) -> None:
    """What an error code means, and what to do about it. Without a code: all of them."""
    known = meanings()
    classes: dict[str, type[errors.ComityError]] = {**errors.by_code(), "error": errors.ComityError}
    if code and code not in classes:
        raise errors.NotFound(f"no error has the code {code!r}; comity explain lists them", code=code)
    rows = [
        {
            "code": kind.code,
            "name": kind.__name__,
            "meaning": known[kind.__name__],
            "definite": kind.definite,
            "advice": kind.advice,
            "exit_code": exit_code(kind),
        }
        for kind in classes.values()
        if code in ("", kind.code)
    ]
    if cli.output.as_json:
        cli.output.show(rows[0] if code else rows)
    elif code:
        _explain(cli, rows[0])
    else:
        cells = [(row["code"], row["exit_code"], "yes" if row["definite"] else "no", row["meaning"]) for row in rows]
        cli.output.table(("CODE", "EXIT", "DEFINITE", "MEANING"), cells, "")


def _explain(cli: Cli, row: dict[str, Any]) -> None:
    definite = "yes: it did not happen" if row["definite"] else "no: it may have happened; ask, or repeat with the same id"
    print(f"{paint('bold red', row['code'])}  {bold(row['meaning'])}")
    facts = [("what to do", row["advice"]), ("definite", definite), ("in Python", f"comity.errors.{row['name']}")]
    cli.output.facts([*facts, ("exit code", row["exit_code"])])


@command(app, connects=False)
async def version(cli: Cli) -> None:
    """Versions of Comity and of what it runs on."""
    from importlib.metadata import version as version_of

    from comity.cli.doctor import server_version

    facts = {
        "comity": version_of("comity"),
        "python": platform.python_version(),
        "nats-server": server_version(),
        "nats-py": version_of("nats-py"),
        "platform": platform.platform(),
    }
    if cli.output.as_json:
        cli.output.show(facts)
    else:
        cli.output.facts(facts.items(), indent="")


@command(app, connects=False, form="table")
async def demo(
    cli: Cli,
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="Python code to survey; else Python's own.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the report goes.")] = Path("report.html"),
    progress: Annotated[bool | None, typer.Option("--progress/--no-progress", help="Draw it as it happens.")] = None,
) -> None:
    """Watch 32 agents on four nodes survey a folder of Python code, lose a node half way, and finish anyway.

    In a pipe it prints plain lines; with -o json they go to stderr, and the facts to stdout.
    """
    from rich.console import Console

    from comity.cli.demo import default_folder, run_demo
    from comity.cli.logs import configure

    configure(logging.DEBUG if cli.output.debug else logging.ERROR, as_json=cli.output.as_json)
    started()
    console = Console(highlight=False, stderr=cli.output.as_json)
    shown = sys.stdout.isatty() and not cli.output.as_json if progress is None else progress
    verdict = await run_demo(folder or default_folder(), progress=shown, out=out, console=console)
    if cli.output.as_json:
        cli.output.show(verdict)
