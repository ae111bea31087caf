"""The connection by which a cluster's servers are asked about themselves."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from comity.cluster import status
from comity.cluster.status import SystemView
from comity.errors import Unreachable


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "CONNECT_S", 0.2)


@pytest.mark.timeout(10)
async def test_it_does_not_wait_for_ever_where_nobody_is(free_port: Callable[[], int]) -> None:
    with pytest.raises(Unreachable, match="do not answer their system account"):
        await SystemView.connect([f"nats://127.0.0.1:{free_port()}"], "k-1", {})


@pytest.mark.timeout(10)
async def test_nor_where_nothing_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(Unreachable):
        await SystemView.connect([f"nats://127.0.0.1:{mute.getsockname()[1]}"], "k-1", {})
