"""A server that takes connections, and is too busy to say anything yet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from comity import ports
from comity.embedded import EmbeddedServer

_SLOW = f"""#!{sys.executable} -ISs
import re, socket, sys
listen, name = re.search(r'listen: "(.*):(.*)"', conf := open(sys.argv[2]).read()), re.search("server_name: (.*)", conf)
server = socket.create_server((listen[1], int(listen[2])))
waiting = [server.accept()[0] for _ in range(3)]  # busy, though the kernel takes connections for it
while True:
    server.accept()[0].sendall(b'INFO {{"server_name": "%b", "version": "9.9.9"}}\\r\\n' % name[1].encode())
"""


async def test_a_server_that_is_long_in_greeting_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "GREET_S", 0.1)
    slow = tmp_path / "nats-server"
    slow.write_text(_SLOW)
    slow.chmod(0o755)
    server = await EmbeddedServer.start(tmp_path / "data", network="main", port=0, binary=slow)
    await server.stop()
    assert server.notes == []
