"""JetStream under the doors, against a real server: what each failure becomes, and a reader that loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from comity import jetstream
from comity.errors import (
    AccessDenied,
    BadSettings,
    Conflict,
    Disconnected,
    NotFound,
    TimedOut,
    TooLarge,
    Unreachable,
)
from comity.jetstream import Cursor, JetStream, Row
from conftest import RealNetwork


@pytest.fixture
async def js(real_network: RealNetwork) -> AsyncIterator[JetStream]:
    nc = await real_network.connect("controller", "c1")
    js = await JetStream(nc, timeout_s=10.0).open()
    yield js
    await js.close()
    await nc.close()


@pytest.fixture
async def stream(js: JetStream, real_network: RealNetwork) -> str:
    """A stream over ``cy.NET.try.>``; its name."""
    name = f"CY_{real_network.network}_TRY"
    config = {"name": name, "subjects": [f"cy.{real_network.network}.try.>"], "storage": "file", "max_msg_size": 1000}
    await js.stream(config, create=True)
    return name


@pytest.fixture
def subject(real_network: RealNetwork) -> str:
    return f"cy.{real_network.network}.try.x"


async def fill(js: JetStream, subject: str, count: int) -> None:
    await asyncio.gather(*(js.publish(subject, b"%d" % n) for n in range(count)))


def numbers(rows: list[Row]) -> list[int]:
    return [row.seq for row in rows]


async def take(cursor: Cursor, count: int) -> list[Row]:
    found: list[Row] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found += await cursor.next()
    return found


class TestCalls:
    async def test_publish_gives_the_sequence(self, js: JetStream, stream: str, subject: str) -> None:
        assert [await js.publish(subject, b"a"), await js.publish(subject, b"b")] == [1, 2]

    async def test_an_unmet_expectation_is_a_conflict(self, js: JetStream, stream: str, subject: str) -> None:
        with pytest.raises(Conflict) as caught:
            await js.publish(subject, b"a", {"Nats-Expected-Last-Sequence": "7"})
        assert caught.value.details["err_code"] == 10071

    async def test_what_is_too_large_for_the_stream_or_the_server(self, js: JetStream, stream: str, subject: str) -> None:
        with pytest.raises(TooLarge):
            await js.publish(subject, bytes(2000))
        with pytest.raises(TooLarge):
            await js.publish(subject, bytes(js.nc.max_payload + 1))

    async def test_another_complaint_of_the_server_may_have_had_an_effect(
        self, js: JetStream, stream: str, subject: str
    ) -> None:
        with pytest.raises(Unreachable) as caught:
            await js.publish(subject, b"a", {"Nats-TTL": "5s"})
        assert caught.value.details["subject"] == subject

    async def test_nobody_there(self, js: JetStream, real_network: RealNetwork) -> None:
        with pytest.raises(Unreachable):
            await js.publish(f"cy.{real_network.network}.nowhere", b"a")

    async def test_a_question_that_nobody_took_is_put_again(
        self, js: JetStream, stream: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish, asked = js.nc.publish, []

        async def lossy(subject: str, *args: Any, **options: Any) -> None:
            asked.append(subject)
            if len(asked) > lost:
                await publish(subject, *args, **options)

        monkeypatch.setattr(js.nc, "publish", lossy)
        monkeypatch.setattr(jetstream, "AGAIN_S", (0.1, 0.1))
        lost = 2
        assert (await js.api(f"STREAM.INFO.{stream}"))["state"]["messages"] == 0
        assert asked == [f"$JS.API.STREAM.INFO.{stream}"] * 3
        asked.clear()
        lost, js.timeout_s = 9, 2.0
        with pytest.raises(TimedOut):
            await js.api(f"STREAM.INFO.{stream}")
        assert len(asked) == 3
        asked.clear()
        js.timeout_s = 0.5
        with pytest.raises(TimedOut):
            await js.api(f"STREAM.PURGE.{stream}")
        assert len(asked) == 1, "what changes something is not"

    async def test_no_answer(self, js: JetStream, real_network: RealNetwork) -> None:
        silent = f"cy.{real_network.network}.silent"
        await js.nc.subscribe(silent)
        js.timeout_s = 1.0
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(TimedOut):
            await js.call(silent)
        assert 1.0 <= loop.time() - start < 8.0

    async def test_what_is_missing_or_impossible(self, js: JetStream, stream: str) -> None:
        with pytest.raises(NotFound):
            await js.api("STREAM.INFO.NONE")
        with pytest.raises(BadSettings):
            await js.api("STREAM.CREATE.NONE", {"name": "NONE", "subjects": ["a..b"]})
        with pytest.raises(BadSettings):
            await js.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": ["other"], "storage": "memory"})

    async def test_a_forbidden_subject_is_told_at_once(self, real_network: RealNetwork) -> None:
        async def ignore(error: Exception) -> None:
            """The server's complaint; what the caller gets is what counts."""

        nc = await real_network.connect("node", "n1", error_cb=ignore)
        js = await JetStream(nc, timeout_s=60.0).open()
        async with asyncio.timeout(20):
            with pytest.raises(AccessDenied):
                await js.publish(f"cy.{real_network.network}.log", b"forged")
        await js.close()
        await nc.close()

    async def test_closing_ends_what_is_under_way(self, js: JetStream, real_network: RealNetwork) -> None:
        silent = f"cy.{real_network.network}.silent"
        await js.nc.subscribe(silent)
        calls = [asyncio.create_task(js.call(silent)) for _ in range(3)]
        await asyncio.sleep(0)
        await js.close()
        for call in calls:
            with pytest.raises(Disconnected):
                await call
        with pytest.raises(Disconnected):
            await js.call(silent)
        await js.close()

    async def test_a_closed_connection(self, js: JetStream, stream: str, subject: str, real_network: RealNetwork) -> None:
        other = await real_network.connect("controller", "c2")
        late = JetStream(other)
        cursor = Cursor(await JetStream(other).open(), stream, subject)
        waiting = asyncio.create_task(cursor.next())
        await js.publish(subject, b"a")
        assert numbers(await waiting) == [1]
        waiting = asyncio.create_task(cursor.next())
        await asyncio.sleep(0)
        await other.close()
        with pytest.raises(Disconnected):
            await waiting
        with pytest.raises(Disconnected):
            await cursor.fetch(1)
        with pytest.raises(Disconnected):
            await late.open()

    async def test_a_short_break_of_the_connection_is_noticed(
        self, real_network: RealNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Shorter than the time between two looks at it."""
        monkeypatch.setattr(jetstream, "TICK_S", 0.5)
        nc = await quickly_back(real_network)
        js = await JetStream(nc, timeout_s=20).open()
        silent = f"cy.{real_network.network}.silent"
        await nc.subscribe(silent)
        call = asyncio.create_task(js.call(silent))
        await asyncio.sleep(0)
        await nc.force_reconnect()
        async with asyncio.timeout(15):
            with pytest.raises(Disconnected):
                await call
            while not nc.is_connected:  # noqa: ASYNC110 (it tells nobody; mostly it is by now)
                await asyncio.sleep(0.01)
        await js.close()
        await nc.close()


async def quickly_back(network: RealNetwork) -> Client:
    async def ignore(error: Exception) -> None:
        """Breaks are what the test is about."""

    return await network.connect(
        "controller", "c3", max_reconnect_attempts=-1, reconnect_time_wait=0.001, error_cb=ignore
    )


class TestCursor:
    async def test_it_reads_one_subject_of_many(self, js: JetStream, stream: str, subject: str) -> None:
        await fill(js, subject, 3)
        await fill(js, subject + ".y", 3)
        await fill(js, subject, 3)
        cursor = Cursor(js, stream, subject)
        assert numbers(await cursor.fetch(4)) == [1, 2, 3, 7]
        assert (await cursor.fetch(4))[-1][:3] == (9, subject, b"2")
        assert await cursor.fetch(4) == []
        await cursor.close()

    async def test_it_can_leave_contents_out(self, js: JetStream, stream: str, subject: str) -> None:
        await js.publish(subject, b"content", {"Mark": "m"})
        cursor = Cursor(js, stream, subject, headers_only=True)
        (row,) = await cursor.fetch(10)
        assert row.data == b""
        assert row.headers is not None and (row.headers["Mark"], row.headers["Nats-Msg-Size"]) == ("m", "7")
        await cursor.close()

    async def test_fetch_can_wait(self, js: JetStream, stream: str, subject: str) -> None:
        cursor = Cursor(js, stream, subject)
        waiting = asyncio.create_task(cursor.fetch(2, wait_s=20))
        await fill(js, subject, 2)
        assert numbers(await waiting) == [1, 2]
        assert await cursor.fetch(1, wait_s=0.1) == []
        await cursor.close()

    async def test_a_missing_stream_is_told(self, js: JetStream) -> None:
        with pytest.raises(NotFound):
            await Cursor(js, "NONE", ">").fetch(1)
        with pytest.raises(NotFound):
            await Cursor(js, "NONE", ">").next()

    async def test_a_follower_outlives_its_consumer(self, js: JetStream, stream: str, subject: str) -> None:
        cursor = Cursor(js, stream, subject)
        await fill(js, subject, 5)
        assert numbers(await take(cursor, 5)) == [1, 2, 3, 4, 5]
        waiting = asyncio.create_task(take(cursor, 5))
        for consumer in (await js.api(f"CONSUMER.NAMES.{stream}"))["consumers"]:
            await js.api(f"CONSUMER.DELETE.{stream}.{consumer}")
        await fill(js, subject, 5)
        assert numbers(await waiting) == [6, 7, 8, 9, 10]
        await cursor.close()

    async def test_a_reader_says_that_its_consumer_is_lost_and_goes_on(
        self, js: JetStream, stream: str, subject: str
    ) -> None:
        cursor = Cursor(js, stream, subject)
        await fill(js, subject, 5)
        assert numbers(await cursor.fetch(2)) == [1, 2]
        for consumer in (await js.api(f"CONSUMER.NAMES.{stream}"))["consumers"]:
            await js.api(f"CONSUMER.DELETE.{stream}.{consumer}")
        with pytest.raises((Disconnected, TimedOut)):
            await cursor.fetch(2)
        assert numbers(await cursor.fetch(9)) == [3, 4, 5]
        await cursor.close()

    async def test_silence_makes_a_follower_begin_anew(
        self, js: JetStream, stream: str, subject: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jetstream, "SILENCE_S", 0.3)  # shorter than a heartbeat
        cursor = Cursor(js, stream, subject)
        await fill(js, subject, 2)
        assert numbers(await take(cursor, 2)) == [1, 2]
        waiting = asyncio.create_task(take(cursor, 2))
        consumers: dict[str, None] = {}
        async with asyncio.timeout(10):
            while len(consumers) < 3:
                consumers |= dict.fromkeys((await js.api(f"CONSUMER.NAMES.{stream}"))["consumers"] or [])
                await asyncio.sleep(0.05)
        await fill(js, subject, 2)
        assert numbers(await waiting) == [3, 4]
        await cursor.close()

    async def test_a_follower_goes_on_after_a_short_break(
        self, js: JetStream, stream: str, subject: str, real_network: RealNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jetstream, "SILENCE_S", 60.0)
        nc = await quickly_back(real_network)
        cursor = Cursor(await JetStream(nc).open(), stream, subject)
        waiting = asyncio.create_task(take(cursor, 6))
        for _ in range(3):
            await fill(js, subject, 2)
            await nc.force_reconnect()
        assert numbers(await waiting) == [1, 2, 3, 4, 5, 6]
        waiting = asyncio.create_task(take(cursor, 2))
        await asyncio.sleep(0)
        await nc.force_reconnect()
        await fill(js, subject, 2)
        assert numbers(await waiting) == [7, 8]
        await cursor.close()
        await nc.close()

    @pytest.mark.parametrize("lost", [1, 3, 10])
    async def test_a_row_lost_on_the_way_is_fetched_again(
        self, js: JetStream, stream: str, subject: str, monkeypatch: pytest.MonkeyPatch, lost: int
    ) -> None:
        """A slow reader's client drops messages; the consumer's own numbering shows it."""
        await fill(js, subject, 10)
        nc: Client = js.nc
        subscribe: Callable[..., Awaitable[Any]] = nc.subscribe
        seen = 0

        async def lossy(to: str, cb: Callable[[Msg], Awaitable[None]], **options: Any) -> Any:
            async def receive(msg: Msg) -> None:
                nonlocal seen
                seen += msg.subject == subject
                if msg.subject != subject or seen != lost:
                    await cb(msg)

            return await subscribe(to, cb=receive, **options)

        monkeypatch.setattr(nc, "subscribe", lossy)
        cursor = Cursor(js, stream, subject)
        assert numbers(await take(cursor, 10)) == list(range(1, 11))
        assert seen > 10
        await cursor.close()
