"""The stream of durable mail from a process: numbered without a gap, repeated from the first one that is open."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from comity.client import posts as module
from comity.client.posts import Posts
from comity.client.timers import Timers
from comity.errors import Disconnected, MailboxFull, TimedOut, TooLarge, TooOld, Unreachable
from comity.model.ids import TaskIds
from comity.model.mail import Note, Outgoing
from comity.model.wire_mail import MailTaken, SendMail, StreamOver

MAIL = Outgoing(Note("c1", "news", "inform", b"1"), "n1/a")


class Leader:
    """As a contact that says when it is up; ``got`` are the numbers that were sent to it."""

    def __init__(self) -> None:
        self.is_up = True
        self.sought = 0
        self.got: list[int] = []
        self.stream = ""
        self.error: Exception | None = None
        self.renewed: Any = None

    def on_renewed(self, call: Any) -> None:
        self.renewed = call

    def seek(self) -> None:
        self.sought += 1

    def post(self, item: SendMail) -> None:
        if self.error is not None:
            raise self.error
        self.got.append(item.number)
        self.stream = item.stream


def made() -> tuple[Leader, Posts]:
    leader = Leader()
    loop = asyncio.get_running_loop()
    ids = TaskIds(lambda: 1_700_000_000_000, Random(1).getrandbits(40))
    return leader, Posts(leader, Timers(loop), ids.next)  # type: ignore[arg-type]


def start(posts: Posts, count: int, timeout_s: float = 5.0) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(posts.send(MAIL, timeout_s)) for _ in range(count)]


async def test_one_word_acknowledges_many_and_tells_the_refused() -> None:
    leader, posts = made()
    sends = start(posts, 4)
    await asyncio.sleep(0)
    assert leader.got == [1, 2, 3, 4]
    posts.on_taken(MailTaken("another", 0, 4))
    posts.on_taken(MailTaken(leader.stream, 0, 3, ((2, "mailbox-full", "full"),)))
    done = await asyncio.gather(*sends[:3], return_exceptions=True)
    assert done[0] == f"{leader.stream}-1" and done[2] == f"{leader.stream}-3"
    assert isinstance(done[1], MailboxFull)
    posts.on_taken(MailTaken(leader.stream, 3, 4))
    assert await sends[3] == f"{leader.stream}-4"


async def test_a_word_that_leaves_out_the_first_ones_is_not_believed() -> None:
    leader, posts = made()
    sends = start(posts, 3)
    await asyncio.sleep(0)
    posts.on_taken(MailTaken(leader.stream, 2, 3))
    assert leader.got == [1, 2, 3, 1, 2, 3] and not any(send.done() for send in sends), "whether 1 was refused is not known"
    posts.on_taken(MailTaken(leader.stream, 0, 3))
    await asyncio.gather(*sends)


async def test_all_is_repeated_in_order_to_a_new_leader() -> None:
    leader, posts = made()
    sends = start(posts, 3)
    await asyncio.sleep(0)
    posts.on_taken(MailTaken(leader.stream, 0, 1))
    leader.renewed(False)
    assert leader.got == [1, 2, 3], "nothing is overdue"
    leader.renewed(True)
    assert leader.got == [1, 2, 3, 2, 3]
    posts.on_taken(MailTaken(leader.stream, 1, 3))
    await asyncio.gather(*sends)


async def test_what_nobody_awaits_any_more_is_sent_all_the_same() -> None:
    leader, posts = made()
    with pytest.raises(TimedOut):
        await posts.send(MAIL, 0.01)
    leader.is_up = False
    with pytest.raises(Unreachable):
        await posts.send(MAIL, 0.01)
    assert leader.sought == 1
    leader.is_up = True
    leader.renewed(True)
    assert leader.got == [1, 1, 2]


async def test_no_more_than_a_window_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT", 2)
    leader, posts = made()
    sends = start(posts, 5)
    await asyncio.sleep(0)
    assert leader.got == [1, 2]
    posts.on_taken(MailTaken(leader.stream, 0, 1))
    assert leader.got == [1, 2, 3]
    for upto in (2, 3, 4, 5):
        posts.on_taken(MailTaken(leader.stream, upto - 1, upto))
    assert [id.rpartition("-")[2] for id in await asyncio.gather(*sends)] == ["1", "2", "3", "4", "5"]


async def test_a_stream_that_is_over_is_followed_by_another() -> None:
    leader, posts = made()
    sends = start(posts, 2)
    await asyncio.sleep(0)
    before = leader.stream
    posts.on_over(StreamOver("another"))
    posts.on_over(StreamOver(before))
    assert all(isinstance(done, TooOld) for done in await asyncio.gather(*sends, return_exceptions=True))
    (send,) = start(posts, 1)
    await asyncio.sleep(0)
    assert leader.stream > before and leader.got == [1, 2, 1]
    posts.on_taken(MailTaken(leader.stream, 0, 1))
    await send


async def test_what_can_never_be_sent_says_so() -> None:
    leader, posts = made()
    leader.error = TooLarge("no")
    with pytest.raises(TooLarge):
        await posts.send(MAIL, 1.0)
    leader.error = None
    sends = start(posts, 1)
    await asyncio.sleep(0)
    posts.close(Disconnected("closed"))
    with pytest.raises(Disconnected):
        await sends[0]
