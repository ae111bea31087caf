"""``comity mail``: durable mail that waits, who has what, and mail that is dead."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from comity.cli.command import Cli, command, commands
from comity.cli.looks import plain
from comity.cli.tasks import age

app = commands("Durable mail: list what waits, show who has it, look at dead letters, drop.")
Limit = Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=200, help="How many at most.")]
Of = Annotated[str, typer.Option("--agent", metavar="AGENT", help="Only mail for this agent (its id).")]
Id = Annotated[str, typer.Argument(metavar="MAIL", help="Its id.")]


@command(app, "list")
async def list_(cli: Cli, agent: Of = "", limit: Limit = 20) -> None:
    """What waits to be taken, the oldest first."""
    async with cli.net() as net:
        found = await net.mail.list(agent, limit=limit)
    if cli.output.as_json:
        cli.output.show(found)
        return
    now = datetime.now(UTC)
    rows = [
        (one["id"], plain(one["from"]), plain(_to(one)), plain(one["topic"]), age(one["sent"], now), one["waiting"])
        for one in found
    ]
    cli.output.table(("MAIL", "FROM", "TO", "TOPIC", "SENT", "NOT YET"), rows, "no mail waits")


@command(app)
async def boxes(cli: Cli, limit: Limit = 20) -> None:
    """The agents with most mail waiting."""
    async with cli.net() as net:
        found = await net.mail.boxes(limit=limit)
    if cli.output.as_json:
        cli.output.show(found)
    else:
        cli.output.table(("AGENT", "WAITING"), [(one["agent"], one["waiting"]) for one in found], "no mail waits")


@command(app)
async def show(cli: Cli, mail: Id) -> None:
    """One mail: what it says, who has it and who has not."""
    async with cli.net() as net:
        found = await net.mail.show(mail)
    if cli.output.as_json:
        cli.output.show(found)
        return
    names = ("id", "state", "from", "topic", "sent", "until", "body")
    facts = [(name, plain(str(found[name]))) for name in names if name in found]
    facts += [(said, plain(", ".join(found[key][:20]) or "-")) for said, key in (("has it", "has"), ("has not", "has_not"))]
    facts += [("dead to", plain(f"{one['receiver']}: {one['code']}: {one['message']}")) for one in found["dead"][:20]]
    cli.output.facts(facts)


@command(app)
async def dead(cli: Cli, agent: Of = "", limit: Limit = 20) -> None:
    """Mail that expired, or that its receiver could not take; the newest first."""
    async with cli.net() as net:
        found = await net.mail.dead(agent, limit=limit)
    if cli.output.as_json:
        cli.output.show(found)
        return
    now = datetime.now(UTC)
    rows = [
        (one["id"], plain(one["from"]), plain(one["receiver"]), age(one["died"], now), plain(one["code"]), plain(one["message"]))
        for one in found
    ]
    cli.output.table(("MAIL", "FROM", "RECEIVER", "DIED", "CODE", "WHY"), rows, "no dead mail")


@command(app)
async def drop(cli: Cli, mails: Annotated[list[str], typer.Argument(metavar="MAIL...", help="Their ids.")]) -> None:
    """Keep these no longer, whether they wait or are dead."""
    async with cli.net() as net:
        gone = await net.mail.drop(*mails)
    if cli.output.as_json:
        cli.output.show(list(gone))
    else:
        cli.output.say(f"{len(gone)} dropped")


def _to(one: dict[str, Any]) -> str:
    more = one["receivers"] - 1
    return f"{one['to'][0]} and {more} more" if more else str(one["to"][0])
