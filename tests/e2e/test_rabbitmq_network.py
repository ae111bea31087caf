"""A network on RabbitMQ and etcd, typed as a user types it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from adding import add, user, verdicts
from terminal import Terminal

from etcds import Etcds
from rabbits import Rabbits

__all__ = ["user"]

pytestmark = pytest.mark.server


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Rabbits]:
    own = Rabbits(tmp_path / "rabbit")
    try:
        await own.start()
        yield own
    finally:
        await own.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_network_on_rabbitmq_and_etcd_outlives_nodes_and_the_server(
    etcds: Etcds, mortal: Rabbits, user: Terminal
) -> None:
    places = ["--log", etcds.address, "--registry", etcds.address, "--store", f"file://{user.folder}/store"]
    up, facts = user.up("--bus", mortal.url(), "--network", "town", *places)
    assert facts["durability"] == "verified"
    assert "shared" not in facts["url"]
    assert [note for note in facts["notes"] if "shares its user" in note]
    assert [note for note in facts["notes"] if "probes" in note] == []
    user.env |= {"COMITY_URLS": mortal.url(), "COMITY_NETWORK": "town"}  # a controller tells the rest
    first = user.node("adder.py", "--name", "n1")
    add(user, 1)

    lingering = user.start("submit", "linger", f'{{"folder": "{user.folder}"}}')
    async with asyncio.timeout(20):
        while not (user.folder / "attempts").exists():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.02)
    user.node("adder.py", "--name", "n2")
    first.signal(signal.SIGKILL)
    first.wait()
    async with asyncio.timeout(20):
        while (user.folder / "attempts").read_text() != "xx":  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await mortal.kill()
    (user.folder / "go").touch()
    await mortal.start()
    assert lingering.json() == "done"
    add(user, 2)

    status = user.until(lambda status: status["leader"], "cluster", "status")
    assert next(server["name"] for server in status["servers"]) == "RabbitMQ"
    found = user.until(lambda found: found["healthy"], "doctor")
    assert verdicts(found, "bus") + verdicts(found, "credentials") == ["ok", "note"]
    assert user.ok("backup", "create", "--to", str(user.folder / "kept")).json["index"] > 0
    user.ok("down")
    assert up.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_each_process_has_a_user_of_its_own(etcds: Etcds, rabbit: Rabbits, user: Terminal) -> None:
    def own(process: str) -> str:
        return f"{rabbit.url(process)}?own=1"

    at = f"{etcds.address}/own"
    up, facts = user.up("--bus", own("k1"), "--log", at, "--registry", at, "--store", f"file://{user.folder}/store")
    assert facts["notes"] == []
    node = user.node("adder.py", "--connect", own("n1"))
    user.env["COMITY_URLS"] = own("c1")
    add(user, 1)
    assert [row["id"] for row in user.ok("nodes", "list").json] == ["n1"]
    found = user.until(lambda found: found["healthy"], "doctor")
    assert verdicts(found, "bus") + verdicts(found, "credentials") == ["ok", "ok"]
    error = user.comity("nodes", "list", "--connect", own("n1").replace("n1-secret", "other"), "-o", "json").error
    assert error["code"] == "access-denied"
    assert node.stop() == 0
    assert up.stop() == 0


def test_what_cannot_be_is_refused(user: Terminal, free_port: Callable[[], int]) -> None:
    def refusal(*words: str) -> tuple[str, str]:
        error = user.comity(*words, "--output", "json").error
        return error["code"], error["message"]

    nowhere = f"127.0.0.1:{free_port()}"
    kept = ["--log", f"etcd://{nowhere}", "--registry", f"etcd://{nowhere}", "--store", f"file://{user.folder}/store"]
    cases: list[tuple[list[str], str, str]] = [
        (["up", "--bus", f"amqp://u:secret@{nowhere}"], "bad-settings", "RabbitMQ cannot keep it"),
        (["up", "--bus", f"amqp://u:secret@{nowhere}", *kept], "unreachable", f"no server answers at amqp://{nowhere}"),
        (["up", "--bus", f"nats://{nowhere}", *kept], "bad-settings", "--bus is for amqp://"),
        (["up", "--bus", "amqp://h?x=1", *kept], "bad-settings", "'x' means nothing here"),
        (["up", "--bus", f"amqp://u:secret@{nowhere}", "--servers", "3", *kept], "bad-settings", "for servers of our own"),
        (["up", "--stack", "other"], "bad-settings", "no stack"),
        (["nodes", "list", "--connect", f"amqp://u:secret@{nowhere}"], "unreachable", f"amqp://{nowhere}"),
    ]
    for words, code, why in cases:
        found, message = refusal(*words)
        assert (found, why in message, "secret" in message) == (code, True, False), message
