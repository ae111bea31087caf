"""How ``comity up`` ends: whatever one part of it raises, the others are ended too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from comity.cli.network import EmbeddedNetwork

ORDER = ("metrics", "mending", "leave", "controller", "seat", "marking", "log", "store", "elsewhere", "bus", "server")


class Parts:
    """All that a network is made of. Each notes that it was ended; those that ``fail`` raise something then."""

    def __init__(self, data: Path, *fail: str) -> None:
        self.ended: list[str] = []
        self.fail = fail
        elsewhere = AsyncExitStack()
        elsewhere.push_async_callback(self.end("elsewhere"))
        shut_down = SimpleNamespace(is_set=lambda: False)
        made: Any = EmbeddedNetwork
        self.network: EmbeddedNetwork = made(
            SimpleNamespace(data=data, notes=[], stop=self.end("server")),
            SimpleNamespace(close=self.end("bus")),
            [SimpleNamespace(close=self.end("log")), SimpleNamespace(close=self.end("store"))],
            SimpleNamespace(stop=self.end("controller"), shut_down=shut_down),
            SimpleNamespace(stop=self.end("marking")),
            SimpleNamespace(close=self.end("mending"), seat=SimpleNamespace(close=self.end("seat"), leave=self.end("leave"))),
            elsewhere,
        )
        metrics: Any = SimpleNamespace(stop=self.end("metrics"))
        self.network.metrics = metrics

    def end(self, name: str) -> Callable[..., Awaitable[None]]:
        async def end(*_: object) -> None:
            self.ended.append(name)
            if name in self.fail:
                raise RuntimeError(name)

        return end


async def test_all_is_ended_in_order_and_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    await parts.network.stop()
    assert tuple(parts.ended) == ORDER
    await parts.network.stop()
    assert not {"metrics", "leave", "log", "store", "elsewhere"} & {*parts.ended[len(ORDER) :]}


@pytest.mark.parametrize("name", ORDER)
async def test_what_one_raises_keeps_no_other_from_its_end(tmp_path: Path, name: str) -> None:
    parts = Parts(tmp_path, name)
    with pytest.raises(RuntimeError, match=name):
        await parts.network.stop()
    assert tuple(parts.ended) == ORDER


async def test_the_first_error_is_raised_and_the_others_are_told(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "mending", "bus")
    with capture_logs() as said, pytest.raises(RuntimeError, match="mending"):
        await parts.network.stop()
    assert tuple(parts.ended) == ORDER
    assert [line["error"] for line in said] == ["RuntimeError('bus')"]
