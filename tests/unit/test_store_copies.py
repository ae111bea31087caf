"""Reading a large value where several servers have a copy, and some of these are damaged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from comity.errors import Corrupt
from comity.jetstream import JetStream, Row
from comity.model.codec import digest
from comity.store import jetstream
from comity.store.jetstream import JetStreamStore

CHUNKS = [b"one", b"two", b"three", b"four"]
WHOLE = b"".join(CHUNKS)
SUBJECT = "cy.main.store.n1.c.up"


def row(number: int, data: bytes | None = None) -> Row:
    headers = {"Comity-Digest": digest(CHUNKS[number]).hex()} if number else None  # some were written without
    return Row(10 + number, f"{SUBJECT}.{number}", CHUNKS[number] if data is None else data, headers, 0)


GOOD = [row(n) for n in range(4)]
LACKS, FLIPPED, NONE = [GOOD[0], *GOOD[2:]], [*GOOD[:2], row(2, b"thref"), GOOD[3]], list[Row]()


def store(monkeypatch: pytest.MonkeyPatch, *copies: list[Row], is_replicated: bool = True) -> JetStreamStore:
    """Each reader after the other is given one of these copies."""
    left = list(copies)

    class Reader:
        def __init__(self, _js: JetStream, _stream: str, _subject: str, after: int) -> None:
            self.rows = [row for row in left.pop(0) if row.seq > after]

        async def fetch(self, limit: int, wait_s: float) -> list[Row]:
            taken, self.rows = self.rows[: min(limit, 3)], self.rows[min(limit, 3) :]
            return taken

        async def close(self) -> None:
            return None

    class Servers:
        nc, timeout_s = SimpleNamespace(max_payload=1 << 20), 1.0

        async def call(self, _subject: str) -> Any:
            headers = {"Comity-Size": str(len(WHOLE)), "Comity-Digest": digest(WHOLE).hex(), "Comity-Chunks": "up 4 10"}
            return SimpleNamespace(headers={**headers, "Nats-Sequence": "14"}, data=b"")

        async def api(self, _name: str, _body: object) -> dict[str, Any]:
            lines = f"NATS/1.0\r\nComity-Size: {len(WHOLE)}\r\nComity-Digest: {digest(WHOLE).hex()}\r\n\r\n"
            return {"message": {"seq": 14, "hdrs": jetstream.base64.b64encode(lines.encode()).decode()}}

    monkeypatch.setattr(jetstream, "Cursor", Reader)
    made = JetStreamStore(cast(JetStream, Servers()), "main")
    made._is_replicated = is_replicated
    return made


@pytest.mark.parametrize("copies", [[GOOD], [LACKS, GOOD], [NONE, FLIPPED, GOOD], [LACKS, FLIPPED, GOOD]])
async def test_what_one_copy_lacks_is_read_from_another(monkeypatch: pytest.MonkeyPatch, copies: list[list[Row]]) -> None:
    assert await store(monkeypatch, *copies).read("n1/x") == WHOLE


@pytest.mark.parametrize("copies", [[FLIPPED] * 3, [LACKS] * 3, [NONE] * 3])
async def test_what_nobody_has_intact_is_never_given_out(monkeypatch: pytest.MonkeyPatch, copies: list[list[Row]]) -> None:
    with pytest.raises(Corrupt):
        await store(monkeypatch, *copies).read("n1/x")


async def test_the_only_copy_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Corrupt):
        await store(monkeypatch, LACKS, is_replicated=False).read("n1/x")
