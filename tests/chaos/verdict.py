"""What must hold after a run, whatever happened in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from load import Job, Said

from comity.sim.checkers import TaskModel
from comity.sim.history import History
from comity.sim.linear import check

LEAST_PER_S = 50.0
SHOWN = 5
ENDINGS = ("task.completed", "task.failed", "task.canceled", "task.rejected")


def judge(
    jobs: Sequence[Job], history: History, ledger: Mapping[str, list[Said]], events: Iterable[dict[str, Any]],
    totals: Mapping[str, int],
) -> list[str]:
    """What is wrong; nothing if all is as promised."""
    accepted = {job.task: job for job in jobs if job.task}
    ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
    gaps = []
    for event in events:
        if event["type"] in ENDINGS:
            ends[event["task"]].append(event)
        elif event["type"] == "events.gap":
            gaps.append(event)
    return [
        *_few("the past has a gap", gaps),
        *_few("accepted and never ended", [task for task in accepted if not ends[task]]),
        *_few("ended more than once", [task for task, told in ends.items() if len(told) > 1]),
        *_few("two jobs are one task", _twice(jobs)),
        *_few("refused or failed", [f"{job.number} {job.task} {job.error}" for job in jobs if _failed(job)]),
        *_few("wrong result", [wrong for job in accepted.values() if (wrong := _wrong(job, ledger, ends[job.task]))]),
        *_totals(totals, ends),
        *_few("not linearizable", _unlinearizable(history)),
    ]


def _few(what: str, found: Sequence[Any]) -> list[str]:
    if not found:
        return []
    shown = "; ".join(str(one) for one in found[:SHOWN])
    return [f"{what}: {len(found)}, such as {shown}"]


def _twice(jobs: Sequence[Job]) -> list[str]:
    return [task for task, count in Counter(job.task for job in jobs if job.task).items() if count > 1]


def _failed(job: Job) -> bool:
    """A job that never became a task, or whose task did not complete though nobody canceled it."""
    return not job.task or job.state not in ("completed", "canceled")


def _wrong(job: Job, ledger: Mapping[str, list[Said]], ends: list[dict[str, Any]]) -> str:
    """What is wrong with the result of a completed task: it must be what its accepted attempt wrote down and returned."""
    if job.state != "completed":
        return ""
    number, epoch, mark = job.result
    told = [event.get("epoch") for event in ends if event["type"] == "task.completed"]
    if number != job.number:
        return f"{job.task}: the result of job {number}, not {job.number}"
    if told != [epoch]:
        return f"{job.task}: epoch {epoch} gave the result, and the network accepted {told}"
    if Said(epoch, mark) not in ledger.get(job.task, []):
        return f"{job.task}: nobody returned {mark} at epoch {epoch}"
    return ""


def _totals(totals: Mapping[str, int], ends: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    ended = sum(bool(told) for told in ends.values())
    counted = totals["completed"] + totals["failed"] + totals["canceled"]
    if totals["submitted"] == counted == ended:
        return []
    return [f"the network counts {totals['submitted']} tasks and {counted} ends; its events tell of {ended}"]


def _unlinearizable(history: History) -> list[str]:
    model = TaskModel()
    found = []
    for task, operations in history.by_key().items():
        if task and (problem := check(operations, model, task)) is not None:
            found.append(str(problem))
    return found
