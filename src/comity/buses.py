"""Which bus an address means (``nats://``, ``tls://``: NATS; ``amqp://``, ``amqps://``: RabbitMQ), and who a process is there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comity.errors import BadSettings, NotFound
from comity.model.ids import shown_urls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comity.bus.base import Bus
    from comity.bus.connection import Connection
    from comity.bus.nats import NatsBus
    from comity.bus.rabbitmq import RabbitBus
    from comity.contexts import Context
    from comity.credentials import Credentials

BESIDE_RABBITMQ = ("log", "registry", "store")


def is_rabbitmq(urls: Sequence[str]) -> bool:
    return bool(urls) and urlsplit(urls[0]).scheme in ("amqp", "amqps")


async def open_bus(context: Context, process: str, known: Credentials | None, *, departures: bool = False) -> Bus:
    """Connect ``process``. ``departures``: also hear who leaves, where that takes more than the connection. Raises Unreachable,
    AccessDenied, BadSettings."""
    if is_rabbitmq(context.urls):
        return await _rabbit(context, process, departures)
    return await open_nats(context, process, known)


async def open_nats(context: Context, process: str, known: Credentials | None) -> NatsBus:
    """As ``open_bus``, for what only NATS has."""
    from comity.bus.nats import NatsBus
    from comity.connect import secured

    if is_rabbitmq(context.urls):
        raise BadSettings("this is for NATS servers, and the bus is RabbitMQ", setting="urls")
    options = secured(known.connect_options() if known is not None else {}, context.ca)
    return await NatsBus.connect(context.urls, process=process, network=context.network, options=options)


async def _rabbit(context: Context, process: str, departures: bool) -> RabbitBus:
    must_have_amqp()
    from comity.amqp.address import Where
    from comity.bus.rabbitmq import RabbitBus

    if len(context.urls) > 1:
        raise BadSettings("name all of RabbitMQ's servers in one address: amqp://HOST,HOST", setting="urls")
    where = Where.parse(context.urls[0])
    if context.ca:
        where = where._replace(ca=context.ca, is_safe=True)
    return await RabbitBus.connect(where, process=process, network=context.network, departures=departures)


def must_have_amqp() -> None:
    """Raises BadSettings without the package that RabbitMQ needs."""
    if find_spec("pamqp") is None:
        raise BadSettings("amqp:// needs one more package: pip install 'comity[rabbitmq]'", setting="urls")


def own_name(context: Context, process: str) -> str:
    """The name of a process whose user is its own, or "". Raises BadSettings."""
    if not is_rabbitmq(context.urls):
        return ""
    from comity.amqp.address import Where

    if context.credentials or context.authority:
        raise BadSettings("credentials files are NATS's; RabbitMQ knows users by its address", setting="credentials")
    where = Where.parse(context.urls[0])
    if where.own and process not in ("", where.user):
        raise BadSettings(f"user {where.user!r} is a process's own, and cannot be {process!r}", setting="name")
    return where.user if where.own else ""


def streams(bus: Bus) -> Connection:
    """Where JetStream is asked, beside the bus. Raises NotFound if nothing is kept there."""
    from comity.bus.nats import NatsBus

    if not isinstance(bus, NatsBus):
        raise NotFound("RabbitMQ keeps nothing of a network: log, registry and store lie elsewhere")
    return bus.connection


def must_have_doors(context: Context) -> None:
    """Raises BadSettings unless a controller on this bus can have all that it must keep."""
    missing = [door for door in BESIDE_RABBITMQ if door not in context.doors]
    if is_rabbitmq(context.urls) and missing:
        said = "RabbitMQ cannot keep it: its queues have no compare-and-append, and keep nothing for who is away"
        ways = {"store": "--store file:///PATH (or s3://BUCKET/PREFIX)"}
        wanted = " ".join(ways.get(door, f"--{door} etcd://HOST:PORT") for door in missing)
        raise BadSettings(f"no {' and no '.join(missing)} is named: {said}. Add {wanted}", setting="doors", value=missing)


def shown(context: Context) -> str:
    """The bus's addresses as they may be shown: no passwords, and no files."""
    from comity.backends import public

    return public(context.urls[0]) if is_rabbitmq(context.urls) else shown_urls(context.urls)


def trust(context: Context) -> list[str]:
    """What this bus cannot keep as it is set up: a note, or none."""
    from comity.amqp.address import Where

    if not is_rabbitmq(context.urls) or Where.parse(context.urls[0]).own:
        return []
    return ["this process shares its user of RabbitMQ: whoever has the password can pass for any process that shares it"]
