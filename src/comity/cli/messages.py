"""``comity send`` and ``broadcast``: messages to agents, live or durable."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from comity.cli import terms as t
from comity.cli.command import Cli, command, commands, read_json

app = commands()
Durable = Annotated[bool, typer.Option("--durable", help="Keep it on disk until the agent has taken it; print its id.")]
Ttl = Annotated[float | None, typer.Option("--ttl", metavar="SECONDS", help="How long durable mail is kept (7 days).")]
Body = Annotated[str, typer.Argument(metavar="[JSON|@FILE|-]", help="What to say.", show_default=False)]


@command(app)
async def send(
    cli: Cli,
    target: Annotated[str, typer.Argument(metavar="AGENT", help="An agent (id or name), or a capability.")],
    body: Body = "null",
    topic: Annotated[str, typer.Option("--topic", metavar="TOPIC", help="Which of its functions gets it.")] = "",
    request: Annotated[bool, typer.Option("--request/--no-request", help="Wait for a reply, and print it.")] = True,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for it (30).")] = None,
    strategy: t.StrategyName = None,
    sticky: t.Sticky = None,
    repeatable: Annotated[
        bool, typer.Option("--repeatable", help="It may be done twice: ask another agent if the first is lost.")
    ] = False,
    hedge: Annotated[
        float | None, typer.Option("--hedge", metavar="SECONDS", help="Ask a second agent, too, after so long without a reply.")
    ] = None,
    durable: Durable = False,
    ttl: Ttl = None,
) -> None:
    """Say something to an agent, live: it is not kept if the agent is away, unless it is durable; nobody replies to that."""
    value = read_json(body)
    route: dict[str, Any] = {"topic": topic, "strategy": strategy, "sticky": sticky or ""}
    async with cli.net() as net:
        if durable:
            cli.output.show(await net.send(target, value, **route, durable=True, ttl_s=ttl))
        elif request:
            asked = net.request(target, value, timeout=timeout, repeatable=repeatable, hedge_s=hedge, **route)
            cli.output.show(await asked)
        else:
            await net.send(target, value, **route)


@command(app)
async def broadcast(
    cli: Cli,
    body: Body = "null",
    topic: Annotated[str, typer.Option("--topic", metavar="TOPIC", help="What it is about.")] = "",
    tag: Annotated[list[str], typer.Option("--tag", metavar="TAG", help="Only to agents with this tag.")] = [],  # noqa: B006
    group: Annotated[str, typer.Option("--group", metavar="GROUP", help="Only to its members.")] = "",
    durable: Durable = False,
    ttl: Ttl = None,
) -> None:
    """Say something to every agent: live, or durably to those registered now."""
    value = read_json(body)
    async with cli.net() as net:
        if durable:
            cli.output.show(await net.broadcast(value, topic=topic, tags=tag, group=group, durable=True, ttl_s=ttl))
        else:
            await net.broadcast(value, topic=topic, tags=tag, group=group)
