"""What ``comity up`` does as it starts, where something is not ready yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from comity.cli.network import EmbeddedNetwork
from comity.cli.place import take_place
from comity.cli.seat import Seat, Waiting
from comity.cluster.status import SystemView
from comity.config import Settings
from comity.errors import Unreachable
from conftest import need_server

pytestmark = pytest.mark.server


async def test_a_server_that_does_not_answer_its_system_account_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_server()
    connect, tries = SystemView.connect, 0

    async def later(*args: Any) -> SystemView:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unreachable("the servers do not answer their system account")
        return await connect(*args)

    monkeypatch.setattr(SystemView, "connect", later)
    waits = asyncio.Event()

    def tell(waiting: Waiting, _: Seat) -> None:
        if waiting == Waiting(1, 3, True):
            waits.set()

    settings = msgspec.structs.replace(Settings(), data_dir=tmp_path / "data", port=0)
    place = await take_place(settings, servers=3, token="")
    starting = asyncio.create_task(EmbeddedNetwork.start(settings, metrics=False, place=place, tell=tell))
    waiting = asyncio.create_task(waits.wait())
    await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED, timeout=20)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    waiting.cancel()
    assert waits.is_set()
