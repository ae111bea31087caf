"""How a member, or who uses the log, comes to a member: a connection, a greeting, and then questions and answers."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from comity.errors import AccessDenied, BadInput, BadSettings, ComityError, Disconnected, Unreachable, from_wire
from comity.model.ids import check_token
from comity.raft import wire
from comity.raft.link import Link

GREETING_S = 2.0


def parse_address(address: str) -> tuple[str, int]:
    """``host:port``. Raises BadSettings."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadSettings(f"{address!r} is no address: HOST:PORT", value=address)
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_members(text: str) -> dict[str, str]:
    """``ID=HOST:PORT,...``: addresses by id. Raises BadSettings."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        id, _, address = pair.partition("=")
        try:
            check_token(id, "member")
        except BadInput as error:
            raise BadSettings(f"{pair!r} names no member: ID=HOST:PORT ({error.message})", setting="raft", value=pair) from None
        parse_address(address)
        if id in found or address in found.values():
            raise BadSettings(f"{pair!r}: each member has an id and an address of its own", setting="raft", value=text)
        found[id] = address
    return found


async def greet(
    address: str, hello: wire.Hello, tls: ssl.SSLContext | None, *, may_lose: bool = False
) -> tuple[Link, wire.Welcome]:
    """Connect and be welcomed. Raises Unreachable, AccessDenied (certificates), and what the member refuses with: ForeignData."""
    loop = asyncio.get_running_loop()
    greeting: asyncio.Future[wire.Welcome] = loop.create_future()

    def answered(_: Link, values: list[Any]) -> None:
        for value in values:
            if isinstance(value, wire.Refusal):
                ended(_, from_wire(value.code, value.message, value.details))
            elif not greeting.done():
                greeting.set_result(value)

    def ended(_: Link, error: ComityError) -> None:
        if not greeting.done():
            greeting.set_exception(error if error.definite else Unreachable(f"{address}: {error.message}"))

    host, port = parse_address(address)
    link: Link | None = None
    try:
        async with asyncio.timeout(GREETING_S):
            make = lambda: Link(wire.decode_greetings, answered, ended, may_lose=may_lose)  # noqa: E731
            _, link = await loop.create_connection(make, host, port, ssl=tls)
            link.send(hello)
            return link, await greeting
    except TimeoutError:
        error: ComityError = Unreachable(f"{address} does not answer")
    except ssl.SSLCertVerificationError as refused:
        error = AccessDenied(f"{address} has no certificate of this network: {refused.verify_message}")
    except OSError as broken:
        error = Unreachable(f"{address}: {broken.strerror or broken}")
    except UnicodeError as wrong:  # of a host's name
        error = BadSettings(f"{address!r} is no address: {wrong}", value=address)
    except ComityError as refused:
        error = refused
    except BaseException:  # nobody waits any more
        if link is not None:
            link.abort(Disconnected("the greeting was given up"))
        raise
    if link is not None:
        link.abort(error)
    raise error


class Contact:
    """A user's connection to a member."""

    def __init__(self, link: Link, welcome: wire.Welcome) -> None:
        self.welcome = welcome
        self._link = link
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._loop = asyncio.get_running_loop()
        link.decode, link.on_values, link.on_end = wire.decode_answers, self._answered, self._ended

    @classmethod
    async def make(cls, address: str, cluster: str, tls: ssl.SSLContext | None) -> Contact:
        """Raises what ``greet`` raises."""
        return cls(*await greet(address, wire.Hello(wire.VERSION, cluster), tls))

    @property
    def ended(self) -> ComityError | None:
        return self._link.ended

    def ask(self, request: wire.Request, answer: asyncio.Future[Any] | None = None) -> asyncio.Future[Any]:
        """What will be answered to it. Fails with the member's error, or Disconnected."""
        answer = answer or self._loop.create_future()
        if self._link.ended is not None:
            _settle(answer, self._link.ended)
        else:
            self._asked[request.key] = answer
            self._link.send(request)
        return answer

    def close(self, error: ComityError | None = None) -> None:
        self._link.close(error)

    def abort(self, error: ComityError) -> None:
        self._link.abort(error)

    def _answered(self, _: Link, values: list[Any]) -> None:
        for value in values:
            answer = self._asked.pop(value.key, None)
            if answer is None:
                continue
            if isinstance(value, wire.Failed):
                _settle(answer, from_wire(value.code, value.message, value.details))
            elif not answer.done():
                answer.set_result(value.items if isinstance(value, wire.Items) else value.value)

    def _ended(self, _: Link, error: ComityError) -> None:
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            _settle(answer, error)


def _settle(answer: asyncio.Future[Any], error: ComityError) -> None:
    if not answer.done():
        answer.set_exception(error)
