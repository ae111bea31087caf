"""What ``comity cluster status`` and ``comity doctor`` find of a network whose bus is RabbitMQ."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comity.cli.doctor import Finding
    from comity.contexts import Context

TESTED = (3, 10)


async def survey(context: Context) -> dict[str, Any]:
    """For ``comity cluster status``: as much as its survey of NATS servers. Raises Unreachable, AccessDenied, BadSettings."""
    from comity.backends import public
    from comity.bus.rabbitmq import RabbitBus
    from comity.buses import open_bus
    from comity.cli import elsewhere
    from comity.cli.cluster import positions
    from comity.cluster.status import Server, survival
    from comity.connect import identity

    async with AsyncExitStack() as stack:
        bus = await open_bus(context, *identity(context))
        stack.push_async_callback(bus.close)
        assert isinstance(bus, RabbitBus)
        controllers = await positions(bus)
        server = Server("RabbitMQ", public(context.urls[0]), bus.server, up=True)
    places = {**next((said["doors"] for said in controllers if said.get("doors")), {}), **context.doors}
    others = await elsewhere.survey(places, context.network)
    left = survival(others.groups, len(controllers))
    leading = next((found for found in controllers if found["role"] == "leader"), None)
    head = max((found["log_head"] for found in controllers), default=0)
    return {
        "network": context.network,
        "survives": {**left._asdict(), "text": left.text()},
        "leader": leading and leading["process"],
        "term": leading and leading["term"],
        "log_head": head,
        "servers": [known._asdict() for known in (server, *others.servers)],
        "groups": [
            {**group._asdict(), "replicas": [replica._asdict() for replica in group.replicas]} for group in others.groups
        ],
        "raft": others.raft,
        "controllers": [{**found, "lag": max(0, head - found["log_head"])} for found in controllers],
        "damaged": [],
        "notes": [*others.notes, "how many servers RabbitMQ has, and how many of them may fail, it does not tell"],
    }


async def findings(context: Context) -> list[Finding]:
    """For ``comity doctor``. Raises Unreachable, AccessDenied, BadSettings."""
    from comity.bus.rabbitmq import RabbitBus
    from comity.buses import open_bus, trust
    from comity.cli.doctor import Finding
    from comity.connect import identity

    bus = await open_bus(context, *identity(context))
    try:
        assert isinstance(bus, RabbitBus)
        found, is_own = f"RabbitMQ {bus.server}", bus.is_own
    finally:
        await bus.close()
    made = [Finding("bus", "ok", found)]
    if tuple(map(int, found.split()[1].split(".")[:2])) < TESTED:
        made = [Finding("bus", "note", found, f"{'.'.join(map(str, TESTED))} is the oldest version tested")]
    if is_own:
        return [*made, Finding("credentials", "ok", "a user of RabbitMQ for this process alone")]
    advice = "give each process a user of its own: docs/backends.md, RabbitMQ"
    return [*made, *(Finding("credentials", "note", said, advice) for said in trust(context))]
