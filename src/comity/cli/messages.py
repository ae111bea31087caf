"""``comity send`` and ``broadcast``: live messages to agents."""

from __future__ import annotations

from typing import Annotated

import typer

from comity.cli.command import Cli, command, read_json

Body = Annotated[str, typer.Argument(metavar="[JSON | @file | -]", help="What to say.")]


def register(app: typer.Typer) -> None:
    @command(app)
    async def send(
        cli: Cli,
        target: Annotated[str, typer.Argument(help="An agent (id or name), or a capability.")],
        body: Body = "null",
        topic: Annotated[str, typer.Option("--topic", help="What it is about: which function of the agent gets it.")] = "",
        request: Annotated[bool, typer.Option("--request/--no-request", help="Wait for a reply, and print it.")] = True,
        timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds to wait for the reply.")] = None,
    ) -> None:
        """Say something to an agent, live (not kept if it is away)."""
        value = read_json(body)
        async with cli.net() as net:
            if request:
                cli.output.show(await net.request(target, value, topic=topic, timeout=timeout))
            else:
                await net.send(target, value, topic=topic)

    @command(app)
    async def broadcast(
        cli: Cli,
        body: Body = "null",
        topic: Annotated[str, typer.Option("--topic", help="What it is about.")] = "",
        tag: Annotated[list[str], typer.Option("--tag", help="Only to agents with this tag.")] = [],  # noqa: B006
    ) -> None:
        """Say something to every agent, live."""
        value = read_json(body)
        async with cli.net() as net:
            await net.broadcast(value, topic=topic, tags=tuple(tag))
