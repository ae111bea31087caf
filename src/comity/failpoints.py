"""Places before and after each durable write, where a test can make the program die, fail or stand still. Off by default.

    with durable("snapshot.put"):
        stored = await self._store.put(key, frames)

passes ``snapshot.put.before``, and ``snapshot.put.after`` once the write has succeeded. They are armed by the environment, in
which a real process starts,

    COMITY_FAILPOINTS="log.append.after=kill; archive.put.before=error(2); log.trim.before=delay(0.5)"

or by ``watched`` in a test or a simulated life. ``kill(N)`` kills the process (SIGKILL) when it comes there for the N-th time
(default: the first), ``error(N)`` raises an indefinite error the first N times, ``delay(S)`` stands still for S seconds.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from comity.errors import BadSettings, Unreachable

__all__ = ["POINTS", "SIMULATED", "WRITES", "durable", "parse", "watched"]

SIMULATED = (
    # the controller
    "log.append", "term.append", "log.trim", "snapshot.put", "snapshot.check", "snapshot.commit", "archive.put", "archive.commit",
    "archive.drop", "payload.put", "payload.commit", "record.put", "record.adopt", "dead.put", "dead.drop", "store.clear",
    "strategy.commit", "registry.forget",
    # nodes and clients
    "result.put", "report.post", "schemas.put", "agents.put", "node.put", "registry.delete", "input.put",
)  # fmt: skip
"""Writes of the programs, through whatever door."""

WRITES = (
    *SIMULATED,
    # the controller, for tasks that wait long
    "input.renew",
    # those who send durable mail, large bodies and files, and those who take files
    "mail.put", "body.put", "file.put", "file.take",
    # backends
    "jetstream.stream", "jetstream.append", "jetstream.purge", "jetstream.record", "jetstream.remove", "jetstream.chunk",
    "jetstream.value", "jetstream.bury", "sqlite.create", "sqlite.append", "sqlite.trim", "folder.write", "folder.place",
    "folder.delete", "folder.expire", "folder.mark",
    "s3.mark", "s3.content", "s3.value", "s3.delete", "s3.expire",
    "etcd.mark", "etcd.begin", "etcd.append", "etcd.trim", "etcd.record",
    "etcd.remove", "consul.mark", "consul.record", "consul.remove",
    "raft.cut", "raft.save", "raft.segment", "raft.drop",
    # files
    "file.write", "file.place", "network.identify", "keys.place", "server.config", "context.write", "context.place", "lock.write",
    "log.mark",
)  # fmt: skip
"""All durable writes, each named once."""

POINTS = tuple(f"{write}.{when}" for write in WRITES for when in ("before", "after"))

Hook = Callable[[str], None]
_ACTION = re.compile(r"(kill|error|delay)(?:\(([0-9.]+)\))?")
_hooks: list[Hook] = []


class _Durable:
    """Around one write, while somebody watches."""

    __slots__ = ("_write",)

    def __init__(self, write: str) -> None:
        self._write = write

    def __enter__(self) -> None:
        _reached(f"{self._write}.before")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            _reached(f"{self._write}.after")


class _Off:
    """Around a write otherwise: one for all."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


_OFF = _Off()


def durable(write: str) -> _Durable | _Off:
    """Stands around the durable write of that name (one of ``WRITES``)."""
    return _Durable(write) if _hooks else _OFF


def _reached(point: str) -> None:
    for hook in list(_hooks):
        hook(point)


@contextmanager
def watched(hook: Hook) -> Iterator[None]:
    """Have ``hook(point)`` called wherever a write begins or has been done; what it raises is raised there."""
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def parse(text: str) -> Hook:
    """The hook that does what ``COMITY_FAILPOINTS`` says. Raises BadSettings, naming what cannot be understood."""
    actions: dict[str, list[Hook]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        point, _, action = (word.strip() for word in part.partition("="))
        found = _ACTION.fullmatch(action)
        if point not in POINTS or found is None:
            raise BadSettings(f"COMITY_FAILPOINTS: cannot understand {part!r}", setting="COMITY_FAILPOINTS", part=part)
        kind, number = found[1], float(found[2] or 1)
        actions.setdefault(point, []).append({"kill": _kill, "error": _error, "delay": _delay}[kind](number))

    def hook(point: str) -> None:
        for act in actions.get(point, ()):
            act(point)

    return hook


def _kill(number: float) -> Hook:
    left = number

    def act(point: str) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def _error(times: float) -> Hook:
    left = times

    def act(point: str) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unreachable(f"failpoint {point}", failpoint=point)

    return act


def _delay(seconds: float) -> Hook:
    def act(point: str) -> None:
        time.sleep(seconds)

    return act


if os.environ.get("COMITY_FAILPOINTS"):
    _hooks.append(parse(os.environ["COMITY_FAILPOINTS"]))
