"""A store's folder that several processes use at once: what goes in between is nobody's fault."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from comity.errors import NotFound
from comity.store.folder import FolderStore


async def test_it_can_be_opened_while_another_process_finishes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await FolderStore.open(tmp_path)
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        yield from listed(folder)
        if folder.name == "coming":
            yield folder / "finished since"

    monkeypatch.setattr(Path, "iterdir", iterdir)
    store = await FolderStore.open(tmp_path)
    await store.put("n/one", b"x")
    assert await store.read("n/one") == b"x"


async def test_a_damaged_file_that_goes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await FolderStore.open(tmp_path)
    await store.put("n/one", b"x")
    await store.put("n/two", b"y")
    (tmp_path / "values" / "n" / "one=").write_bytes(b"torn")
    looked = FolderStore._label_of

    def label_of(self: FolderStore, path: Path) -> object:
        try:
            return looked(self, path)
        finally:
            if path.name == "one=":
                path.unlink()

    monkeypatch.setattr(FolderStore, "_label_of", label_of)
    assert [stored.key for stored in await store.list("n/")] == ["n/two"]


@pytest.mark.parametrize(("first", "again"), [(1.0, 90.0), (1.0, None), (90.0, 1.0), (None, 1.0)])
async def test_what_is_put_again_lasts_as_long_as_the_longer_of_both(
    tmp_path: Path, first: float | None, again: float | None
) -> None:
    now = 1000.0
    store = await FolderStore.open(tmp_path, wall=lambda: now)
    await store.put("n/one", b"x", ttl_s=first)
    await store.put("n/one", b"x", ttl_s=again)
    now += 60
    assert await store.read("n/one") == b"x"
    now += 60
    if None not in (first, again):
        with pytest.raises(NotFound):
            await store.read("n/one")
