"""Which files there are below a folder, and how they are shared out. Plain functions, no agents."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

PASSED_OVER = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
"""Folders that hold other people's code or none; hidden folders and virtual environments are passed over too."""
FILES_PER_BATCH = 8
BYTES_PER_BATCH = 100_000
BATCHES = 120
"""A small folder is cut finer, into about so many batches, so that every surveyor gets some."""


@dataclass(slots=True)
class Listing:
    """The Python files of a folder, as paths relative to it, each in exactly one batch. ``left_out``: files that cannot
    be named in JSON, with the odd bytes escaped."""

    batches: list[list[str]]
    left_out: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[str]:
        return [path for batch in self.batches for path in batch]


def list_files(folder: Path) -> Listing:
    """All ``*.py`` files below ``folder``, in batches of similar size. Raises NotADirectoryError."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    sizes: dict[str, int] = {}
    left_out = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _passed_over(here, name))
        for name in sorted(names):
            full = os.path.join(here, name)
            if not name.endswith(".py") or not os.path.isfile(full):
                continue
            path = Path(full).relative_to(folder).as_posix()
            try:
                path.encode()
            except UnicodeEncodeError:
                left_out.append(path.encode("utf-8", "backslashreplace").decode())
            else:
                sizes[path] = os.path.getsize(full)
    return Listing(share_out(sizes), left_out)


def share_out(sizes: dict[str, int]) -> list[list[str]]:
    """Cut the files, in their order, into batches of at most FILES_PER_BATCH files and about equal bytes."""
    limit = min(BYTES_PER_BATCH, max(sum(sizes.values()) // BATCHES, 1))
    most = min(FILES_PER_BATCH, max(len(sizes) // BATCHES, 1))
    batches: list[list[str]] = []
    room, load = 0, limit
    for path, size in sizes.items():
        if not room or load + size > limit:
            batches.append([])
            room, load = most, 0
        batches[-1].append(path)
        room -= 1
        load += size
    return batches


def _passed_over(here: str, name: str) -> bool:
    return name in PASSED_OVER or name.startswith(".") or os.path.exists(os.path.join(here, name, "pyvenv.cfg"))
