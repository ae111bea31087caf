"""Durable mail under way: one stream from this process to the leader, numbered without a gap.

A mail is repeated, with all that follow it, until the leader says that the log has it. So mail is in the log once and in the
order in which it was sent, however often leaders change. What nobody awaits any more is repeated all the same: those behind it
wait for its number.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from comity.client.calls import SILENCE_S
from comity.client.contact import Contact
from comity.client.timers import Alarm, Timers
from comity.errors import ComityError, TimedOut, TooOld, Unreachable, from_wire
from comity.model.ids import TaskId
from comity.model.mail import IN_FLIGHT, Outgoing, mail_id
from comity.model.wire_mail import MailTaken, SendMail, StreamOver

NEVER = float("-inf")
IDLE_S = 1800.0
"""A stream that rested for longer may be forgotten: another one is begun."""


class Post:
    __slots__ = ("future", "item", "posted_at")

    def __init__(self, item: SendMail, future: asyncio.Future[str]) -> None:
        self.item = item
        self.future = future
        self.posted_at = NEVER

    def fail(self, error: ComityError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Posts:
    """See the module. Invariant: ``_open`` and then ``_held``, which waits for room, hold what the log may not have, numbers in
    order without a gap."""

    def __init__(self, contact: Contact, timers: Timers, stream: Callable[[], TaskId]) -> None:
        self._contact = contact
        self._timers = timers
        self._next_stream = stream
        self._loop = asyncio.get_running_loop()
        self._stream = ""
        self._last = 0
        self._used_at = NEVER
        self._open: deque[Post] = deque()
        self._held: deque[Post] = deque()
        self._watch: Alarm | None = None
        contact.on_renewed(self._renew)

    async def send(self, mail: Outgoing, timeout_s: float) -> str:
        """The mail's id, once it is durable. Leader time must be known. Raises what the leader says, TimedOut, Unreachable."""
        now = self._loop.time()
        if not self._stream or (not self._open and self._used_at < now - IDLE_S):
            self._stream, self._last = self._next_stream(), 0
        self._last += 1
        self._used_at = now
        post = Post(SendMail(self._stream, self._last, mail), self._loop.create_future())
        self._held.append(post)
        self._fill()
        self._keep_watch()
        alarm = self._timers.after(timeout_s, lambda: post.fail(_late(post, timeout_s)))
        try:
            return await post.future
        finally:
            alarm.cancel()

    def _fill(self) -> None:
        while self._held and len(self._open) < IN_FLIGHT:
            post = self._held.popleft()
            self._open.append(post)
            self._post(post)

    def _post(self, post: Post) -> None:
        if not self._contact.is_up:
            self._contact.seek()
            return
        post.posted_at = self._loop.time()
        try:
            self._contact.post(post.item)
        except ComityError as error:  # it can never be sent, nor can what follows it in this stream
            post.fail(error)
            self._end_stream(error)

    # What the leader says

    def on_taken(self, item: MailTaken) -> None:
        if item.stream != self._stream or not self._open:
            return
        if item.after >= self._open[0].item.number:  # of the first ones it does not say whether they were refused
            self._repeat()
            return
        refused = {number: (code, message) for number, code, message in item.refused}
        while self._open and self._open[0].item.number <= item.upto:
            post = self._open.popleft()
            number = post.item.number
            if number in refused:
                post.fail(from_wire(*refused[number]))
            elif not post.future.done():
                post.future.set_result(mail_id(item.stream, number))
        self._fill()

    def on_over(self, item: StreamOver) -> None:
        if item.stream == self._stream:
            self._end_stream(TooOld("the network no longer knows what this process sent before", stream=item.stream))

    def _end_stream(self, error: ComityError) -> None:
        """What of it is durable is not known; another stream is begun."""
        self._stream = ""
        self._fail(error)

    def _fail(self, error: ComityError) -> None:
        for posts in (self._open, self._held):
            while posts:
                posts.popleft().fail(error)

    # Again

    def _renew(self, lost: bool) -> None:
        if self._open and (lost or self._open[0].posted_at <= self._loop.time() - SILENCE_S):
            self._repeat()
        self._keep_watch()

    def _repeat(self) -> None:
        for post in list(self._open):
            self._post(post)

    def _keep_watch(self) -> None:
        if self._watch is None and self._open:
            self._watch = self._timers.after(SILENCE_S, self._look)

    def _look(self) -> None:
        self._watch = None
        if self._open and self._open[0].posted_at <= self._loop.time() - SILENCE_S:
            self._contact.seek()
        self._keep_watch()

    def close(self, error: ComityError) -> None:
        self._fail(error)


def _late(post: Post, timeout_s: float) -> ComityError:
    id = mail_id(post.item.stream, post.item.number)
    if post.posted_at == NEVER:
        said = f"no controller leads, or none can be reached: tried for {round(timeout_s, 2):g} s; the mail goes when one does"
        return Unreachable(said, mail=id)
    return TimedOut(f"mail {id} was not acknowledged within {round(timeout_s, 2):g} s; it is still being sent", mail=id)

