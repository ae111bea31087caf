"""The built-in Raft against the log's contract, alone and as three members over TCP; and what is special to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from log_contract import LogContract, Place
from rafts import Rafts


class TestRaftAlone(LogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[Place]:
        rafts = Rafts(tmp_path, 1)
        await rafts.start()
        yield Place(rafts.door)
        await rafts.close()


class TestRaftOfThree(LogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[Place]:
        rafts = Rafts(tmp_path)
        await rafts.start()
        yield Place(rafts.door)
        await rafts.close()
