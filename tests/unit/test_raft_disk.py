"""The write-ahead log: what was acknowledged is there again, what a crash cut short is cut off, what was damaged is refused."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from comity.errors import AlreadyRunning, Corrupt, DiskFull, ForeignData, Unreachable
from comity.model.raft import Ballot, Config, LogEntry, Snapshot
from comity.raft import records
from comity.raft.records import HEADER_SIZE, SECTOR, Head, Record, frame, recover
from comity.raft.wal import Wal

FOUNDING = Snapshot(config=Config(("m1", "m2", "m3")))


def entries(first: int, last: int, term: int = 1, size: int = 10) -> list[LogEntry]:
    return [LogEntry(n, term, bytes([n % 256]) * size) for n in range(first, last + 1)]


def opened(folder: Path, segment_size: int = 1 << 20) -> Wal:
    return Wal.open(folder, "net", "m1", FOUNDING, segment_size=segment_size)


def state(wal: Wal) -> tuple[Ballot, Snapshot, list[LogEntry]]:
    return wal.ballot, wal.snapshot, wal.entries


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    wal = opened(tmp_path)
    assert state(wal) == (Ballot(), FOUNDING, [])
    wal.save([Record(Ballot(1, "m2"), [], None), Record(None, entries(1, 3), None)])
    wal.save([Record(Ballot(2), entries(3, 5, term=2), None)])
    wal.close()
    wal = opened(tmp_path)
    assert state(wal) == (Ballot(2), FOUNDING, [*entries(1, 2), *entries(3, 5, term=2)])
    wal.save([Record(None, entries(2, 2, term=3), None)])
    wal.close()
    wal = opened(tmp_path)
    assert state(wal) == (Ballot(2), FOUNDING, [*entries(1, 1), *entries(2, 2, term=3)])
    assert wal.torn is None
    wal.close()


def test_segments_go_once_a_snapshot_stands_for_them(tmp_path: Path) -> None:
    wal = opened(tmp_path, 400)
    for n in range(1, 31):
        wal.save([Record(None, entries(n, n, size=50), None)])
    before = len(list(tmp_path.glob("*.wal")))
    wal.save([Record(None, [], Snapshot(20, 1, FOUNDING.config, b"twenty"))])
    assert 1 < len(list(tmp_path.glob("*.wal"))) < before - 3
    wal.close()
    wal = opened(tmp_path, 400)
    assert state(wal) == (Ballot(), Snapshot(20, 1, FOUNDING.config, b"twenty"), entries(21, 30, size=50))
    wal.save([Record(None, [], Snapshot(90, 7, FOUNDING.config, b"from the leader"))])
    wal.close()
    wal = opened(tmp_path)
    assert (wal.snapshot.index, wal.entries) == (90, [])
    wal.close()


def test_a_snapshot_of_another_history_replaces_what_is_there(tmp_path: Path) -> None:
    wal = opened(tmp_path)
    wal.save([Record(None, entries(1, 9, term=1), None)])
    wal.save([Record(None, entries(6, 6, term=3), Snapshot(5, 2))])
    wal.close()
    wal = opened(tmp_path)
    assert (wal.snapshot, wal.entries) == (Snapshot(5, 2), entries(6, 6, term=3))
    wal.close()


def test_one_process_has_it(tmp_path: Path) -> None:
    wal = opened(tmp_path)
    with pytest.raises(AlreadyRunning):
        opened(tmp_path)
    wal.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(("cluster", "member"), [("other", "m1"), ("net", "m2")])
def test_anothers_data_is_refused_and_left_alone(tmp_path: Path, cluster: str, member: str) -> None:
    opened(tmp_path).close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ForeignData, match=f"not to '{member}' of '{cluster}'"):
        Wal.open(tmp_path, cluster, member)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0000000000000001.wal").write_bytes(b"my diary, and no log at all: " * 9)
    with pytest.raises(ForeignData):
        opened(tmp_path)


class TestDamage:
    """Four writes in one segment; the third is large. ``starts``: where each frame begins, and the end."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        wal = opened(tmp_path)
        wal.save([Record(Ballot(1), entries(1, 2), None)])
        wal.save([Record(None, entries(3, 3, size=3000), None)])
        wal.save([Record(None, [LogEntry(4, 1, bytes(3000))], None)])
        wal.close()
        (path,) = tmp_path.glob("*.wal")
        return path

    def starts(self, data: bytes) -> list[int]:
        found = [0]
        while found[-1] < len(data):
            found.append(found[-1] + HEADER_SIZE + int.from_bytes(data[found[-1] + 2 : found[-1] + 6], "little"))
        return found

    def test_every_flipped_bit_is_refused_with_its_place(self, log: Path) -> None:
        data = log.read_bytes()
        starts = self.starts(data)
        rng = random.Random(7)
        places = {*range(starts[-1])[:: 37], *starts[:-1], *(start + 5 for start in starts[:-1]), starts[-1] - 1}
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << rng.randrange(8)
            with pytest.raises((Corrupt, ForeignData)) as caught:
                recover([("log", bytes(damaged))])
            assert caught.value.details["offset"] == max(start for start in starts if start <= place)

    def test_damage_names_file_and_byte_and_changes_nothing(self, log: Path) -> None:
        data = bytearray(log.read_bytes())
        place = self.starts(bytes(data))[2]
        data[place + 100] ^= 1
        log.write_bytes(data)
        with pytest.raises(Corrupt, match=f"is damaged at byte {place}") as caught:
            opened(log.parent)
        assert caught.value.details == {"path": str(log), "offset": place}
        assert log.read_bytes() == data

    def test_wherever_the_last_write_was_cut_short_it_is_cut_and_reported(self, log: Path) -> None:
        data = log.read_bytes()
        start = self.starts(data)[-2]
        for place in [*range(start + 1, start + 40), *range(start + 40, len(data), 211), len(data) - 1]:
            found = recover([("log", data[:place])])
            assert [entry.index for entry in found.entries] == [1, 2, 3]
            assert found.torn == records.Torn("log", start, place - start)

    def test_sectors_that_were_never_written_are_a_write_cut_short(self, log: Path) -> None:
        data = log.read_bytes()
        start = self.starts(data)[-2]
        first = start - start % SECTOR + SECTOR
        for place in (start - start % SECTOR, first, first + 2 * SECTOR):
            torn = bytearray(data)
            torn[max(place, start) : place + SECTOR] = bytes(place + SECTOR - max(place, start))
            assert recover([("log", bytes(torn))]).torn == records.Torn("log", start, len(data) - start)

    def test_a_hole_in_the_midst_is_damage(self, log: Path) -> None:
        data = bytearray(log.read_bytes())
        start = self.starts(bytes(data))[2]
        place = start - start % SECTOR + SECTOR
        data[place : place + SECTOR] = bytes(SECTOR)
        with pytest.raises(Corrupt):
            recover([("log", bytes(data))])

    def test_a_torn_end_is_cut_off_the_file_and_writing_goes_on(self, log: Path) -> None:
        with log.open("ab") as file:
            file.write(frame(5, [Record(None, entries(5, 5), None)])[:-3])
        wal = opened(log.parent)
        assert wal.torn is not None
        assert wal.torn.name == str(log)
        wal.save([Record(None, entries(5, 5), None)])
        wal.close()
        wal = opened(log.parent)
        assert wal.torn is None
        assert len(wal.entries) == 5
        wal.close()

    def test_a_missing_segment_is_damage(self, tmp_path: Path) -> None:
        wal = opened(tmp_path / "cut", 100)
        for n in range(1, 6):
            wal.save([Record(None, entries(n, n, size=100), None)])
        wal.close()
        paths = sorted((tmp_path / "cut").glob("*.wal"))
        paths[2].unlink()
        with pytest.raises(Corrupt, match="is missing"):
            opened(tmp_path / "cut")
        for path in paths[:2]:
            path.unlink()
        with pytest.raises(Corrupt, match="are missing"):
            opened(tmp_path / "cut")

    def test_only_the_last_segment_may_end_torn(self) -> None:
        head = Head("net", "m1", Ballot(), FOUNDING)
        one = frame(1, head) + frame(2, [Record(None, entries(1, 1), None)])
        with pytest.raises(Corrupt):
            recover([("one", one[:-1]), ("two", frame(3, head))])


class TestFullDisk:
    def test_nothing_is_lost_and_it_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wal = opened(tmp_path)
        wal.save([Record(Ballot(1), entries(1, 1), None)])
        (path,) = tmp_path.glob("*.wal")
        size = path.stat().st_size
        write = os.write

        def full(file: int, data: memoryview) -> int:
            if len(data) <= 100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data[:-100])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            for _ in range(2):
                with pytest.raises(DiskFull):
                    wal.save([Record(None, entries(2, 2, size=1000), None)])
                assert path.stat().st_size == size
        wal.save([Record(None, entries(2, 2), None)])
        wal.close()
        wal = opened(tmp_path)
        assert state(wal) == (Ballot(1), FOUNDING, entries(1, 2))
        wal.close()

    def test_a_segment_that_finds_no_room_is_begun_later(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wal = opened(tmp_path, 200)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", _no_room)
            wal.save([Record(None, entries(1, 9), None)])
        assert len(list(tmp_path.glob("*.wal"))) == 1
        wal.save([Record(None, entries(10, 10), None)])
        assert len(list(tmp_path.glob("*.wal"))) == 2
        wal.close()
        wal = opened(tmp_path)
        assert wal.entries == entries(1, 10)
        wal.close()

    def test_a_disk_that_does_not_keep_what_it_took_is_never_asked_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wal = opened(tmp_path)
        monkeypatch.setattr(os, "fdatasync", _broken)
        with pytest.raises(Unreachable, match="does not keep"):
            wal.save([Record(None, entries(1, 1), None)])
        wal.close()


def _no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _broken(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")
