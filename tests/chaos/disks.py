"""A small disk for each server: it can be filled, damaged, and its power cut.

An ext4 image on a loop device where that is allowed. Whatever was not synced when its file is copied is not in the copy, as after
a power cut. Else a tmpfs, which can be filled; else a plain folder. Mounts are private to the run and gone with it: see
``isolation``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from isolation import run

BLOCK = 4096


class Disk:
    """``data`` is where the server keeps its data. ``image`` and ``can_fill`` say which faults it can have."""

    def __init__(self, folder: Path, name: str, megabytes: int, *, mounts: bool) -> None:
        self.mount = folder / f"disk-{name}"
        self.mount.mkdir()
        self.data = self.mount / "data"
        self.image: Path | None = None
        self.can_fill = False
        self.why = "mounts are not allowed here"
        self._ballast = self.mount / "ballast"
        if mounts:
            self._make(folder / f"{name}.img", megabytes)

    def _make(self, image: Path, megabytes: int) -> None:
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        try:
            run("mkfs.ext4", "-q", "-m", "0", str(image))
            run("mount", "-o", "loop", str(image), str(self.mount))
            self.image = image
            self.can_fill = True
        except OSError as error:
            self.why = f"no disk images here: {error}"
            image.unlink()
            try:
                run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(self.mount))
                self.can_fill = True
            except OSError as problem:
                self.why = f"mounts are not allowed here: {problem}"

    # Power

    def copy(self) -> None:
        """What would be there if the power went now. The server must not be running (it is stopped, not ended)."""
        assert self.image is not None
        run("cp", "--sparse=always", str(self.image), f"{self.image}.cut")

    def power_on(self) -> None:
        """Go on with the copy. Nobody uses the disk any more."""
        assert self.image is not None
        run("umount", str(self.mount))
        Path(f"{self.image}.cut").replace(self.image)
        run("mount", "-o", "loop", str(self.image), str(self.mount))

    # Room

    def fill(self) -> None:
        """Take all the room there is."""
        with self._ballast.open("wb") as file:
            room = os.statvfs(self.mount)
            size = BLOCK
            while size <= room.f_bavail * room.f_frsize:
                size *= 2
            end = 0
            while size >= BLOCK:  # ever smaller pieces, until not one more block fits
                try:
                    os.posix_fallocate(file.fileno(), end, size)
                    end += size
                except OSError:
                    size //= 2

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)

    # Damage

    def blocks(self) -> list[Path]:
        """The files in which the server keeps the log's entries."""
        return sorted(self.data.glob("jetstream/**/streams/CY_main_LOG/msgs/*.blk"))

    def flip(self, chance: random.Random) -> str:
        """Flip a bit of a record in the first half of a block of the log. Says where."""
        block = max(self.blocks(), key=lambda path: path.stat().st_size)
        begin, size = chance.choice(_records(block, block.stat().st_size // 2))
        at = begin + chance.randrange(size)
        with block.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))
        return f"{block.name} byte {at}"

    def truncate(self) -> str:
        """Cut off the second half of a block of the log. Says where."""
        block = max(self.blocks(), key=lambda path: path.stat().st_size)
        size = block.stat().st_size
        os.truncate(block, size // 2)
        return f"{block.name} cut from {size} to {size // 2} bytes"


def _records(block: Path, until: int) -> list[tuple[int, int]]:
    """Where each record before ``until`` begins, and its length, as nats-server writes it in front."""
    data, at, found = block.read_bytes(), 0, []
    while at <= until and data[at : at + 4].strip(b"\0"):
        size = int.from_bytes(data[at : at + 4], "little") & 0x7FFF_FFFF
        found.append((at, size))
        at += size
    return found
