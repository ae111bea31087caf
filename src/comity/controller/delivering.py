"""Gives agents their mail, a window of it at a time, until they acknowledge it; and buries what nobody takes.

What was sent is sent again: when the node comes back, when it may have missed it, and now and then. A node in one life gives a
mail to the agent's function once, however often it comes.

A mail that was at work in all but one of the losses of its node that make it poison gets its last chance alone: as long as it is
there, its node has no other mail. So those which happened to be beside it are not buried with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from comity.bus.base import to
from comity.controller.desk import Desk
from comity.core.changes import Change
from comity.core.waiting import Heap
from comity.errors import BadInput, TooLarge
from comity.model.ids import AgentId, NodeId, ProcessId, check_token, node_of
from comity.model.item import Item
from comity.model.limits import REASON_MAX, TEXT_MAX
from comity.model.mail import AckMail, BuryMail, ExpireMail, JoinGroup, LeaveGroup
from comity.model.wire_mail import Deliver, Grouped, InGroups, MailDone, Mailed, MailSettled

WINDOW = 256
"""Mails that an agent has at a time and has not acknowledged."""
DELIVERED = 100
"""In one item: it must fit into a message."""
REPEAT_S, REPEAT_MAX_S = 2.0, 30.0
PULSE_S = 1.0
AT_ONCE = 1000
ACKED, AGENT_COSTS = 16_384, 20
"""Numbers that one command acknowledges, about; an agent's id takes as much as so many."""
ACK_S = 0.005
"""For so long acknowledgements gather before they are written down."""
AT_WORK = 1000
"""Mails that a node had at work when it was lost, of which the log is told."""
GROUPS_MAX = 10_000
MEMBERS_MAX = 100_000


class Lane:
    """What was sent to one agent and is not acknowledged: ``sent``, in order; ``upto`` the highest of them. Those up to
    ``before`` may have been given to an earlier life of its node."""

    __slots__ = ("acking", "before", "pause_s", "repeat_at", "sent", "upto")

    def __init__(self, before: int) -> None:
        self.sent: dict[int, None] = {}
        self.acking: set[int] = set()
        self.upto = 0
        self.before = before
        self.pause_s = REPEAT_S
        self.repeat_at = 0.0


class Delivering:
    """Of one term. ``barrier`` calls back once what was proposed before is effective."""

    def __init__(self, desk: Desk, *, barrier: Callable[[Callable[[], None]], None], poison_nodes: int) -> None:
        self._state, self._outbox, self._receivers, self._now_ms, self._propose = desk
        self._barrier = barrier
        self._last_chance = max(1, poison_nodes - 1)
        self._held: set[NodeId] = set()
        self._loop = asyncio.get_running_loop()
        self._inherited = desk.state.mail.last
        self._lanes: dict[AgentId, Lane] = {}
        self._fresh: dict[AgentId, None] = {}
        self._settled: dict[NodeId, dict[AgentId, list[int]]] = {}
        self._acks: dict[AgentId, list[int]] = {}
        self._commit: asyncio.TimerHandle | None = None
        self._is_woken = False
        self._pulse_at = 0.0
        self._ends: Heap[tuple[int, int]] = Heap(lambda end: end[1] in desk.state.mail.letters)
        self.takers: dict[type[Item], Callable[[Any, ProcessId], None]] = {MailDone: self._done, InGroups: self._in_groups}

    def begin(self) -> None:
        """Whatever lies in the boxes may have been sent by the leader before."""
        for letter in self._state.mail.letters.values():
            self._ends.push((letter.until_ms, letter.number))
        for agent in self._state.mail.boxes:
            self._look_at(agent)

    def react(self, changes: list[Change]) -> None:
        """Mail came in."""
        for change in changes:
            if change.kind == "mail.posted" and change.letter is not None:
                self._ends.push((change.letter.until_ms, change.letter.number))
                for agent in change.letter.left:
                    self._look_at(agent)

    def node_changed(self, node: NodeId) -> None:
        """A node has begun another life, or ended one."""
        for agent in [agent for agent in self._lanes if agent.startswith(f"{node}/")]:
            lane = self._lanes[agent]
            self._lanes[agent] = Lane(max(lane.before, lane.upto))
        self._look_at_all(node)

    def _look_at_all(self, node: NodeId) -> None:
        """At every box of the node's agents."""
        self._held.discard(node)
        for agent in self._state.mail.boxes:
            if agent.startswith(f"{node}/"):
                self._look_at(agent)

    def at_work(self, node: NodeId) -> tuple[tuple[AgentId, int], ...]:
        """What its agents' functions have at the moment, as far as we know: of each sender the first that is not taken."""
        alone = self._alone(node)
        if alone is not None:
            return (alone,) if alone[1] in self._lane(alone[0]).sent else ()
        found: list[tuple[AgentId, int]] = []
        for agent in [agent for agent in self._lanes if agent.startswith(f"{node}/")]:
            lane, first = self._lanes[agent], dict[str, int]()
            for number in lane.sent:
                letter = self._state.mail.letters.get(number)
                if letter is not None and number not in lane.acking:
                    first.setdefault(letter.note.sender, number)
            found += [(agent, number) for number in first.values()]
        return tuple(found[:AT_WORK])

    def _alone(self, node: NodeId) -> tuple[AgentId, int] | None:
        """The mail that this node shall have alone now."""
        if not self._state.mail.losses:
            return None
        found = [
            (number, agent) for (number, agent), times in self._state.mail.losses.items()
            if times >= self._last_chance and agent.startswith(f"{node}/") and self._receivers.is_here(agent)
        ]  # fmt: skip
        if not found:
            return None
        number, agent = min(found)
        return agent, number

    def repeat(self, node: NodeId) -> None:
        """What was sent to the node may not have reached it."""
        for agent, lane in self._lanes.items():
            if lane.sent and agent.startswith(f"{node}/"):
                self._again(agent, lane)

    def look_at(self, agent: AgentId) -> None:
        """It was registered."""
        if agent in self._state.mail.boxes:
            self._look_at(agent)

    # Sending

    def _look_at(self, agent: AgentId) -> None:
        self._fresh[agent] = None
        self._wake()

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_woken = False
        fresh, self._fresh = self._fresh, {}
        for agent in fresh:
            self._offer(agent)
        settled, self._settled = self._settled, {}
        for node, done in settled.items():
            for at in range(0, len(done), AT_ONCE):
                part = list(done.items())[at : at + AT_ONCE]
                self._outbox.post(to(node), MailSettled(tuple([(agent, tuple(numbers)) for agent, numbers in part])))

    def _offer(self, agent: AgentId) -> None:
        """Send what there is room for."""
        box = self._state.mail.boxes.get(agent)
        if not box or not self._receivers.is_here(agent):
            return
        lane = self._lane(agent)
        alone = self._alone(node_of(agent))
        if alone is not None:
            self._held.add(node_of(agent))
            if alone[0] == agent and not lane.sent:
                self._send_new(agent, lane, [alone[1]])
            return
        room = WINDOW - len(lane.sent)
        new: list[int] = []
        if len(box) - len(lane.sent) <= room:
            for number in reversed(box):
                if number <= lane.upto:
                    break
                new.append(number)
            new.reverse()
        else:
            for number in box:
                if len(new) >= room:
                    break
                if number > lane.upto:
                    new.append(number)
        if new:
            self._send_new(agent, lane, new)

    def _send_new(self, agent: AgentId, lane: Lane, numbers: list[int]) -> None:
        after = lane.upto if lane.sent else 0
        lane.sent.update(dict.fromkeys(numbers))
        lane.upto = numbers[-1]
        lane.repeat_at = self._loop.time() + lane.pause_s
        self._send(agent, lane, after, numbers)

    def _lane(self, agent: AgentId) -> Lane:
        lane = self._lanes.get(agent)
        if lane is None:
            lane = self._lanes[agent] = Lane(self._inherited)
        return lane

    def _send(self, agent: AgentId, lane: Lane, after: int, numbers: list[int]) -> None:
        letters, now_ms = self._state.mail.letters, self._now_ms()
        mails = []
        for number in numbers:
            letter = letters.get(number)
            if letter is not None and letter.until_ms > now_ms:
                mails.append(Mailed(number, letter.id, letter.note, letter.until_ms - now_ms, number <= lane.before))
        for at in range(0, len(mails), DELIVERED):
            part = mails[at : at + DELIVERED]
            self._outbox.post(to(node_of(agent)), Deliver(agent, after, tuple(part)))
            after = part[-1].number

    def _again(self, agent: AgentId, lane: Lane) -> None:
        lane.repeat_at = self._loop.time() + lane.pause_s
        if self._receivers.is_here(agent):
            self._send(agent, lane, 0, [number for number in lane.sent if number not in lane.acking])

    # Arriving

    def _done(self, item: MailDone, sender: ProcessId) -> None:
        for agent, numbers in item.taken:
            new = [number for number in numbers if self._is_new(agent, number, sender)]
            if new:
                if self._commit is None:
                    self._commit = self._loop.call_later(ACK_S, self._acknowledge)
                self._acks.setdefault(agent, []).extend(new)
        for agent, number, code, message in item.failed:
            if self._is_new(agent, number, sender):
                self._propose(BuryMail(agent, number, code[:TEXT_MAX], message[:REASON_MAX]))

    def _acknowledge(self) -> None:
        """Have what gathered written down, in one command for many: nobody waits for it, but mail waits behind every entry."""
        self._commit = None
        acks, self._acks = self._acks, {}
        part: list[tuple[AgentId, tuple[int, ...]]] = []
        size = 0
        for agent, numbers in acks.items():
            part.append((agent, tuple(numbers)))
            size += len(numbers) + AGENT_COSTS
            if size >= ACKED:
                self._propose(AckMail(tuple(part)))
                part, size = [], 0
        if part:
            self._propose(AckMail(tuple(part)))

    def end(self) -> None:
        """This term is over for us."""
        if self._commit is not None:
            self._commit.cancel()

    def _is_new(self, agent: AgentId, number: int, sender: ProcessId) -> bool:
        """Whether this end of a mail is to be written down; what is already is settled."""
        if not agent.startswith(f"{sender}/"):
            return False
        if number not in self._state.mail.boxes.get(agent, ()):
            self._settle(agent, number)
            return False
        lane = self._lane(agent)
        if number in lane.acking:
            return False
        lane.acking.add(number)
        return True

    def applied(self, command: AckMail | BuryMail) -> None:
        """It is effective: the node may forget it, and have more."""
        ends = command.taken if isinstance(command, AckMail) else ((command.agent, (command.number,)),)
        for agent, numbers in ends:
            lane = self._lanes.get(agent)
            for number in numbers:
                self._settle(agent, number)
                if lane is not None:
                    lane.sent.pop(number, None)
                    lane.acking.discard(number)
            if lane is not None:
                self._freed(agent, lane)

    def _freed(self, agent: AgentId, lane: Lane) -> None:
        lane.pause_s, lane.repeat_at = REPEAT_S, self._loop.time() + REPEAT_S
        if agent not in self._state.mail.boxes:
            del self._lanes[agent]
        elif node_of(agent) in self._held and not lane.sent:
            self._lanes[agent] = Lane(lane.before)  # what lies before the one that was alone has not been sent
        self._look_at(agent)
        if node_of(agent) in self._held:
            self._look_at_all(node_of(agent))

    def _settle(self, agent: AgentId, number: int) -> None:
        self._settled.setdefault(node_of(agent), {}).setdefault(agent, []).append(number)
        self._wake()

    # Time

    def pulse(self) -> None:
        """A few times a second."""
        now = self._loop.time()
        if now < self._pulse_at:
            return
        self._pulse_at = now + PULSE_S
        boxes = self._state.mail.boxes
        for node in list(self._held):
            self._look_at_all(node)
        for agent, lane in list(self._lanes.items()):
            gone = [number for number in lane.sent if number not in boxes.get(agent, ())]
            for number in gone:  # expired or dropped
                del lane.sent[number]
            if gone or (not lane.sent and agent not in boxes):
                self._freed(agent, lane)
            elif lane.sent and lane.repeat_at <= now:
                lane.pause_s = min(lane.pause_s * 2, REPEAT_MAX_S)
                self._again(agent, lane)
        self._expire()

    def _expire(self) -> None:
        now_ms = self._now_ms()
        due: list[int] = []
        while len(due) < AT_ONCE and (end := self._ends.lowest()) is not None and end[0] <= now_ms:
            number = self._ends.pop()[1]
            if number in self._state.mail.letters:
                due.append(number)
        if due:
            self._propose(ExpireMail(tuple(due)))

    # Groups

    def _in_groups(self, item: InGroups, sender: ProcessId) -> None:
        groups = self._state.mail.groups
        for agent, group, joins in item.changes:
            if not agent.startswith(f"{sender}/"):
                raise BadInput(f"{sender} cannot speak for {agent[:80]}")
            check_token(group, "group")
            is_in = agent in groups.get(group, ())
            if joins and not is_in:
                if len(groups) >= GROUPS_MAX or len(groups.get(group, ())) >= MEMBERS_MAX:
                    raise TooLarge(f"there are {GROUPS_MAX} groups of {MEMBERS_MAX} members at most")
                self._propose(JoinGroup(group, agent))
            elif is_in and not joins:
                self._propose(LeaveGroup(group, agent))
        self._barrier(partial(self._outbox.post, to(sender), Grouped(item.changes)))
