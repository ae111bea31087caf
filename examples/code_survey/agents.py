"""The crew: four kinds of agents. Each is ordinary Python functions with types; the work itself is in the other files."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from code_survey.analysis import FileSurvey, survey_file
from code_survey.listing import Listing, list_files
from code_survey.references import CrossReference, Imports
from code_survey.references import cross_reference as resolve
from code_survey.report import Coverage, write_report
from code_survey.timeline import Run
from comity import Agent, Attempt

splitter = Agent("splitter")
surveyor = Agent("surveyor", concurrency=1)
cross_referencer = Agent("cross-referencer")
reporter = Agent("reporter")

computing = Lock()
"""Python computes in one thread at a time anyway; taking turns by file leaves the node's own thread in between."""


@splitter.capability
def split(folder: str) -> Listing:
    """List the Python files below a folder, in batches of a size that suits a surveyor."""
    return list_files(Path(folder))


@surveyor.capability
def survey(attempt: Attempt, folder: str, files: list[str]) -> list[FileSurvey]:
    """Parse each file and note its size, functions, complexity, undocumented names and imports."""
    surveys = []
    for path in files:
        with computing:
            found = survey_file(Path(folder), path)
        if found.error:
            attempt.log(f"{path}: {found.error}")
        surveys.append(found)
    return surveys


@cross_referencer.capability
def cross_reference(files: list[Imports]) -> CrossReference:
    """Find out who imports whom: the modules most leaned on, and cycles."""
    return resolve(files)


@reporter.capability
def report(
    folder: str, out: str, listed: list[str], surveys: list[FileSurvey], references: CrossReference, run: Run
) -> Coverage:
    """Write the page, and say whether it covers every listed file once."""
    return write_report(Path(out), folder, listed, surveys, references, run)


surveyors = [surveyor.twin(f"surveyor-{number}") for number in range(2, 6)]
"""Four more on the node that hosts this whole module; elsewhere: ``comity run ...:surveyor --replicas 8``."""
