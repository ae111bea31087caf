"""The job, from the caller's side: what is submitted to the crew, in which order, and what becomes of the answers.

    async with comity.connect() as net:
        covered = await survey_folder(net, Path("src"), Path("report.html"))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from code_survey.analysis import FileSurvey
from code_survey.listing import Listing
from code_survey.references import CrossReference, Imports
from code_survey.report import Coverage
from code_survey.timeline import Loss, Run, Try, Work, lanes
from comity import Client, Task


@dataclass(slots=True)
class Progress:
    """How far the job is, to be looked at while it runs; ``lost``: nodes that went away, and when, to be written by who
    knows. ``on_batch`` is called after each batch. ``run`` is there at the end."""

    files: int = 0
    batches: int = 0
    done: int = 0
    lost: dict[str, datetime] = field(default_factory=dict)
    on_batch: Callable[[], None] = lambda: None
    run: Run | None = None


async def survey_folder(net: Client, folder: Path, out: Path, progress: Progress | None = None) -> Coverage:
    """Have the crew survey ``folder`` and write its report to ``out``: absolute paths, which all nodes must see alike.

    Raises what comity raises if a task fails; look at the coverage for whether every file is in the report.
    """
    progress = progress or Progress()
    began = datetime.now(UTC)
    where = str(folder)
    splitting = await net.submit("split", {"folder": where})
    listing = await splitting.result(as_type=Listing)
    progress.files, progress.batches = len(listing.files), len(listing.batches)

    surveying = await net.submit_many("survey", [{"folder": where, "files": batch} for batch in listing.batches])
    surveys: list[FileSurvey] = []

    async def collect(task: Task) -> None:
        surveys.extend(await task.result(as_type=list[FileSurvey]))
        progress.done = len(surveys)
        progress.on_batch()

    await asyncio.gather(*map(collect, surveying))

    imports = [Imports(survey.path, survey.imports, survey.deferred) for survey in surveys]
    referencing = await net.submit("cross_reference", {"files": imports})
    references = await referencing.result(as_type=CrossReference)

    ends = datetime.now(UTC)
    histories = await asyncio.gather(*(task.status() for task in (splitting, *surveying, referencing)))
    files = [0, *map(len, listing.batches), 0]
    progress.run = _run(histories, files, began, ends, progress.lost)
    reporting = await net.submit(
        "report",
        {
            "folder": where,
            "out": str(out),
            "listed": listing.files,
            "surveys": [_without_imports(survey) for survey in surveys],
            "references": references,
            "run": progress.run,
        },
    )
    return await reporting.result(as_type=Coverage)


def _without_imports(survey: FileSurvey) -> FileSurvey:
    """The report has no use for them, and they are half of the bytes."""
    survey.imports, survey.deferred = [], []
    return survey


def _run(
    histories: Sequence[dict[str, Any]], files: Sequence[int], began: datetime, ends: datetime, lost: dict[str, datetime]
) -> Run:
    """The tasks' histories, as the network tells them, in seconds since the job began."""

    def since(moment: datetime) -> float:
        return round((moment - began).total_seconds(), 3)

    work = []
    for history, count in zip(histories, files, strict=True):
        tries = []
        for attempt in history["attempts"]:
            if not attempt["started"] and attempt["node"] not in lost:
                continue  # it never got there
            started = datetime.fromisoformat(attempt["started"] or attempt["assigned"])
            ended = datetime.fromisoformat(attempt["ended"]) if attempt["ended"] else ends
            if attempt["ending"] != "completed":
                ended = max(min(ended, lost.get(attempt["node"], ended)), started)
            agent = attempt["agent"].rpartition("/")[2]
            tries.append(Try(attempt["node"], agent, since(started), since(ended), attempt["ending"] == "completed"))
        work.append(Work(history["capability"].replace("_", "-"), count, tries))
    losses = [Loss(node, since(at)) for node, at in lost.items()]
    return Run(lanes(work), work, losses, since(ends))
