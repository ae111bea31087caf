"""What greets whoever connects to a port."""

from __future__ import annotations

import socket

import pytest

from comity import ports
from comity.ports import greet


async def test_who_takes_a_connection_and_says_nothing_yet_is_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "GREET_S", 0.05)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert await greet("127.0.0.1", busy.getsockname()[1]) is None
