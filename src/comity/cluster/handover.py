"""Before a server stops on purpose, others take over what it leads: a planned stop then costs no election time-out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from comity.cluster.status import STREAMS, SystemView, meta_group
from comity.errors import ComityError, Indefinite, TimedOut
from comity.jetstream import JetStream

LIMIT_S = 3.0
LOOK_S = 0.02


async def hand_over(js: JetStream, view: SystemView | None, network: str, member: str, size: int) -> list[str]:
    """Have other servers lead what ``member`` leads. Says what did not go well: then an election will have to do it."""
    works = [_step_down(js, f"CY_{network}_{suffix}", member) for suffix in STREAMS.values()]
    if view is not None:
        works.append(_step_meta_down(view, member, size))
    ended = await asyncio.gather(*works, return_exceptions=True)
    failed = [error for error in ended if isinstance(error, BaseException)]
    for error in failed:
        if not isinstance(error, ComityError):
            raise error
    return [str(error) for error in failed]


async def _step_down(js: JetStream, stream: str, member: str) -> None:
    async with _limit(stream):
        if await _leader(js, stream) != member:
            return
        await js.api(f"STREAM.LEADER.STEPDOWN.{stream}")
        while await _leader(js, stream) in ("", member):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)  # an ordinary request tells who leads; it cannot be awaited


async def _leader(js: JetStream, stream: str) -> str:
    """Who leads ``stream`` now, "" for nobody."""
    try:
        info = await js.api(f"STREAM.INFO.{stream}")
    except Indefinite:
        return ""
    return str((info.get("cluster") or {}).get("leader", ""))


async def _step_meta_down(view: SystemView, member: str, size: int) -> None:
    async with _limit("the servers' own group"):
        group = meta_group(await view.ping(size))
        if group is None or group.leader != member:
            return
        await view.step_meta_down()


@contextlib.asynccontextmanager
async def _limit(what: str) -> AsyncIterator[None]:
    """At most ``LIMIT_S``. Raises TimedOut, naming what took longer."""
    try:
        async with asyncio.timeout(LIMIT_S):
            yield
    except TimeoutError:
        raise TimedOut(f"nobody else came to lead {what} within {LIMIT_S:.0f} s") from None
