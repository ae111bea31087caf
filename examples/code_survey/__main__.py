"""Runs the job on the network that is up: ``python examples/code_survey FOLDER REPORT``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import comity
from code_survey.job import survey_folder
from code_survey.report import Coverage


async def main(folder: Path, out: Path) -> Coverage:
    async with comity.connect() as net:
        return await survey_folder(net, folder, out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/code_survey FOLDER REPORT")
    covered = asyncio.run(main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute()))
    print(f"{covered.surveyed} of {covered.listed} files are in {sys.argv[2]}")
    sys.exit(0 if covered.is_exact else 1)
