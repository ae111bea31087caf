"""What lies elsewhere than the bus: doors opened by their addresses. The one place that knows which address means which backend.

    registry=etcd://h1:2379,h2:2379    log=etcd://h1:2379,h2:2379    store=file:///shared/folder
    registry=consul://h1:8500          log=raft://h1:7400,h2:7400,h3:7400    store=s3://bucket/prefix

Which there are is the controllers' setting; whoever connects asks them (``told``), and is told no password.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from comity.errors import BadSettings, Disconnected, InvalidInput, NotFound
from comity.model.address import split

if TYPE_CHECKING:
    import ssl

    from comity.bus.base import Bus, Delivery
    from comity.consul import Consul
    from comity.etcd.client import Etcd
    from comity.log.base import Log
    from comity.registry.base import Registry
    from comity.store.base import Store

SCHEMES = {
    "registry": ("etcd", "etcds", "consul", "consuls"), "log": ("etcd", "etcds", "raft", "rafts"), "store": ("file", "s3"),
}  # fmt: skip
WITHOUT_HTTP = ("file", "s3", "raft", "rafts")
TOLD_S = 1.0
"""A controller that is there answers sooner."""
MOVED_S = 15.0
"""Servers that do not answer cost two seconds each, until the one that was left is taken again."""


class Elsewhere:
    """The doors at ``places``, which ``stack`` closes. Raises BadSettings for an address that means nothing."""

    def __init__(self, stack: AsyncExitStack, places: Mapping[str, str]) -> None:
        check_places(places)
        self.places = dict(places)
        self._stack = stack
        self._etcds: dict[str, Etcd] = {}
        self._consuls: dict[str, Consul] = {}

    def has(self, name: str) -> bool:
        return name in self.places

    async def registry(self, network: str, *, create: bool, network_id: str = "") -> Registry:
        """Raises NotFound, ForeignData, BadSettings, AccessDenied and Indefinite errors, as all these do."""
        from comity.registry.consul import ConsulRegistry
        from comity.registry.etcd import EtcdRegistry

        address = self.places["registry"]
        registry: Registry
        if address.startswith("consul"):
            consul = await self.consul(address)
            registry = await ConsulRegistry.open(consul, network, create=create, network_id=network_id)
        else:
            etcd = await self.etcd(address)
            registry = await EtcdRegistry.open(etcd, network, create=create, network_id=network_id)
        self._stack.push_async_callback(registry.close)
        return registry

    async def log(
        self, network: str, *, create: bool, network_id: str = "", new_id: str = "", asserts: str = ""
    ) -> tuple[Log, str]:
        """The log, and the id of its network. See ``EtcdLog.open`` and ``RaftLog.join``."""
        from comity.log.etcd import EtcdLog
        from comity.log.raft import RaftLog

        address = self.places["log"]
        log: EtcdLog | RaftLog
        if address.startswith("raft"):  # what is said of its durability it knows better
            at, cluster, tls = members(address, network)
            about: dict[str, Any] = {"create": create, "network_id": network_id, "new_id": new_id, "tls": tls}
            log = await RaftLog.join(at, cluster, network, **about)
        else:
            etcd = await self.etcd(address)
            log = await EtcdLog.open(etcd, network, create=create, network_id=network_id, new_id=new_id, asserts=asserts)
        self._stack.push_async_callback(log.close)
        return log, log.network_id

    async def store(self, network: str, owner: str = "", *, network_id: str = "") -> Store:
        """``owner``: a process that may write under its own name only. ``network_id``: make it, for that network."""
        from comity.store.folder import FolderStore

        address = self.places["store"]
        store: Store
        if address.startswith("s3"):
            store = await _in_bucket(address, network, owner, network_id)
        else:
            root = Path(unquote(urlsplit(address).path)) / network
            store = await FolderStore.join(root, owner, network_id=network_id)
        self._stack.push_async_callback(store.close)
        return store

    async def etcd(self, address: str) -> Etcd:
        """One connection for all doors at the same address."""
        from comity.etcd.client import Etcd
        from comity.remote.address import Where

        if address not in self._etcds:
            etcd = await Etcd.open(Where.parse(address))
            self._stack.push_async_callback(etcd.close)
            self._etcds[address] = etcd
        return self._etcds[address]

    async def consul(self, address: str) -> Consul:
        """One connection for all who ask."""
        from comity.consul import Consul
        from comity.remote.address import Where

        if address not in self._consuls:
            consul = await Consul.open(Where.parse(address, "consul"))
            self._stack.push_async_callback(consul.close)
            self._consuls[address] = consul
        return self._consuls[address]

    def addresses(self, *schemes: str) -> list[str]:
        """Those with one of ``schemes``, each once."""
        return list(dict.fromkeys(address for address in self.places.values() if urlsplit(address).scheme in schemes))


async def _in_bucket(address: str, network: str, owner: str, network_id: str) -> Store:
    from comity.store.s3 import S3Store

    try:
        return await S3Store.join(f"{address.rstrip('/')}/{network}", owner, network_id=network_id)
    except NotFound as error:
        if network_id:
            raise
        said = f"{error.message}: it must be the bucket that the controllers have, with the same AWS_ENDPOINT_URL"
        raise BadSettings(said, setting="doors", value=address) from error


def members(address: str, network: str) -> tuple[list[str], str, ssl.SSLContext | None]:
    """Where the members of a built-in Raft are, their cluster (unless said, it is called like the network), and how to come to
    them by TLS. Raises BadSettings."""
    from comity.remote.address import Where, tls

    where = Where.parse(address, "raft", network)
    return where.hosts, where.prefix, tls(where) if where.is_safe else None


def check_places(places: Mapping[str, str]) -> None:
    """Raises BadSettings unless each door can be where it is said to be."""
    from comity.remote.address import Where

    for name, address in places.items():
        known = SCHEMES.get(name, ())
        if split(address, "doors").scheme not in known:
            ways = " or ".join(f"{scheme}://..." for scheme in known)
            raise BadSettings(f"the {name} can be at {ways}, not at {public(address)}", setting="doors", value=name)
        if address.startswith("raft"):
            Where.parse(address, "raft")
        if address.startswith("s3"):
            _check_bucket(address)
        if urlsplit(address).scheme not in WITHOUT_HTTP and find_spec("httpx2") is None:
            said = f"{public(address)} needs one more package: pip install 'comity[etcd]' (for Consul too)"
            raise BadSettings(said, setting="doors", value=name)


def _check_bucket(address: str) -> None:
    parts = urlsplit(address)
    if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc or parts.query:
        said = "a bucket is s3://BUCKET/PREFIX; credentials and the server's address come from AWS_* variables"
        raise BadSettings(f"{public(address)}: {said}", setting="doors", value=public(address))
    if find_spec("obstore") is None:
        raise BadSettings(f"{public(address)} needs one more package: pip install 'comity[s3]'", setting="doors", value="store")


def public(address: str) -> str:
    """``address`` without users, passwords and this machine's files."""
    parts = urlsplit(address)
    scheme = f"{parts.scheme}s" if parts.scheme in ("amqp", "etcd", "consul", "raft") and "ca=" in parts.query else parts.scheme
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def told(bus: Bus) -> dict[str, str]:
    """The doors that lie elsewhere, as a controller tells. Nothing if none answers in time, by way of no server: one that is cut
    off from the others has none. Raises Disconnected."""
    from comity.bus.straying import moved

    for others in reversed(range(bus.servers)):
        if (found := await _told(bus)) is not None:
            return found
        if others:
            await moved(bus, MOVED_S)
    return {}


async def _told(bus: Bus) -> dict[str, str] | None:
    from comity.bus.base import Link, to, topic
    from comity.model.codec import from_json
    from comity.model.wire import Answer, Ask, decode, encode

    ref = secrets.randbits(53)
    heard: asyncio.Future[dict[str, str] | None] = asyncio.get_running_loop().create_future()

    def take(delivery: Delivery) -> None:
        try:
            answers = [item for item in decode(delivery.data) if isinstance(item, Answer) and item.ref == ref and not item.code]
            said: Any = from_json(answers[0].body) if answers else None
        except InvalidInput:
            return
        if isinstance(said, dict) and not heard.done():
            doors = said.get("doors", {})
            heard.set_result({str(name): str(address) for name, address in doors.items()} if isinstance(doors, dict) else {})

    def watch(link: Link) -> None:
        if link is not Link.UP and not heard.done():
            heard.set_result(None)

    cancel = await bus.subscribe(to(bus.process), take)
    bus.on_state(watch)
    try:
        await bus.send(topic("controllers"), encode([Ask(ref, "position")]))
        async with asyncio.timeout(TOLD_S):
            doors = await heard
        if doors is None:
            raise Disconnected("the connection broke before a controller could tell where the doors are")
        return doors
    except TimeoutError:
        return None
    finally:
        await cancel()
