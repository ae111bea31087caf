"""So many callers go on in one turn of the loop, the others in later ones."""

from __future__ import annotations

import asyncio
import itertools

from comity.client.turns import PER_TURN, Turns


async def test_those_who_are_woken_go_on_a_few_in_each_turn_in_order() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns(loop)
    done: list[int] = []
    most = 3 * PER_TURN + 5

    async def wait(waiter: asyncio.Future[int]) -> None:
        done.append(await waiter)

    waiters = [loop.create_future() for _ in range(most)]
    waiting = [loop.create_task(wait(waiter)) for waiter in waiters]
    await asyncio.sleep(0)
    for number, waiter in enumerate(waiters):
        turns.wake(waiter, number)
    seen = [0]
    while len(done) < most:
        await asyncio.sleep(0)
        seen.append(len(done))
    assert done == list(range(most))
    assert max(after - before for before, after in itertools.pairwise(seen)) <= PER_TURN
    await asyncio.gather(*waiting)


async def test_one_who_gave_up_before_its_turn_takes_nobodys_place() -> None:
    loop = asyncio.get_running_loop()
    turns = Turns(loop)
    waiters = [loop.create_future() for _ in range(2 * PER_TURN)]
    for waiter in waiters:
        turns.wake(waiter, None)
    for waiter in waiters[PER_TURN:]:
        waiter.cancel()
    last = loop.create_future()
    turns.wake(last, "last")
    assert not last.done()
    await asyncio.sleep(0)
    assert await last == "last"
