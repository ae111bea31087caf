"""A process's way to etcd, for the registry and the log: its JSON gateway over HTTP, several endpoints, users, TLS.

etcd's linearizable reads were stale now and then until 3.4.42, 3.5.28 and 3.6.9. So an answer that shows a lower revision than
this process has seen is asked for again, elsewhere; and what is decided, is decided by transactions. The gateway knows users by
password only: the name in a client's certificate opens the connection, and counts for nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec

from comity.errors import (
    AccessDenied,
    BadSettings,
    ComityError,
    Disconnected,
    ForeignData,
    Indefinite,
    Unreachable,
)
from comity.etcd.wire import (
    Failure,
    Header,
    Members,
    Range,
    Renewed,
    Reply,
    Status,
    Token,
    Txn,
    Version,
    decode,
    is_of_token,
    meant,
)
from comity.remote.address import Where
from comity.remote.endpoints import Endpoint, Endpoints, lines

OLDEST = (3, 4)
STALE_BEFORE = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
"""From which patch of each version linearizable reads are not stale any more."""
T = TypeVar("T")


def numbers(version: str) -> tuple[int, ...]:
    """Of a version like 3.5.30; none of what is not like that."""
    parts = version.partition("-")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def may_be_stale(version: str) -> bool:
    """Whether linearizable reads of this version may show the past."""
    found = numbers(version)
    return len(found) == 3 and found[2] < STALE_BEFORE.get(found[:2], 0)


class Etcd:
    """One process's way to an etcd cluster."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.revision = 0
        """The newest one this process has seen."""
        self._cluster = 0
        self._token = ""
        self._signing_in = asyncio.Lock()
        self._endpoints = Endpoints(where)

    @classmethod
    async def open(cls, where: Where) -> Etcd:
        """Raises Unreachable (no endpoint answers), AccessDenied, ForeignData (they belong to several clusters), BadSettings (one
        is too old, or is no etcd)."""
        etcd = cls(where)
        try:
            await etcd._look()
        except BaseException:
            await etcd.close()
            raise
        return etcd

    @property
    def url(self) -> str:
        """Of the endpoint that is asked first."""
        return self._endpoints.url

    def leave(self, url: str) -> None:
        self._endpoints.leave(url)

    async def range(self, key: bytes, **options: Any) -> Range:
        """Linearizable, but see above. Raises Indefinite errors."""
        return await self.read("kv/range", {"key": key, **options}, Range)

    async def txn(
        self, compare: list[dict[str, Any]], success: list[dict[str, Any]], failure: list[dict[str, Any]] | None = None
    ) -> Txn:
        """Do ``success`` if all of ``compare`` hold, else ``failure``. Raises TooLarge, AccessDenied, Indefinite errors."""
        body = {"compare": compare, "success": success, "failure": failure or []}
        return await self.write("kv/txn", body, Txn)

    async def read(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """What may be asked twice."""

        async def ask(url: str) -> T:
            seen = self.revision
            found = await self.ask(url, path, body, kind)
            if not isinstance(found, Range) or found.header.revision >= seen or body.get("revision", "0") != "0":
                return found
            raise Unreachable(f"{url} shows revision {found.header.revision}, not {seen}", url=url)

        return await self._endpoints.reading(ask)

    async def write(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        """What may be asked once."""
        return await self._endpoints.writing(lambda url: self.ask(url, path, body, kind))

    async def renew(self, lease: int) -> int:
        """Seconds that ``lease`` has anew, 0 if it is over."""
        return (await self.write("lease/keepalive", {"ID": str(lease)}, Renewed)).result.TTL

    async def ask(self, url: str, path: str, body: dict[str, Any], kind: type[T]) -> T:
        data = msgspec.json.encode(body)
        for is_last in (False, True):
            token = self._token or await self._sign_in(url, "")
            reply = await self._send(url, path, data, token)
            if reply.status_code == 200:
                return self._taken(url, reply.content, kind)
            failure = decode(url, reply.content, Failure)
            if is_last or not self.where.user or not is_of_token(failure):
                raise meant(url, failure)
            await self._sign_in(url, token)
        raise AssertionError

    async def _send(self, url: str, path: str, data: bytes, token: str) -> Any:
        try:
            return await self._endpoints.send("POST", f"{url}/v3/{path}", content=data, headers=_headers(token))
        except Disconnected:
            self.sign_out()
            raise

    def _taken(self, url: str, data: bytes, kind: type[T]) -> T:
        found = decode(url, data, kind)
        if isinstance(found, Reply):
            self.heard(url, found.header)
        return found

    def heard(self, url: str, header: Header) -> None:
        """Raises ForeignData if this server belongs to another cluster than those before."""
        self._cluster = self._cluster or header.cluster_id
        if header.cluster_id not in (0, self._cluster):
            raise ForeignData(f"{url} belongs to another cluster than the other endpoints", url=url)
        self.revision = max(self.revision, header.revision)

    async def _sign_in(self, url: str, old: str) -> str:
        """A token, newer than ``old``; none where there is no user."""
        if not self.where.user:
            return ""
        async with self._signing_in:
            if self._token in ("", old):
                known = msgspec.json.encode({"name": self.where.user, "password": self.where.password})
                reply = await self._send(url, "auth/authenticate", known, "")
                if reply.status_code != 200:
                    raise meant(url, decode(url, reply.content, Failure))
                self._token = decode(url, reply.content, Token).token
            return self._token

    def sign_out(self) -> None:
        """Get a new token for the next question: some versions hang up on one they do not know, or end a watch."""
        self._token = ""

    async def _look(self) -> None:
        versions = await asyncio.gather(*(self.version(url) for url in self.where.urls), return_exceptions=True)
        found = [version for version in versions if isinstance(version, str)]
        for version in versions:
            if isinstance(version, BaseException) and not isinstance(version, Indefinite):
                raise version
        if not found:
            raise Unreachable(f"no etcd answers at {', '.join(self.where.urls)}: {versions[0]}", urls=list(self.where.urls))
        for version in found:
            if numbers(version)[:2] < OLDEST:
                least = ".".join(map(str, OLDEST))
                raise BadSettings(f"etcd {version} is too old: {least} is the least", setting="doors", value=version)
        self._endpoints.prefer(next(url for url, version in zip(self.where.urls, versions, strict=True) if version in found))
        for url, version in zip(self.where.urls, versions, strict=True):
            if isinstance(version, str):
                with contextlib.suppress(Indefinite, AccessDenied):  # it tells its cluster, if it is well and we may ask
                    await self.ask(url, "maintenance/status", {}, Status)

    async def version(self, url: str) -> str:
        reply = await self._endpoints.send("GET", f"{url}/version")
        found = decode(url, reply.content, Version).etcdserver if reply.status_code == 200 else ""
        if not numbers(found):
            raise BadSettings(f"{url} is no etcd", setting="doors", value=url)
        return found

    async def survey(self) -> list[Endpoint]:
        """How each endpoint is now."""
        return list(await asyncio.gather(*(self._status(url) for url in self.where.urls)))

    async def _status(self, url: str) -> Endpoint:
        try:
            found = await self.ask(url, "maintenance/status", {}, Status)
        except AccessDenied:  # only etcd's root may ask
            return await self._seen_from_outside(url)
        except ComityError as error:
            return Endpoint(url, fault=error.message)
        member = found.header.member_id
        return Endpoint(url, found.version, f"{member:x}", found.leader == member, found.size, tuple(found.errors))

    async def _seen_from_outside(self, url: str) -> Endpoint:
        try:
            version, text = await self.version(url), await self.metrics(url)
        except ComityError as error:
            return Endpoint(url, fault=error.message)
        member = re.search(r'^etcd_server_id{server_id="(\w+)"} 1', text, re.MULTILINE)
        return Endpoint(url, version, member[1] if member else "", "\netcd_server_is_leader 1" in text)

    async def metrics(self, url: str) -> str:
        """The text at ``/metrics``. Raises Unreachable if there is none."""
        reply = await self._endpoints.send("GET", f"{url}/metrics")
        if reply.status_code != 200:
            raise Unreachable(f"{url}/metrics: {reply.status_code}", url=url)
        return reply.text

    async def members(self) -> int:
        """How many the cluster has."""
        return len((await self.read("cluster/member/list", {}, Members)).members)

    @contextlib.asynccontextmanager
    async def stream(self, url: str, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Lines of an answer that goes on. Raises Indefinite errors."""
        token = self._token or await self._sign_in(url, "")
        data = msgspec.json.encode(body)
        try:
            async with self._endpoints.stream(f"{url}/v3/{path}", content=data, headers=_headers(token)) as reply:
                if reply.status_code != 200:
                    self.sign_out()
                    raise meant(url, decode(url, await reply.aread(), Failure))
                yield lines(reply)
        except Disconnected:
            self.sign_out()
            raise

    async def close(self) -> None:
        await self._endpoints.close()


def _headers(token: str) -> dict[str, str]:
    return {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
