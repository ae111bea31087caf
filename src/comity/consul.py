"""A process's way to Consul, for the registry: its HTTP API, several agents, a token, TLS. Reads are ``consistent``: the leader
makes sure that it leads before it answers."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from comity.errors import AccessDenied, BadSettings, ComityError, Conflict, Indefinite, NotFound, TooLarge, Unreachable
from comity.remote.address import Where
from comity.remote.endpoints import Endpoint, Endpoints

OLDEST = (1, 8)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
TTL_MIN_S = 10.0
"""Consul's own least time to live of a session, where an agent does not say."""

T = TypeVar("T")


class CheckFailed(Conflict):
    """A transaction's condition does not hold."""


class Entry(msgspec.Struct, rename="pascal"):
    key: str
    value: bytes | None = None
    modify_index: int = 0


class _Result(msgspec.Struct, rename={"kv": "KV"}):
    kv: Entry | None = None


class _Done(msgspec.Struct, rename="pascal"):
    results: list[_Result] | None = None


class _Created(msgspec.Struct, rename={"id": "ID"}):
    id: str


class _Config(msgspec.Struct, rename="pascal"):
    version: str = ""
    node_name: str = ""


class _About(msgspec.Struct, rename="pascal"):
    config: _Config
    debug_config: dict[str, Any] = {}


class Consul:
    """One process's way to a Consul datacenter."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.ttl_min_s = TTL_MIN_S
        self._endpoints = Endpoints(where)
        token = where.password or where.user
        self._headers = {"X-Consul-Token": token} if token else {}

    @classmethod
    async def open(cls, where: Where) -> Consul:
        """Raises Unreachable (no agent answers), AccessDenied, BadSettings (it is too old, or no Consul)."""
        consul = cls(where)
        try:
            await consul._look()
        except BaseException:
            await consul.close()
            raise
        return consul

    @property
    def url(self) -> str:
        """Of the agent that is asked first."""
        return self._endpoints.url

    async def _look(self) -> None:
        try:
            about = await self._any()
        except _NotAllowed:  # a token that may use keys need not be one that may look at agents
            return
        except (NotFound, _Foreign) as error:
            url = error.details.get("url", self.url)
            raise BadSettings(f"{url} is no Consul", setting="doors", value=url) from error
        found = tuple(int(part) for part in re.findall(r"\d+", about.config.version)[:2])
        if found < OLDEST:
            least = ".".join(map(str, OLDEST))
            raise BadSettings(f"Consul {about.config.version} is too old: {least} is the least", setting="doors")
        said = str(about.debug_config.get("SessionTTLMin", ""))
        parts = re.findall(r"([\d.]+)(ms|s|m|h)", said)
        self.ttl_min_s = sum(float(number) * _UNITS[unit] for number, unit in parts) or TTL_MIN_S

    async def _any(self) -> _About:
        """What the first agent that answers says of itself; it is asked first from now on."""
        fault: ComityError | None = None
        for url in self.where.urls:
            try:
                found = await self._about(url)
            except _Foreign:
                raise
            except Indefinite as error:
                fault = error
            else:
                self._endpoints.prefer(url)
                return found
        raise Unreachable(f"no Consul answers at {', '.join(self.where.urls)}: {fault}", urls=list(self.where.urls))

    async def _about(self, url: str) -> _About:
        return _decode(url, (await self._ask(url, "GET", "agent/self"))[0], _About)

    async def survey(self) -> list[Endpoint]:
        """How each agent is now."""
        return list(await asyncio.gather(*(self._status(url) for url in self.where.urls)))

    async def _status(self, url: str) -> Endpoint:
        try:
            at = _decode(url, (await self._ask(url, "GET", "status/leader"))[0], str)
            config = (await self._about(url)).config
        except _NotAllowed:
            return Endpoint(url)
        except ComityError as error:
            return Endpoint(url, fault=error.message)
        return Endpoint(url, config.version, config.node_name, alarms=() if at else ("no server leads",))

    async def entries(self, prefix: str, index: int = 0, wait_s: float = 0.0) -> tuple[list[Entry], int]:
        """All keys under ``prefix`` and the index they are of; with ``wait_s`` once that is not ``index`` any more, or the time
        is over."""
        return await self._keys(prefix, {"recurse": ""}, index, wait_s)

    async def entry(self, key: str) -> Entry | None:
        found, _ = await self._keys(key, {}, 0, 0.0)
        return found[0] if found else None

    async def _keys(self, key: str, params: dict[str, str], index: int, wait_s: float) -> tuple[list[Entry], int]:
        params = {**params, "consistent": ""}
        if wait_s:
            params |= {"index": str(index), "wait": f"{wait_s:g}s"}

        async def ask(url: str) -> tuple[list[Entry], int]:
            try:
                data, at = await self._ask(url, "GET", f"kv/{quote(key)}", params=params, wait_s=wait_s * 17 / 16)
            except _Nothing as nothing:
                return [], nothing.index
            if not at:  # nothing could be waited for
                raise _Foreign(f"{url} answers without an index, as no Consul would", url=url)
            return _decode(url, data, list[Entry]), at

        return await self._endpoints.reading(ask)

    async def txn(self, operations: list[dict[str, Any]]) -> list[Entry]:
        """Do all of them, or raise CheckFailed. What was set, and its new index."""
        body = msgspec.json.encode([{"KV": operation} for operation in operations])
        data, _ = await self._endpoints.writing(lambda url: self._ask(url, "PUT", "txn", content=body))
        results = _decode(self.url, data, _Done).results or []
        return [result.kv for result in results if result.kv is not None]

    async def write(self, path: str, body: Any = None) -> bytes:
        """What may be asked once."""
        content = b"" if body is None else msgspec.json.encode(body)
        return (await self._endpoints.writing(lambda url: self._ask(url, "PUT", path, content=content)))[0]

    async def new_lease(self, name: str, ttl_s: float) -> str:
        """A session that takes what it locks along when it ends."""
        asked: dict[str, Any] = {"Name": name, "TTL": f"{ttl_s * 1000:.0f}ms", "Behavior": "delete", "LockDelay": "0s"}
        asked |= {"NodeChecks": [], "Checks": []}
        return _decode(self.url, await self.write("session/create", asked), _Created).id

    async def renew(self, lease: str) -> bool:
        """Whether it is there still."""
        try:
            await self.write(f"session/renew/{lease}")
        except NotFound:
            return False
        return True

    async def _ask(self, url: str, method: str, path: str, *, wait_s: float = 0.0, **options: Any) -> tuple[bytes, int]:
        reply = await self._endpoints.send(method, f"{url}/v1/{path}", wait_s=wait_s, headers=self._headers, **options)
        index = int(said) if (said := reply.headers.get("X-Consul-Index", "0")).isdecimal() else 0
        if reply.status_code == 200:
            return reply.content, index
        raise _meant(url, reply.status_code, reply.text[:300].strip(), index)

    async def close(self) -> None:
        await self._endpoints.close()


class _Foreign(Unreachable):
    """What answers is no Consul, or not now: a proxy's page, it may be."""


def _decode(url: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise _Foreign(f"{url} answers what no Consul would: {error}", url=url) from error


class _NotAllowed(AccessDenied):
    """By the token; what is not trusted is told by another."""


class _Nothing(NotFound):
    def __init__(self, message: str, url: str, index: int) -> None:
        super().__init__(message, url=url)
        self.index = index


def _meant(url: str, status: int, said: str, index: int) -> ComityError:
    """What a refusal of Consul's means here."""
    if status == 404:
        return _Nothing(f"{url}: {said or 'not found'}", url, index)
    if status == 403 or "ACL not found" in said:
        return _NotAllowed(f"{url}: {said}", url=url)
    if status == 409:
        return CheckFailed(f"{url}: {said}", url=url)
    if status == 413:
        return TooLarge(f"{url}: {said}", url=url)
    return Unreachable(f"{url}: {status} {said}", url=url)


def put(key: str, value: bytes, lease: str = "") -> dict[str, Any]:
    verb: dict[str, Any] = {"Verb": "lock", "Session": lease} if lease else {"Verb": "set"}
    return {**verb, "Key": key, "Value": base64.b64encode(value).decode()}


def is_at(key: str, index: int) -> dict[str, Any]:
    """Checks: the key's last change is ``index``; 0: there is none."""
    return {"Verb": "check-index", "Key": key, "Index": index} if index else {"Verb": "check-not-exists", "Key": key}
