"""``comity capabilities``: what can be done here, by whom, how well, and how to ask for it."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer

from comity.cli.agents import brief, status_of
from comity.cli.command import Cli, command, commands
from comity.cli.figures import FIGURES, figures
from comity.cli.looks import bold, dim, plain

app = commands("Capabilities: what can be done here, how well, and how to ask for it.")


@command(app, "list")
async def list_(cli: Cli) -> None:
    """All capabilities that agents offer here, with what the network measured of each."""
    async with cli.net() as net:
        rows = await net.capabilities()
    if cli.output.as_json:
        cli.output.show(rows)
        return
    cells = [
        (row["name"], " ".join(row["versions"]), f"{row['active']}/{row['agents']}", *figures(row), plain(row["description"]))
        for row in rows
    ]
    columns = ("CAPABILITY", "VERSIONS", "ACTIVE", *FIGURES, "")
    cli.output.table(columns, cells, "nothing is offered; start agents with: comity run MODULE_OR_FILE")


@command(app)
async def show(cli: Cli, name: Annotated[str, typer.Argument(metavar="NAME", help="The capability.")]) -> None:
    """One capability: its schemas, a call that can be typed as it stands, and who offers it."""
    async with cli.net() as net:
        known = await net.describe(name)
    if "example" in known:
        known["call"] = typed(name, known["example"])
    if cli.output.as_json:
        cli.output.show(known)
        return
    print(f"{bold(known['name'])} {' '.join(known['versions'])}  {dim(plain(known['description']))}")
    schemas = [known["input_schema"], known["output_schema"]]
    named = {part: schema for whole in schemas for part, schema in whole.get("$defs", {}).items()}
    parts = [*zip(("input", "output"), schemas, strict=True), *named.items()]
    measured = [f"{what.lower()} {value}" for what, value in zip(FIGURES, figures(known), strict=True) if value]
    cli.output.facts([
        *((part, plain(brief(schema))) for part, schema in parts),
        ("strategy", known["strategy"]),
        *known["limits"].items(),
        ("measured", ", ".join(measured)),
        ("for example", plain(known.get("call", ""))),
    ])  # fmt: skip
    print()
    cells = [(row["id"], status_of(row["status"]), *figures(row)) for row in known["by_agent"]]
    cli.output.table(("AGENT", "STATUS", *FIGURES), cells, "no agents")


def typed(name: str, value: Any) -> str:
    """The command that asks for it."""
    given = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return shlex.join(["comity", "submit", name, given])
