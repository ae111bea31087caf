"""Majorities, and the two majorities that a joint membership needs (thesis, 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from comity.model.raft import Config

N = TypeVar("N", int, float)


def groups(config: Config) -> Iterator[tuple[str, ...]]:
    """Each group of voters of which a majority is needed."""
    yield config.voters
    if config.outgoing:
        yield config.outgoing


def agreed(config: Config, of: Callable[[str], N]) -> N:
    """The highest value that a majority of each group has reached; ``of`` gives a voter's."""
    return min(_median(group, of) for group in groups(config))


def _median(group: tuple[str, ...], of: Callable[[str], N]) -> N:
    return sorted((of(voter) for voter in group), reverse=True)[len(group) // 2]


def outcome(config: Config, votes: Mapping[str, bool]) -> bool | None:
    """Whether these votes win; None while they decide nothing yet."""
    needed = [len(group) // 2 + 1 for group in groups(config)]
    won = [sum(votes.get(voter, False) for voter in group) for group in groups(config)]
    left = [sum(voter not in votes for voter in group) for group in groups(config)]
    if all(votes >= need for votes, need in zip(won, needed, strict=True)):
        return True
    if any(votes + more < need for votes, more, need in zip(won, left, needed, strict=True)):
        return False
    return None
