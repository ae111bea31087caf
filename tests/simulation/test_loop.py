"""The loop of the simulated world: time that jumps, order that repeats, processes that stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from comity.sim.loop import Hang, Livelock, NoThreads, VirtualLoop, current_process


def run(loop: VirtualLoop, coro: Coroutine[Any, Any, Any]) -> Any:
    try:
        return loop.run_until_complete(coro)
    finally:
        loop.close()


def test_an_hour_passes_at_once() -> None:
    loop = VirtualLoop()

    async def hour() -> float:
        began = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - began

    started = time.monotonic()
    assert run(loop, hour()) == 3600
    assert time.monotonic() - started < 20


def test_timers_of_one_moment_fire_in_the_order_they_were_set() -> None:
    loop = VirtualLoop()
    fired: list[int] = []

    async def main() -> None:
        for number in range(50):
            loop.call_at(loop.time() + 1, fired.append, number)
        await asyncio.sleep(1)

    run(loop, main())
    assert fired == list(range(50))


def test_a_due_timer_is_not_starved_by_ready_callbacks() -> None:
    loop = VirtualLoop()

    async def main() -> int:
        fired = asyncio.Event()
        loop.call_later(0, fired.set)
        turns = 0
        while not fired.is_set():
            turns += 1
            await asyncio.sleep(0)
        return turns

    assert run(loop, main()) < 5


def test_a_canceled_timer_moves_no_clock() -> None:
    loop = VirtualLoop()

    async def main() -> float:
        began = loop.time()
        loop.call_later(5, print).cancel()
        await asyncio.sleep(10)
        return loop.time() - began

    assert run(loop, main()) == 10


def test_a_hang_names_the_waiting_task_and_its_place() -> None:
    loop = VirtualLoop()

    async def never() -> None:
        await loop.create_future()

    with pytest.raises(Hang, match=r"never.*test_loop\.py"):
        run(loop, never())


def test_a_busy_loop_is_told_from_progress() -> None:
    loop = VirtualLoop()

    def busy() -> None:
        loop.call_soon(busy)

    with pytest.raises(Livelock):
        loop.call_soon(busy)
        run(loop, asyncio.sleep(1))


def test_threads_are_forbidden_even_if_the_error_is_swallowed() -> None:
    loop = VirtualLoop()

    async def threaded() -> None:
        try:
            await asyncio.to_thread(print)
        except NoThreads:
            pass
        await asyncio.sleep(1)

    with pytest.raises(NoThreads, match="make the function async"):
        run(loop, threaded())


def test_sets_of_tasks_and_futures_iterate_the_same_way_every_time() -> None:
    def order() -> list[list[int]]:
        loop = VirtualLoop()

        async def main() -> list[list[int]]:
            tasks = {asyncio.create_task(asyncio.sleep(0, number)) for number in range(20)}
            done, _ = await asyncio.wait(tasks)
            futures = [loop.create_future() for _ in range(20)]
            place = {future: number for number, future in enumerate(futures)}
            return [[task.result() for task in done], [place[future] for future in set(futures)]]

        return run(loop, main())

    first = order()
    assert sorted(first[0]) == list(range(20))
    assert all(order() == first for _ in range(3))


class TestProcesses:
    def test_tasks_and_timers_belong_to_the_process_that_started_them(self) -> None:
        loop = VirtualLoop()
        node = loop.process("node")
        seen: list[object] = []

        async def child() -> None:
            seen.append(current_process())
            loop.call_later(1, lambda: seen.append(current_process()))
            await asyncio.create_task(grandchild())

        async def grandchild() -> None:
            seen.append(current_process())

        async def main() -> None:
            await node.spawn(child())
            await asyncio.sleep(2)
            seen.append(current_process())

        run(loop, main())
        assert seen == [node, node, node, None]

    def test_a_paused_process_runs_nothing_and_wakes_late(self) -> None:
        loop = VirtualLoop()
        node = loop.process("node")
        beats: list[float] = []

        async def beat() -> None:
            for _ in range(4):
                await asyncio.sleep(1)
                beats.append(loop.time() - began)

        began = loop.time()

        async def main() -> None:
            task = node.spawn(beat())
            await asyncio.sleep(1.5)
            node.pause()
            await asyncio.sleep(5)
            assert beats == [1]
            node.wake()
            await task

        run(loop, main())
        assert beats == [1, 6.5, 7.5, 8.5]

    def test_a_killed_process_runs_nothing_not_even_its_finally_blocks(self) -> None:
        loop = VirtualLoop()
        node = loop.process("node")
        seen: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1)
                seen.append("worked")
            finally:
                seen.append("cleaned up")

        async def main() -> None:
            node.spawn(work())
            await asyncio.sleep(0.5)
            node.kill()
            await asyncio.sleep(5)
            assert seen == []

        loop.run_until_complete(main())
        loop.bury()
        loop.close()

    def test_what_a_paused_process_is_sent_arrives_in_order_when_it_wakes(self) -> None:
        loop = VirtualLoop()
        node = loop.process("node")
        got: list[int] = []

        async def main() -> None:
            node.pause()
            for number in range(5):
                node.call(got.append, number)
                await asyncio.sleep(1)
            assert got == []
            node.wake()
            await asyncio.sleep(0)
            assert got == [0, 1, 2, 3, 4]

        run(loop, main())
