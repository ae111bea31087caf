"""``comity dead``: failed tasks, kept to be looked at and replayed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli import terms as t
from comity.cli.choosing import meant
from comity.cli.command import Cli, command, commands, read_json
from comity.cli.looks import plain
from comity.cli.tasks import age, show_task

if TYPE_CHECKING:
    from comity import Client

app = commands("Dead letters: failed tasks, kept to be looked at and replayed.")
Letters = Annotated[list[str], typer.Argument(metavar="[TASK...]", help="Their ids, or the beginnings.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All that meet the conditions below.")]
CapabilityName = Annotated[str | None, typer.Option("--capability", metavar="NAME", help="Only those for this.")]
Code = Annotated[str | None, typer.Option("--code", metavar="CODE", help="Only those that failed so: poison, ValueError ...")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only those that failed since 2h ago, 09:00 ...")]


def _filters(capability: str | None, code: str | None, since: str | None) -> dict[str, Any]:
    at = t.ago(since, datetime.now().astimezone()) if since else None
    return t.given(capability=capability, code=code, since=at)


async def _ids(net: Client, given: list[str]) -> list[str]:
    """Whole ids of dead letters. Raises BadInput, UnknownTask."""
    from comity.errors import UnknownTask
    from comity.model.ids import TASK_ID_LENGTH

    if all(len(text) >= TASK_ID_LENGTH for text in given):
        return given
    known = [letter["id"] for letter in await net.dead.list(limit=500)]
    found = []
    for text in given:
        id_ = text if len(text) >= TASK_ID_LENGTH else meant(text, known, "dead letters")
        if id_ is None:
            raise UnknownTask(f"none of the last 500 dead letters begins with {text!r}", id=text)
        found.append(id_)
    return found


@command(app, "list")
async def list_(
    cli: Cli,
    capability: CapabilityName = None,
    code: Code = None,
    since: Since = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=500, help="How many at most.")] = 20,
    before: Annotated[str | None, typer.Option("--before", metavar="TASK", help="The page after this one.")] = None,
) -> None:
    """The newest first."""
    async with cli.net() as net:
        found = await net.dead.list(**_filters(capability, code, since), limit=limit, before=before)
    if cli.output.as_json:
        cli.output.show(found)
        return
    now = datetime.now(UTC)
    rows = [
        (one["id"], one["capability"], age(one["failed"], now), one["attempts"], one["code"], plain(one["message"]))
        for one in found
    ]
    cli.output.table(("TASK", "CAPABILITY", "FAILED", "ATTEMPTS", "CODE", "WHY"), rows, "no dead letters")
    if len(found) == limit:
        cli.output.note(f"more: the same with --before {found[-1]['id']}")


@command(app)
async def show(cli: Cli, task: Annotated[str, typer.Argument(metavar="TASK", help="Its id, or the beginning of it.")]) -> None:
    """One of them: its input, its attempts and why each failed."""
    async with cli.net() as net:
        (id_,) = await _ids(net, [task])
        found = await net.task(id_).status()
    if cli.output.as_json:
        cli.output.show(found)
    else:
        show_task(cli, found)


@command(app)
async def replay(
    cli: Cli,
    tasks: Letters = [],  # noqa: B006
    every: All = False,
    capability: CapabilityName = None,
    code: Code = None,
    since: Since = None,
    input_: Annotated[str | None, typer.Option("--input", metavar="JSON|@FILE|-", help="Another input; for one of them.")] = None,
) -> None:
    """Submit them again, each as a new task that names the old one; they are dead letters no more."""
    edited = {"input": read_json(input_)} if input_ is not None else {}
    async with cli.net() as net:
        ids = await _ids(net, tasks)
        made = await net.dead.replay(*ids, all=every, **_filters(capability, code, since), **edited)
    if cli.output.as_json:
        cli.output.show([{"id": old, "as": new} for old, new in made.items()])
        return
    cli.output.table(("TASK", "REPLAYED AS"), list(made.items()), "nothing to replay")


@command(app)
async def drop(
    cli: Cli,
    tasks: Letters = [],  # noqa: B006
    every: All = False,
    capability: CapabilityName = None,
    code: Code = None,
    since: Since = None,
) -> None:
    """Keep them no longer."""
    async with cli.net() as net:
        gone = await net.dead.drop(*await _ids(net, tasks), all=every, **_filters(capability, code, since))
    if cli.output.as_json:
        cli.output.show(list(gone))
    else:
        cli.output.say(f"{len(gone)} dropped")
