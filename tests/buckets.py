"""A real server that speaks S3, for tests: moto's, in a process of its own, with one bucket."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection

import pytest

from members import free_port

BUCKET = "backups"


@contextlib.contextmanager
def bucket_server() -> Iterator[str]:
    """Its address; "" if there is none here. In CI there must be."""
    if any(importlib.util.find_spec(name) is None for name in ("moto", "obstore", "flask_cors")):
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            pytest.fail("CI must have moto and obstore")
        yield ""
        return
    port = free_port()
    words = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while request(port, "PUT", f"/{BUCKET}") != 200:
            assert process.poll() is None, "the server ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def request(port: int, method: str, path: str) -> int:
    """The status of an answer; 0 if nobody listens yet."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    signed = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"
    try:
        connection.request(method, path, headers={"Authorization": signed})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def surround(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have ``address``, and credentials for it, in the environment, also of what the test starts."""
    if not address:
        pytest.skip("moto and obstore are not installed")
    known = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
    for name, value in known.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@contextlib.asynccontextmanager
async def refusing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Server]:
    """A server that lets nobody do anything, as the place where buckets are."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    surround(monkeypatch, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    yield server
    server.close()
    await server.wait_closed()
