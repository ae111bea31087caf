"""What faults cost, from what callers saw: shares, the longest stop, and the fault rate up to which a goal holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from load import Job

ANSWER_S = 1.0
FINISH_S = 5.0
GOAL = 0.9995


class Window(NamedTuple):
    """A fault and the time until the next one. ``lost_s``: the time in it, in which a submit was not answered in time;
    ``stop_s``: the longest time without the end of any task whose middle lies in it."""

    kind: str
    began: float
    ended: float
    lost_s: float
    late_s: float
    stop_s: float


class Figures(NamedTuple):
    """``answered``: the share of submits answered within ANSWER_S; ``finished``: of tasks within FINISH_S of their submit.
    ``every_s``: how far apart faults must be, on average, for GOAL to hold of each; 0 if they cost nothing."""

    submits: int
    answered: float
    finished: float
    longest_stop_s: float
    per_s: float
    faults: int
    fault_every_s: float
    windows: list[Window]
    every_s_answered: float
    every_s_finished: float


def figures(jobs: Sequence[Job], calls: Sequence[float], faults: Sequence[tuple[str, float]], end: float) -> Figures:
    """Of ``jobs`` asked for until ``end``, with ``faults`` as (kind, when) in order."""
    judged = [job for job in jobs if job.asked <= end]
    answered = [not _late(job.asked, job.accepted, ANSWER_S) for job in judged]
    finished = [not _late(job.asked, job.ended, FINISH_S) for job in judged]
    ends = sorted(job.ended for job in judged if job.ended is not None)
    windows = _windows(judged, ends, faults, end)
    count = max(1, len(windows))
    return Figures(
        submits=len(judged),
        answered=_share(answered),
        finished=_share(finished),
        longest_stop_s=_stop(ends, 0.0, end),
        per_s=sum(at <= end for at in calls) / max(end, 0.001),
        faults=len(windows),
        fault_every_s=(end - windows[0].began) / count if windows else 0.0,
        windows=windows,
        every_s_answered=sum(window.lost_s for window in windows) / count / (1 - GOAL),
        every_s_finished=sum(window.late_s for window in windows) / count / (1 - GOAL),
    )


def nines(share: float) -> str:
    """How many nines a share has, as people say it: 99.95 % is three nines and a half."""
    if share >= 1:
        return "all"
    bad, found = 1 - share, 0
    while bad <= 0.1 ** (found + 1) + 1e-12:
        found += 1
    return f"{found}{'.5' if bad <= 0.5 * 0.1**found + 1e-12 and found else ''}"


def _late(asked: float, done: float | None, limit_s: float) -> bool:
    return done is None or done - asked > limit_s


def _share(good: list[bool]) -> float:
    return sum(good) / len(good) if good else 1.0


def _windows(jobs: list[Job], ends: list[float], faults: Sequence[tuple[str, float]], end: float) -> list[Window]:
    """Load is constant, so a share of the jobs of a window is the same share of its time."""
    found = []
    for number, (kind, began) in enumerate(faults):
        until = faults[number + 1][1] if number + 1 < len(faults) else end
        mine = [job for job in jobs if began <= job.asked < until]
        per_job = (until - began) / max(1, len(mine))
        lost_s = per_job * sum(_late(job.asked, job.accepted, ANSWER_S) for job in mine)
        late_s = per_job * sum(_late(job.asked, job.ended, FINISH_S) for job in mine)
        found.append(Window(kind, began, until, lost_s, late_s, _stop(ends, began, until)))
    return found


def _stop(ends: list[float], began: float, until: float) -> float:
    """The longest time between the ends of two tasks whose middle lies between ``began`` and ``until``."""
    marks = [0.0, *ends, max(until, ends[-1] if ends else until)]
    gaps = [later - earlier for earlier, later in pairwise(marks) if began <= (earlier + later) / 2 <= until]
    return max(gaps, default=0.0)
