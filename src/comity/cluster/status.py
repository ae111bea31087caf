"""How a cluster is, as its servers see it, and what it can survive.

    servers       each answers a ping of the system account
    groups        JetStream's own (which places streams) and those of the log, the registry and the store: leader and replicas

A group works while more than half of its members do, so what a cluster survives is what its weakest group does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from nats import errors as nats_errors
from nats.aio.msg import Msg

from comity.bus.connection import Connection
from comity.errors import ComityError, Unreachable
from comity.jetstream import JetStream

STREAMS = {"log": "LOG", "registry": "REG", "store": "STORE"}
ALONE = "the only server"
PING_S = 0.5
"""How long answers to a ping are waited for, unless all have come."""
CONNECT_S, REMOVE_S = 5.0, 5.0


class Server(NamedTuple):
    """``uptime_s``: None if it does not say."""

    name: str
    address: str = ""
    version: str = ""
    up: bool = False
    uptime_s: float | None = None


class Replica(NamedTuple):
    """``lag``: how many entries it is behind, as the leader knows; ``up``: whether the leader hears of it."""

    server: str
    current: bool
    lag: int = 0
    up: bool = True


class Group(NamedTuple):
    """``leader`` "" while there is none. ``replicas`` are all members, the leader among them."""

    name: str
    leader: str
    replicas: tuple[Replica, ...]
    head: int = 0


class Held(NamedTuple):
    """A server's own copy of a stream: its last entry, how many entries between others it lacks, and how many it has."""

    last: int
    gaps: int
    entries: int = 0


class SystemView:
    """What only a user of the system account may ask: which servers there are."""

    def __init__(self, nc: Connection) -> None:
        self._nc = nc

    @classmethod
    async def connect(cls, urls: Sequence[str], process: str, options: Mapping[str, Any]) -> SystemView:
        """Tries for a while; later breaks are mended for ever. Raises Unreachable."""
        nc = Connection()
        try:
            async with asyncio.timeout(CONNECT_S):  # it would try for ever
                await nc.connect(
                    list(urls), name=f"{process}.view", inbox_prefix=f"_INBOX_{process}", error_cb=_ignore, connect_timeout=2,
                    max_reconnect_attempts=-1, reconnect_time_wait=0.1, **options,  # type: ignore[arg-type]
                )  # fmt: skip
        except (OSError, nats_errors.Error) as error:
            await nc.close()
            raise Unreachable(f"the servers do not answer their system account: {nc.last_error or error}") from error
        except BaseException:
            await nc.close()
            raise
        return cls(nc)

    async def close(self) -> None:
        await self._nc.close()

    async def ping(self, expect: int) -> list[dict[str, Any]]:
        """What each server says of itself; ``expect`` answers are enough. Raises Unreachable."""
        return [answer["data"] for answer in await self._ask("VARZ", {}, expect)]

    async def held(self, stream: str, expect: int) -> dict[str, Held]:
        """What each server's own copy of ``stream`` has, by the server's name; ``expect`` answers are enough. Raises
        Unreachable."""
        found = {}
        for answer in await self._ask("JSZ", {"accounts": True, "streams": True}, expect):
            for account in answer["data"].get("account_details", ()):
                for copy in account.get("stream_detail", ()):
                    if copy["name"] == stream:
                        state = copy["state"]
                        found[answer["server"]["name"]] = Held(state["last_seq"], state.get("num_deleted", 0), state["messages"])
        return found

    async def _ask(self, what: str, options: dict[str, Any], expect: int) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        enough = asyncio.Event()

        async def take(msg: Msg) -> None:
            answers.append(msgspec.json.decode(msg.data))
            if len(answers) >= expect:
                enough.set()

        inbox = self._nc.new_inbox()
        try:
            subscription = await self._nc.subscribe(inbox, cb=take)
            await self._nc.publish(f"$SYS.REQ.SERVER.PING.{what}", msgspec.json.encode(options), reply=inbox)
            await asyncio.wait([asyncio.ensure_future(enough.wait())], timeout=PING_S)
            enough.set()
            await subscription.unsubscribe()
        except nats_errors.Error as error:
            raise Unreachable(f"the servers do not answer their system account: {error}") from error
        return [answer for answer in answers if "data" in answer]

    async def step_meta_down(self) -> None:
        """Have the server that leads JetStream's own group let another one lead. Raises Unreachable."""
        try:
            await self._nc.request("$JS.API.META.LEADER.STEPDOWN", b"", timeout=PING_S)
        except nats_errors.Error as error:
            raise Unreachable(f"JetStream's own group has no leader that answers: {error}") from error

    async def remove(self, server: str, peer: str) -> None:
        """Have JetStream's groups no longer count ``server``, which they call ``peer``. Raises Unreachable."""
        asked = msgspec.json.encode({"peer": server, "peer_id": peer})
        try:
            answer = await self._nc.request("$JS.API.SERVER.REMOVE", asked, timeout=REMOVE_S)
        except nats_errors.Error as error:
            raise Unreachable(f"JetStream's own group has no leader that answers: {error}") from error
        fault = msgspec.json.decode(answer.data).get("error")
        if fault:
            raise Unreachable(f"JetStream did not remove {server}: {fault.get('description', fault)}", server=server)


async def _ignore(_: Exception) -> None:
    """Trouble of the connection mends itself; a question that fails says so."""


def servers(pings: Sequence[dict[str, Any]], known: Sequence[str] = ()) -> list[Server]:
    """The servers that answered, and those of ``known`` (names) that did not, by name."""
    found = {}
    for said in pings:
        began, now = (datetime.fromisoformat(said[name]).astimezone(UTC) for name in ("start", "now"))
        name, address = said.get("server_name", ""), f"{said.get('host', '')}:{said.get('port', 0)}"
        found[name] = Server(name, address, said.get("version", ""), up=True, uptime_s=(now - began).total_seconds())
    absent = [Server(name) for name in known if name not in found]
    return sorted([*found.values(), *absent], key=lambda server: server.name)


def meta_info(pings: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What its leader says of JetStream's own group."""
    for said in pings:
        meta: dict[str, Any] = said.get("jetstream", {}).get("meta")
        if meta and meta.get("leader") == said.get("server_name"):
            return meta
    return None


def meta_group(pings: Sequence[dict[str, Any]]) -> Group | None:
    """JetStream's own group, as its leader sees it."""
    meta = meta_info(pings)
    return _group("servers", meta) if meta is not None else None


def _group(name: str, info: dict[str, Any], head: int = 0) -> Group:
    leader = info.get("leader", "")
    replicas = [Replica(leader, current=True)] if leader else []
    for replica in info.get("replicas") or ():
        up = not replica.get("offline", False)
        replicas.append(Replica(replica["name"], up and bool(replica.get("current")), replica.get("lag", 0), up))
    return Group(name, leader, tuple(sorted(replicas)), head)


async def groups(js: JetStream, network: str) -> tuple[list[Group], list[str]]:
    """The groups of the streams that may be asked for, and what could not be learned of others."""
    found, missing = [], []
    for name, suffix in STREAMS.items():
        try:
            info = await js.api(f"STREAM.INFO.CY_{network}_{suffix}")
        except ComityError as error:
            missing.append(f"{name}: {error.message}")
        else:
            alone = {"leader": ALONE}  # a server that is in no cluster says nothing of one
            found.append(_group(name, info.get("cluster") or alone, info["state"]["last_seq"]))
    return found, missing


class Survival(NamedTuple):
    """``more``: how many more servers may fail, -1 if the network stands still already."""

    more: int
    why: str

    def text(self) -> str:
        if self.more < 0:
            return f"the network stands still: {self.why}"
        if not self.more:
            return f"no server may fail: {self.why}"
        return f"{self.more} more {'server' if self.more == 1 else 'servers'} may fail" + (f" ({self.why})" if self.why else "")


def survival(known: Sequence[Group], controllers: int | None) -> Survival:
    """What the weakest of ``known`` allows. ``controllers`` that run (None: not known): one must be left."""
    worst = Survival(2**31, "")
    most = max((len(group.replicas) for group in known), default=0)
    for group in known:
        size = len(group.replicas)
        good = sum(replica.current for replica in group.replicas)
        behind = [replica.server for replica in group.replicas if not replica.current]
        more = good - (size // 2 + 1) if group.leader else -1
        why = f"{', '.join(behind)} {'is' if len(behind) == 1 else 'are'} down or behind" if behind else ""
        if size == 1:
            why = f"there is one copy of {'everything' if len(group.replicas) == most else f'the {group.name}'}"
        if not group.leader:
            why = f"the {group.name} has no leader"
        if more < worst.more or (more == worst.more and why and not worst.why):
            worst = Survival(more, why)
    if controllers is not None and controllers - 1 < worst.more:
        worst = Survival(controllers - 1, "no other controller runs" if controllers else "no controller answers")
    return worst if known else Survival(-1, "no stream has a leader that answers")
