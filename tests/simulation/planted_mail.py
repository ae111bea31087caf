"""Bugs to plant in durable mail; each must be found by the judge of ``comity.sim.mail``, in one of a few lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from comity.client.mail import Mail as ClientMail
from comity.client.terms import Scope
from comity.controller.delivering import Delivering, Lane
from comity.controller.posting import Posting
from comity.core.mail import Mail, MailHead
from comity.model.ids import ProcessId
from comity.model.mail import SkipMail, Stream
from comity.model.wire_mail import MailDone, SendMail
from comity.node.mail import Inbox


class PlantedMail(NamedTuple):
    """A bug, and the lives in which it must show."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    world: dict[str, Any]


PLANTED: list[PlantedMail] = []


def plant(**world: Any) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    def add(function: Callable[[pytest.MonkeyPatch], None]) -> None:
        PLANTED.append(PlantedMail(function.__name__, function, world))

    return add


@plant(faults={"crash": 1})
def mail_is_acknowledged_before_its_function_has_it(patch: pytest.MonkeyPatch) -> None:
    take = Inbox._take

    async def later(*about: Any) -> None:
        await asyncio.sleep(0.5)
        await take(*about)

    async def eager(*about: Any) -> None:
        asyncio.get_running_loop().create_task(later(*about))

    patch.setattr(Inbox, "_take", eager)


@plant(faults={"loss": 1, "outage": 1, "server crash": 1})
def a_repeated_mail_is_a_new_one(patch: pytest.MonkeyPatch) -> None:
    send = Posting._send

    def naive(self: Posting, item: SendMail, sender: ProcessId) -> None:
        known = self._state.mail.streams.get(sender)
        last = known.last if known is not None and known.id == item.stream else 0
        stream, coming = self._under_way.get(sender, ("", 0))
        number = 1 + max(last, coming if stream == item.stream else 0)
        send(self, SendMail(item.stream, number, item.mail), sender)

    patch.setattr(Posting, "_send", naive)


@plant(faults={"loss": 3, "disorder": 1, "deaf": 1}, torture_s=18.0)
def a_gap_in_a_stream_is_passed_over(patch: pytest.MonkeyPatch) -> None:
    send, follows = Posting._send, Mail._next

    def lax(self: Posting, item: SendMail, sender: ProcessId) -> None:
        known = self._state.mail.streams.get(sender)
        last = known.last if known is not None and known.id == item.stream else 0
        if item.number > last:
            self._under_way[sender] = (item.stream, item.number - 1)
        send(self, item, sender)

    def lax_next(self: Mail, process: ProcessId, stream: str, number: int) -> Stream | None:
        known = self.streams.get(process)
        if known is None or stream > known.id:
            self.streams[process] = Stream(stream, number - 1, 0, {})
        elif known.id == stream and number > known.last:
            known.last = number - 1
        return follows(self, process, stream, number)

    patch.setattr(Posting, "_send", lax)
    patch.setattr(Mail, "_next", lax_next)


@plant(faults={"crash": 1, "pause": 1})
def mail_of_an_attempt_is_sent_at_once(patch: pytest.MonkeyPatch) -> None:
    init = ClientMail.__init__

    def alone(self: ClientMail, exchange: Any, scope: Scope, timely: Any) -> None:
        init(self, exchange, scope._replace(outgoing=None), timely)

    patch.setattr(ClientMail, "__init__", alone)


@plant()
def a_node_gives_what_comes_again_again(patch: pytest.MonkeyPatch) -> None:
    deliver, tell = Inbox.deliver, Inbox._tell

    def forgetful(self: Inbox, item: Any) -> None:
        self._known.clear()
        self._ended.clear()
        deliver(self, item)

    patch.setattr(Inbox, "deliver", forgetful)
    patch.setattr(Inbox, "_tell", lambda self, keys: tell(self, [key for key in keys if key in self._unsettled]))


@plant(faults={"loss": 1, "crash": 1})
def mail_is_sent_to_a_node_only_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Delivering, "_again", lambda self, agent, lane: None)
    patch.setattr(Delivering, "node_changed", lambda self, node: None)


@plant(settings={"snapshot_every": 10})
def a_snapshot_forgets_who_is_to_have_mail(patch: pytest.MonkeyPatch) -> None:
    restore = Mail.restore

    def lossy(self: Mail, head: MailHead, letters: Any, dead: Any, known: Any) -> None:
        restore(self, head, letters[1:], dead, known)

    patch.setattr(Mail, "restore", lossy)


@plant()
def a_repeat_is_not_marked(patch: pytest.MonkeyPatch) -> None:
    init = Lane.__init__
    patch.setattr(Lane, "__init__", lambda self, before: init(self, 0))


@plant(faults={"loss": 1}, settings={"max_mailbox": 2})
def a_refused_mail_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def skip(self: Mail, command: SkipMail, *_place: int) -> None:
        self._next(command.process, command.stream, command.number)

    patch.setattr(Mail, "_skip", skip)


@plant(faults={"server crash": 1, "outage": 1, "crash": 1})
def an_acknowledgement_is_settled_before_the_log_has_it(patch: pytest.MonkeyPatch) -> None:
    done = Delivering._done

    def hasty(self: Delivering, item: MailDone, sender: ProcessId) -> None:
        done(self, item, sender)
        for agent, numbers in item.taken:
            for number in numbers:
                self._settle(agent, number)

    patch.setattr(Delivering, "_done", hasty)


@plant(faults={})
def mail_of_one_sender_overtakes_itself(patch: pytest.MonkeyPatch) -> None:
    deliver = Inbox.deliver

    def beside(self: Inbox, item: Any) -> None:
        mails = [
            msgspec.structs.replace(mail, note=msgspec.structs.replace(mail.note, sender=f"{mail.note.sender}/{mail.number}"))
            for mail in reversed(item.mails)
        ]
        deliver(self, msgspec.structs.replace(item, mails=tuple(mails)))

    patch.setattr(Inbox, "deliver", beside)

