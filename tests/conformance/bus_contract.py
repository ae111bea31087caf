"""What every bus promises (comity.bus.base), one test each. A backend inherits the class and provides ``world``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from comity.bus.base import Bus, Delivery, Link, any_of, to, topic
from comity.errors import BadInput, Disconnected, TimedOut, TooLarge, Unreachable

SOON_S = 15.0
"""Nothing here takes longer, even on a busy machine."""


class World(Protocol):
    async def bus(self, process: str) -> Bus:
        """A new connection of ``process``, able to see departures."""

    async def cut(self, bus: Bus) -> None:
        """Break the connection of ``bus``; returns once it knows."""

    async def mend(self, bus: Bus) -> None:
        """Let it connect again; returns once it has."""


class Inbox:
    """A receiver that keeps what comes."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = asyncio.Event()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._changed.set()

    @property
    def data(self) -> list[bytes]:
        return [item.data for item in self.items]

    async def until(self, count: int) -> list[Any]:
        """The items, once there are ``count``."""
        await self.when(lambda: len(self.items) >= count)
        return self.items

    async def when(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def settled(bus: Bus, *others: Bus) -> None:
    """Return once what was sent before by ``bus`` has reached the others, however it travels."""
    for other in others:
        inbox = Inbox()
        cancel = await other.subscribe(to(other.process), inbox)
        await bus.send(to(other.process), b"settled")
        await inbox.when(lambda inbox=inbox: b"settled" in inbox.data)
        await cancel()


def answering(bus: Bus, tasks: list[asyncio.Task[None]]) -> Callable[[Delivery], None]:
    """A receiver that answers every request with what it was asked."""

    def receive(delivery: Delivery) -> None:
        tasks.append(asyncio.get_running_loop().create_task(bus.reply(delivery, b"re:" + delivery.data)))

    return receive


class BusContract:
    # Who gets a message

    async def test_a_process_is_reached_and_sees_who_sent(self, world: World) -> None:
        a, b, c = [await world.bus(name) for name in "abc"]
        at_b, at_c = Inbox(), Inbox()
        await b.subscribe(to("b"), at_b)
        await c.subscribe(to("c"), at_c)
        await a.send(to("b"), b"hello")
        (delivery,) = await at_b.until(1)
        assert (delivery.sender, delivery.data, delivery.reply) == ("a", b"hello", "")
        await settled(a, c)
        assert at_c.data == [b"settled"]

    async def test_a_subscription_works_when_subscribe_returns(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        for number in range(50):
            inbox = Inbox()
            await b.subscribe(topic(f"t{number}"), inbox)
            await a.send(topic(f"t{number}"), b"x")
            await inbox.until(1)

    async def test_one_member_of_a_group_gets_each_message(self, world: World) -> None:
        a, *members = [await world.bus(name) for name in ("a", "m1", "m2", "m3")]
        inboxes = [Inbox() for _ in members]
        total = Inbox()
        for member, inbox in zip(members, inboxes, strict=True):
            await member.subscribe(any_of("crew"), inbox)
            await member.subscribe(any_of("crew"), total)
        for number in range(300):
            await a.send(any_of("crew"), str(number).encode())
        await total.until(300)
        await settled(a, *members)
        assert sorted(int(data) for inbox in inboxes for data in inbox.data) == list(range(300))
        assert all(inbox.items for inbox in inboxes)

    async def test_a_topic_reaches_every_subscriber_its_sender_too(self, world: World) -> None:
        buses = [await world.bus(name) for name in "abc"]
        inboxes = [Inbox() for _ in buses]
        for bus, inbox in zip(buses, inboxes, strict=True):
            await bus.subscribe(topic("news"), inbox)
        await buses[0].send(topic("news"), b"x")
        for inbox in inboxes:
            await inbox.until(1)
            assert inbox.data == [b"x"]

    async def test_every_receiver_of_an_address_gets_every_message(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        first, second = Inbox(), Inbox()
        cancel = await b.subscribe(to("b"), first)
        await b.subscribe(to("b"), second)
        await a.send(to("b"), b"1")
        await first.until(1)
        await second.until(1)
        await cancel()
        await cancel()
        await a.send(to("b"), b"2")
        await second.until(2)
        assert first.data == [b"1"]
        assert second.data == [b"1", b"2"]

    async def test_one_receiver_twice_gets_it_twice(self, world: World) -> None:
        a = await world.bus("a")
        inbox = Inbox()
        cancel = await a.subscribe(to("a"), inbox)
        await a.subscribe(to("a"), inbox)
        await a.send(to("a"), b"1")
        await inbox.until(2)
        await cancel()
        await cancel()
        await a.send(to("a"), b"2")
        await settled(a, a)
        assert inbox.data.count(b"2") == 1

    async def test_a_receiver_that_raises_harms_no_other(self, world: World) -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()

        def fails(delivery: Delivery) -> None:
            raise ValueError(delivery.data)

        await b.subscribe(to("b"), fails)
        await b.subscribe(to("b"), inbox)
        await a.send(to("b"), b"1")
        await a.send(to("b"), b"2")
        await inbox.until(2)
        assert [str(context["exception"]) for context in failures] == ["b'1'", "b'2'"]

    # In what order, how often, how long

    async def test_ten_thousand_messages_arrive_once_and_in_order(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        for number in range(10_000):
            await a.send(to("b"), b"%d" % number)
        await inbox.until(10_000)
        await settled(a, b)
        assert inbox.data[:10_000] == [b"%d" % number for number in range(10_000)]
        assert len(inbox.data) == 10_001  # and the mark of `settled`

    async def test_nothing_is_kept_for_who_is_away(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        nobody = Inbox()
        a.on_unreachable(nobody)
        await a.send(to("b"), b"early")
        await nobody.until(1)
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        await a.send(to("b"), b"late")
        await inbox.until(1)
        assert inbox.data == [b"late"]

    async def test_large_messages_pass_and_too_large_ones_are_refused(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        large = bytes(range(256)) * 2048
        await a.send(to("b"), large)
        await inbox.until(1)
        assert inbox.data == [large]
        with pytest.raises(TooLarge):
            await a.send(to("b"), bytes(1024 * 1024 + 1))
        with pytest.raises(TooLarge):
            await a.request(to("b"), bytes(1024 * 1024 + 1), SOON_S)

    @pytest.mark.parametrize("address", ["b", "for/b", "to/", "to/a.b", "topic/>", "any/*", "to/a b"])
    async def test_a_bad_address_is_refused(self, world: World, address: str) -> None:
        a = await world.bus("a")
        with pytest.raises(BadInput):
            await a.send(address, b"")
        with pytest.raises(BadInput):
            await a.request(address, b"", SOON_S)
        with pytest.raises(BadInput):
            await a.subscribe(address, Inbox())

    # Nobody there

    @pytest.mark.parametrize("address", [to("z"), any_of("z"), topic("z")])
    async def test_nobody_there_is_told_within_milliseconds(self, world: World, address: str) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        at_a, at_b = Inbox(), Inbox()
        a.on_unreachable(at_a)
        b.on_unreachable(at_b)
        took_s: list[float] = []
        for turn in range(1, 4):
            begin = time.monotonic()
            await a.send(address, b"x")
            assert await at_a.until(turn) == [address] * turn
            took_s.append(time.monotonic() - begin)
        assert min(took_s) < 0.25, "a busy machine is not what is looked at"
        with pytest.raises(Unreachable):
            await a.request(address, b"x", SOON_S)
        assert await at_a.until(4) == [address] * 4
        assert at_b.items == []

    async def test_who_stops_listening_is_unreachable(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        nobody = Inbox()
        a.on_unreachable(nobody)
        inbox = Inbox()
        cancel = await b.subscribe(to("b"), inbox)
        await a.send(to("b"), b"x")
        await inbox.until(1)  # what a sends and what b cancels go by ways of their own
        await cancel()
        await a.send(to("b"), b"x")
        assert await nobody.until(1) == [to("b")]

    # Requests

    async def test_each_request_gets_its_own_answer(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        tasks: list[asyncio.Task[None]] = []
        for address in (to("b"), any_of("b"), topic("b")):
            await b.subscribe(address, answering(b, tasks))
            asked = [b"%d" % number for number in range(200)]
            answers = await asyncio.gather(*(a.request(address, data, SOON_S) for data in asked))
            assert answers == [b"re:" + data for data in asked]
        await asyncio.gather(*tasks)

    async def test_no_answer_is_timed_out_and_a_late_one_ignored(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        begin = time.monotonic()
        with pytest.raises(TimedOut):
            await a.request(to("b"), b"x", 0.1)
        assert 0.09 < time.monotonic() - begin < SOON_S
        (asked,) = await inbox.until(1)  # it may come after its time
        await b.reply(asked, b"late")
        tasks: list[asyncio.Task[None]] = []
        await b.subscribe(to("b"), answering(b, tasks))
        assert await a.request(to("b"), b"y", SOON_S) == b"re:y"
        await asyncio.gather(*tasks)

    async def test_a_request_can_be_canceled(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        asking = asyncio.create_task(a.request(to("b"), b"x", SOON_S))
        await inbox.until(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await b.reply(inbox.items[0], b"late")
        await settled(b, a)

    async def test_only_the_process_asked_can_answer(self, world: World) -> None:
        a, b, c = [await world.bus(name) for name in "abc"]
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        asking = asyncio.create_task(a.request(to("b"), b"x", SOON_S))
        await inbox.until(1)
        await c.reply(inbox.items[0], b"from c")
        await settled(c, a)
        assert not asking.done()
        await b.reply(inbox.items[0], b"from b")
        assert await asking == b"from b"

    async def test_a_plain_message_cannot_be_answered(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        await a.send(to("b"), b"x")
        await inbox.until(1)
        with pytest.raises(BadInput):
            await b.reply(inbox.items[0], b"y")

    # Breaks

    async def test_while_down_nothing_is_sent_nor_later(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        await world.cut(a)
        assert a.link is Link.DOWN
        with pytest.raises(Disconnected):
            await a.send(to("b"), b"stale")
        with pytest.raises(Disconnected):
            await a.request(to("b"), b"stale", SOON_S)
        with pytest.raises(Disconnected):
            await a.reply(Delivery(b.process, b"", "any"), b"stale")
        with pytest.raises(Disconnected):
            await a.subscribe(to("a"), Inbox())
        await world.mend(a)
        assert a.link is Link.UP
        await a.send(to("b"), b"fresh")
        await inbox.until(1)
        assert inbox.data == [b"fresh"]

    async def test_a_request_under_way_ends_when_the_connection_breaks(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        asking = asyncio.create_task(a.request(to("b"), b"x", 60))
        await inbox.until(1)
        await world.cut(a)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(Disconnected):
                await asking

    async def test_subscriptions_stand_again_before_the_state_says_so(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox, states = Inbox(), Inbox()
        tasks: list[asyncio.Task[None]] = []

        def heard(link: Link) -> None:
            states(link)
            if link is Link.UP:
                tasks.append(asyncio.get_running_loop().create_task(b.send(to("a"), b"welcome")))

        nobody = Inbox()
        b.on_unreachable(nobody)
        for number in range(100):
            await a.subscribe(topic(f"t{number}"), Inbox())
        await a.subscribe(to("a"), inbox)
        a.on_state(heard)
        await world.cut(a)
        await world.mend(a)
        await inbox.until(1)
        assert inbox.data == [b"welcome"]
        assert states.items == [Link.DOWN, Link.UP]
        assert nobody.items == []

    async def test_who_is_cut_off_is_unreachable_until_back(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        nobody, gone, inbox = Inbox(), Inbox(), Inbox()
        a.on_unreachable(nobody)
        a.on_departure(gone)
        await b.subscribe(to("b"), inbox)
        await world.cut(b)
        await gone.until(1)
        await a.send(to("b"), b"lost")
        assert await nobody.until(1) == [to("b")]
        await world.mend(b)
        await a.send(to("b"), b"x")
        await inbox.until(1)
        assert inbox.data == [b"x"]

    # Departures

    async def test_a_departure_is_seen(self, world: World) -> None:
        a, c = await world.bus("a"), await world.bus("c")
        gone = Inbox()
        assert a.on_departure(gone)
        took_s: list[float] = []
        for turn in range(1, 4):
            b = await world.bus("b")
            begin = time.monotonic()
            await b.close()
            assert await gone.until(turn) == ["b"] * turn
            took_s.append(time.monotonic() - begin)
        assert min(took_s) < 0.5, "a busy machine is not what is looked at"
        await world.cut(c)
        assert await gone.until(4) == ["b", "b", "b", "c"]

    async def test_the_end_of_an_old_connection_is_no_departure(self, world: World) -> None:
        a = await world.bus("a")
        gone = Inbox()
        a.on_departure(gone)
        old = await world.bus("b")
        new = await world.bus("b")
        await old.close()
        c = await world.bus("c")
        await c.close()
        assert await gone.until(1) == ["c"]
        await new.close()
        assert await gone.until(2) == ["c", "b"]

    # The end

    async def test_close_sends_what_was_given_and_is_final(self, world: World) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox, states = Inbox(), Inbox()
        await b.subscribe(to("b"), inbox)
        cancel = await a.subscribe(to("a"), Inbox())
        a.on_state(states)
        for _ in range(1000):
            await a.send(to("b"), bytes(100))
        await a.close()
        await a.close()
        await inbox.until(1000)
        assert a.link is Link.CLOSED
        assert await states.until(1) == [Link.CLOSED]
        with pytest.raises(Disconnected):
            await a.send(to("b"), b"x")
        with pytest.raises(Disconnected):
            await a.request(to("b"), b"x", SOON_S)
        with pytest.raises(Disconnected):
            await a.subscribe(to("a"), Inbox())
        await cancel()
