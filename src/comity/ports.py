"""Ports of this machine: which are free, and what greets whoever connects to one."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from typing import Any

from comity.cluster.config import HOST
from comity.errors import BadSettings

GREET_S = 1.0


async def greet(host: str, port: int) -> dict[str, Any] | None:
    """What the server listening there says first; None while there is none or it says nothing; {} if it is not a NATS server."""
    try:
        async with asyncio.timeout(GREET_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                line = await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except OSError:  # TimeoutError is one
        return None
    if not line:
        return None
    try:
        info = json.loads(line.removeprefix(b"INFO "))
    except ValueError:
        return {}
    return info if isinstance(info, dict) else {}


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Raises BadSettings for an address that is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise BadSettings(f"cannot listen on {host}: {error.strerror}", setting="listen", value=host) from error
    return True


def free_port(host: str = HOST) -> int:
    """A port on which nobody listens now. Raises BadSettings for an address that is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise BadSettings(f"cannot listen on {host}: {error.strerror}", setting="listen", value=host) from error
        return int(probe.getsockname()[1])
