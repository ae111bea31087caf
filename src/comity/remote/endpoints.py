"""Several servers that answer the same questions over HTTP: one is asked until it does not answer, then the next.

What only reads is asked again elsewhere. What writes is sent on only if it surely was not received.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import httpx2

from comity.errors import AccessDenied, ComityError, Disconnected, Indefinite, TimedOut, Unreachable
from comity.remote.address import Where, tls

TRY_S = 2.5
"""One endpoint is given so long to answer."""
CONNECT_S = 1.0
PATIENCE_S = 7.0
"""And all of them together, for a read."""
RETRY_S = 0.05
_CONNECTIONS = 8
_AT_ONCE = 64
"""Questions under way; Consul takes 200 connections of one client."""
_FAULTS = (httpx2.HTTPError, httpx2.StreamError, OSError, RuntimeError)
"""What HTTP may raise: an error of TLS as it is, and a RuntimeError if it was closed meanwhile."""
_TRUST = re.compile("CERT|UNKNOWN_CA")
"""In OpenSSL's words."""
T = TypeVar("T")


class Endpoint(NamedTuple):
    """One server as it answers now; ``fault``: why it does not."""

    url: str
    version: str = ""
    member: str = ""
    leads: bool = False
    size: int = 0
    alarms: tuple[str, ...] = ()
    fault: str = ""


class Endpoints:
    """The servers at ``where``."""

    def __init__(self, where: Where) -> None:
        self.urls = where.urls
        self._at = 0
        self._closed = False
        self._room = asyncio.Semaphore(_AT_ONCE)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_CONNECTIONS)
        timeout = httpx2.Timeout(TRY_S, connect=CONNECT_S, pool=None)
        verify = tls(where) if where.urls[0].startswith("https") else False
        self._http = httpx2.AsyncClient(verify=verify, trust_env=False, limits=limits, timeout=timeout)

    @property
    def url(self) -> str:
        """Of the endpoint that is asked first."""
        return self.urls[self._at % len(self.urls)]

    def prefer(self, url: str) -> None:
        self._at = self.urls.index(url)

    def leave(self, url: str) -> None:
        """Ask the next endpoint from now on, unless somebody found out before that this one does not answer."""
        if self.url == url:
            self._at += 1

    async def reading(self, ask: Callable[[str], Awaitable[T]]) -> T:
        """What ``ask(url)`` answers; it may be asked twice."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while True:
            url = self.url
            try:
                return await ask(url)
            except Indefinite:
                self.leave(url)
                if loop.time() >= until or self._closed:
                    raise
            if self._at % len(self.urls) == 0:
                await asyncio.sleep(RETRY_S)  # that one of them answers again cannot be awaited

    async def writing(self, ask: Callable[[str], Awaitable[T]]) -> T:
        """What ``ask(url)`` answers; it may be asked once."""
        for tried in range(1, len(self.urls) + 1):
            url = self.url
            try:
                return await ask(url)
            except Indefinite as error:
                self.leave(url)
                was_sent = not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
                if was_sent or tried == len(self.urls):
                    raise
        raise AssertionError

    async def send(self, method: str, url: str, *, wait_s: float = 0.0, **options: Any) -> httpx2.Response:
        """Whatever ``url`` answers, which may first wait for ``wait_s``. Raises Indefinite errors, and AccessDenied (one side
        does not accept the other's certificate)."""
        if self._closed:
            raise Disconnected("the connection is closed")
        if wait_s:
            options["timeout"] = httpx2.Timeout(TRY_S, connect=CONNECT_S, read=TRY_S + wait_s, pool=None)
        try:
            async with self._room if not wait_s else contextlib.nullcontext(), asyncio.timeout(TRY_S + wait_s):
                return await self._http.request(method, url, **options)
        except TimeoutError as error:
            raise TimedOut(f"{url} does not answer", url=url) from error
        except _FAULTS as error:
            raise _broken(url, error) from error

    @contextlib.asynccontextmanager
    async def stream(self, url: str, **options: Any) -> AsyncIterator[httpx2.Response]:
        """An answer to a POST that goes on: see ``lines``. Raises as ``send`` does."""
        timeout = httpx2.Timeout(TRY_S, connect=CONNECT_S, read=None, pool=None)
        try:
            async with self._http.stream("POST", url, timeout=timeout, **options) as reply:
                yield reply
        except _FAULTS as error:
            raise _broken(url, error) from error

    async def close(self) -> None:
        self._closed = True
        await self._http.aclose()


async def lines(reply: httpx2.Response) -> AsyncIterator[bytes]:
    rest: list[bytes] = []
    async for data in reply.aiter_bytes():
        *whole, last = data.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line])
            rest.clear()
        rest.append(last)


def _broken(url: str, error: Exception) -> ComityError:
    if _is_untrusted(error):
        return AccessDenied(f"{url}: no secure connection: {error}", url=url)
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return TimedOut(f"{url} does not answer", url=url)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return Unreachable(f"{url} cannot be reached: {_why(error)}", url=url)
    return Disconnected(f"the connection to {url} broke: {_why(error)}", url=url)


def _why(error: BaseException) -> str:
    """What it says; if nothing, what it came of."""
    cause: BaseException | None = error
    while cause is not None and not str(cause):
        cause = cause.__cause__ or cause.__context__
    return str(cause) if cause is not None else type(error).__name__


def _is_untrusted(error: BaseException | None) -> bool:
    """Whether one side does not accept the other's certificate."""
    while error is not None and not (isinstance(error, ssl.SSLError) and _TRUST.search(error.reason or "")):
        error = error.__cause__ or error.__context__
    return error is not None
