"""``comity groups``: names under which agents get mail together."""

from __future__ import annotations

from typing import Annotated

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import plain

app = commands("Groups that agents join and leave: list, show, watch, remove.")
Group = Annotated[str, typer.Argument(metavar="GROUP", help="Its name.")]


@command(app, "list")
async def list_(cli: Cli) -> None:
    """All groups."""
    async with cli.net() as net:
        found = await net.groups.list()
    if cli.output.as_json:
        cli.output.show(found)
    else:
        cli.output.table(("GROUP", "MEMBERS"), [(one["name"], one["members"]) for one in found], "no groups")


@command(app)
async def show(cli: Cli, group: Group) -> None:
    """Who is in it."""
    async with cli.net() as net:
        members = await net.groups.members(group)
    if cli.output.as_json:
        cli.output.show(list(members))
    else:
        cli.output.table(("AGENT",), [(plain(member),) for member in members], "nobody")


@command(app)
async def watch(
    cli: Cli, group: Annotated[str, typer.Argument(metavar="[GROUP]", help="Only this one.", show_default=False)] = ""
) -> None:
    """Who joins and leaves, as it happens."""
    async with cli.net() as net:
        async for event in net.groups.watch(group):
            if cli.output.as_json:
                cli.output.show(event)
            else:
                cli.output.say(f"{event['group']}: {plain(event['agent'])} {event['type'].removeprefix('group.')}")


@command(app)
async def remove(
    cli: Cli, group: Group, agent: Annotated[str, typer.Argument(metavar="AGENT", help="Its id.")]
) -> None:
    """Take an agent that will not come back out of a group."""
    async with cli.net() as net:
        await net.groups.remove(group, agent)
    cli.output.say(f"{plain(agent)} is not in {plain(group)} any more")
