"""What controllers last knew, while nobody leads: ``--last-known`` of ``comity tasks`` and ``comity stats``. It needs a way to a
server, and no stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from comity.cli.looks import dim, paint, span

if TYPE_CHECKING:
    from comity.cli.command import Cli

LastKnown = Annotated[
    bool, typer.Option("--last-known", help="If nobody leads: what a controller last knew, and how old that is.")
]


async def last_known(cli: Cli, what: str, **args: Any) -> Any:
    """The newest that any controller knows; how old it is is told. In JSON all of it is to be shown. Raises Unreachable."""
    from comity.bus.nats import NatsBus
    from comity.cli.cluster import controllers_say
    from comity.connect import identity, secured
    from comity.contexts import resolve
    from comity.controller.recalling import RECALL
    from comity.errors import Unreachable

    context = resolve(cli.loaded())
    process, known = identity(context, "client")
    options = secured(known.connect_options() if known is not None else {}, context.ca)
    bus = await NatsBus.connect(context.urls, process=process, network=context.network, options=options)
    try:
        said = await controllers_say(bus, RECALL, what=what, **{name: value for name, value in args.items() if value is not None})
    finally:
        await bus.close()
    if not said:
        raise Unreachable("no controller answers")
    controller, found = max(said.items(), key=lambda item: (item[1]["log_head"], -item[1]["age_s"]))
    if cli.output.as_json:
        return {"controller": controller, **found}
    where = dim(f"({controller}, log entry {found['log_head']:,})")
    cli.output.say(f"{paint('yellow', '!')} this was known {span(found['age_s'])} ago; more may have happened {where}\n")
    return found["known"]
