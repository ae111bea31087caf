"""``comity.connect`` against a real server, and what importing the package costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

import comity
from comity.bus.base import LEADER, Delivery, to
from comity.bus.nats import NatsBus
from comity.bus.outbox import Outbox
from comity.config import Settings
from comity.contexts import Context
from comity.errors import AccessDenied, BadSettings, NotFound, Unreachable
from comity.model import wire
from comity.registry.jetstream import JetStreamRegistry
from comity.store.jetstream import JetStreamStore
from conftest import RealNetwork

HELLO = b'{"network_id":"net","term":1,"leader":"k1","now_ms":1700000000000}'

pytestmark = pytest.mark.server


@pytest_asyncio.fixture
async def led(real_network: RealNetwork) -> AsyncIterator[RealNetwork]:
    """A network with a leader that accepts every task and does it at once."""
    bus = await NatsBus.connect(
        real_network.url, process="k1", network=real_network.network,
        options=real_network.mint("controller", "k1").connect_options(), timeout_s=20.0,
    )  # fmt: skip
    outbox = Outbox(bus)
    doors = [
        await door.open(bus.connection, real_network.network, create=True)
        for door in (JetStreamRegistry, JetStreamStore)
    ]

    def receive(delivery: Delivery) -> None:
        for item in wire.decode(delivery.data):
            if isinstance(item, wire.Ask):
                outbox.post(to(delivery.sender), wire.Answer(item.ref, "", HELLO))
            elif isinstance(item, wire.SubmitTask):
                assert isinstance(item.spec.input, bytes)
                outbox.post(to(delivery.sender), wire.Accepted(((item.spec.id, item.spec.id),)))
                outbox.post(to(delivery.sender), wire.Ended(item.spec.id, wire.TaskState.COMPLETED, item.spec.input))

    await bus.subscribe(LEADER, receive)
    yield real_network
    await outbox.drain()
    for door in doors:
        await door.close()
    await bus.close()


def creds(network: RealNetwork, folder: Path, process: str = "c1") -> Path:
    path = folder / f"{process}.creds"
    network.mint("client", process).save(path)
    return path


async def test_by_address_and_credentials(led: RealNetwork, tmp_path: Path) -> None:
    async with comity.connect(led.url, credentials=creds(led, tmp_path), network=led.network) as net:
        assert net.process == "c1"
        task = await net.submit("echo", {"x": 1})
        assert await task.result(timeout=30) == {"x": 1}
        assert await net.discover() == []


async def test_by_the_keys_of_a_network_on_this_machine(led: RealNetwork, tmp_path: Path) -> None:
    data = led.server.data
    Context(urls=(led.url,), network=led.network, authority=str(data)).write_local(tmp_path)
    loaded = Settings.load({"data_dir": tmp_path})
    async with comity.connect(settings=loaded) as one, comity.connect(settings=loaded) as other:
        assert one.process != other.process
        assert await (await other.submit("echo", 5)).result(timeout=30) == 5


async def test_what_is_wrong_is_said(led: RealNetwork, tmp_path: Path) -> None:
    async def attempt(*args: str, **options: str | Path) -> None:
        async with comity.connect(*args, **options):  # type: ignore[arg-type]
            pytest.fail("it must not connect")

    good = creds(led, tmp_path)
    with pytest.raises(Unreachable, match="no network is known"):
        await attempt()
    with pytest.raises(AccessDenied):
        await attempt(led.url, network=led.network)
    with pytest.raises(BadSettings, match="is for network"):
        await attempt(led.url, credentials=good, network="elsewhere")
    with pytest.raises(NotFound):
        await attempt(led.url, credentials=tmp_path / "none.creds")
    with pytest.raises(NotFound):
        await attempt(context="none")
    with pytest.raises(Unreachable, match="no server"):
        await attempt("nats://127.0.0.1:1", credentials=good, network=led.network)


async def test_a_server_without_the_network_is_told_from_none(real_network: RealNetwork, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="controller"):
        async with comity.connect(
            real_network.url, credentials=creds(real_network, tmp_path), network=real_network.network
        ):
            pytest.fail("it must not connect")


async def test_leaving_ends_every_wait(led: RealNetwork, tmp_path: Path) -> None:
    async with comity.connect(led.url, credentials=creds(led, tmp_path), network=led.network) as net:
        waiting = asyncio.ensure_future(net.request("nobody/here"))
        stats = asyncio.ensure_future(anext(net.events()))
        await asyncio.sleep(0)
    left = time.monotonic()
    for wait in (waiting, stats):
        with pytest.raises(comity.ComityError):
            await wait
    assert time.monotonic() - left < 15, "no wait goes on until its own time is over"


def test_importing_the_package_is_cheap_and_its_names_are_there() -> None:
    code = (
        "import sys, comity\n"
        "heavy = {'asyncio', 'msgspec', 'nats', 'jsonschema_rs'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import comity.connect\n"
        "assert callable(comity.connect)\n"
        "names = [getattr(comity, name) for name in comity.__all__]\n"
        "from comity import Agent\n"
        "try: comity.nothing\n"
        "except AttributeError: print(len(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.strip() == str(len(comity.__all__)), done.stderr
