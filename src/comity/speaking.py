"""The verbs of a client in the mouths of agents and attempts, who speak through clients of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from comity.client.client import Client

P = ParamSpec("P")
R = TypeVar("R")


class Speaker(Protocol):
    """Whoever has a client to speak through."""

    @property
    def _client(self) -> Client: ...


def spoken(verb: Callable[[Client], Callable[P, R]]) -> Callable[Concatenate[Speaker, P], R]:
    """A verb of the client as a method of whoever is a ``Speaker``."""

    def speak(speaker: Speaker, /, *args: P.args, **options: P.kwargs) -> R:
        """See the client's method of this name."""
        return verb(speaker._client)(*args, **options)

    return speak


submit, submit_many, stream = spoken(lambda c: c.submit), spoken(lambda c: c.submit_many), spoken(lambda c: c.stream)
task, cancel = spoken(lambda c: c.task), spoken(lambda c: c.cancel)
request, send = spoken(lambda c: c.request), spoken(lambda c: c.send)
broadcast, receipts = spoken(lambda c: c.broadcast), spoken(lambda c: c.receipts)
discover, capabilities = spoken(lambda c: c.discover), spoken(lambda c: c.capabilities)
describe, performance = spoken(lambda c: c.describe), spoken(lambda c: c.performance)
put_file, get_file = spoken(lambda c: c.put_file), spoken(lambda c: c.get_file)
call_for_proposals, request_via = spoken(lambda c: c.call_for_proposals), spoken(lambda c: c.request_via)
query_if, query_ref = spoken(lambda c: c.query_if), spoken(lambda c: c.query_ref)
subscribe, ping = spoken(lambda c: c.subscribe), spoken(lambda c: c.ping)
borrow, invite = spoken(lambda c: c.borrow), spoken(lambda c: c.invite)
