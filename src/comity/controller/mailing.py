"""Durable mail as the leader has it: taken in, delivered, and shown to who asks. Of one term."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from comity.bus.outbox import Outbox
from comity.config import Settings
from comity.controller.answers import Args, Slow
from comity.controller.delivering import Delivering
from comity.controller.desk import Desk
from comity.controller.posting import Posting
from comity.controller.receivers import Receivers
from comity.core.changes import Change
from comity.core.tasks import Tasks
from comity.errors import BadInput, ComityError, NotFound
from comity.model.capability import AgentRecord
from comity.model.codec import from_json
from comity.model.ids import AgentId, ProcessId
from comity.model.mail import AckMail, BuryMail, DeadMail, DropMail, LeaveGroup, Letter, Note, PostMail, SkipMail
from comity.model.moment import iso
from comity.model.payload import Stored
from comity.model.task import Command, Evict, NodeLeft, NodeUp
from comity.model.wire import Item

LISTED_MAX = 200
SHOWN = 1000
"""Receivers named in one answer."""


class Mailing:
    """See the module. ``effective`` waits until what was proposed before counts."""

    def __init__(
        self,
        state: Tasks,
        outbox: Outbox,
        settings: Settings,
        agents: Mapping[AgentId, AgentRecord],
        *,
        now_ms: Callable[[], int],
        propose: Callable[[Command], None],
        barrier: Callable[[Callable[[], None]], None],
        effective: Callable[[], Awaitable[None]],
    ) -> None:
        self._state = state
        self._propose = propose
        self._effective = effective
        self._receivers = Receivers(state, agents)
        desk = Desk(state, outbox, self._receivers, now_ms, propose)
        self.posting = Posting(
            desk, max_mailbox=settings.max_mailbox, max_mail=settings.max_mail, ttl_ms=int(settings.mail_ttl_s * 1000)
        )
        self._delivering = Delivering(desk, barrier=barrier, poison_nodes=settings.poison_nodes)
        self.begin = self._delivering.begin
        self.react: Callable[[list[Change]], None] = self._delivering.react
        self.repeat = self._delivering.repeat
        self.pulse = self._delivering.pulse
        self.end = self._delivering.end
        self.at_work = self._delivering.at_work
        self.takers: dict[type[Item], Callable[[Any, ProcessId], None]] = {
            **self.posting.takers,
            **self._delivering.takers,
        }
        self.questions: dict[str, Slow] = {
            "mail": self._list,
            "mail-dead": self._dead,
            "receipts": self._receipts,
            "drop-mail": self._drop,
            "groups": self._groups,
            "leave-group": self._leave,
        }

    def put(self, agent: AgentRecord) -> None:
        """It was registered, or changed."""
        self._receivers.put(agent)
        self._delivering.look_at(agent.id)

    def remove(self, agent: AgentId) -> None:
        self._receivers.remove(agent)

    def applied(self, command: Command) -> None:
        """It is effective."""
        if isinstance(command, PostMail | SkipMail):
            self.posting.applied(command)
        elif isinstance(command, AckMail | BuryMail):
            self._delivering.applied(command)
        elif isinstance(command, NodeUp | Evict | NodeLeft):
            self._delivering.node_changed(command.node)

    def figures(self) -> dict[str, int]:
        """For ``comity stats``."""
        mail = self._state.mail
        return {
            "waiting": len(mail.letters), "boxes": len(mail.boxes), "posted": mail.posted, "taken": mail.taken,
            "dead": len(mail.dead), "buried": mail.buried, "groups": len(mail.groups),
        }  # fmt: skip

    # Questions

    async def _list(self, args: Args) -> dict[str, Any]:
        """Mail that waits, oldest first: of one agent (``name``), or of all; and how much each has."""
        await self._effective()
        mail, limit = self._state.mail, max(1, min(args.limit, LISTED_MAX))
        numbers = mail.boxes.get(AgentId(args.name), {}) if args.name else mail.letters
        found: list[dict[str, Any]] = []
        for number in numbers:
            if len(found) >= limit:
                break
            found.append(_view(mail.letters[number]))
        boxes = sorted(((len(box), agent) for agent, box in mail.boxes.items()), reverse=True)[:limit]
        return {"mail": found, "waiting": len(numbers), "boxes": [{"agent": a, "waiting": n} for n, a in boxes]}

    async def _dead(self, args: Args) -> dict[str, Any]:
        """Newest first."""
        await self._effective()
        chosen = [dead for dead in self._state.mail.dead.values() if not args.name or dead.receiver == args.name]
        limit = max(1, min(args.limit, LISTED_MAX))
        return {"dead": [_dead_view(dead) for dead in reversed(chosen[-limit:])], "count": len(chosen)}

    async def _receipts(self, args: Args) -> dict[str, Any]:
        """Who has it, who has not, to whom it is dead. Raises NotFound."""
        await self._effective()
        mail = self._state.mail
        dead = [_dead_view(one) for one in mail.dead.values() if one.id == args.id]
        gone = frozenset(one["receiver"] for one in dead)
        letter = mail.letters.get(mail.ids.get(args.id, 0)) or mail.known.get(args.id)
        if letter is None and not dead and not self._was_taken(args.id):
            raise NotFound(f"no mail {args.id[:80]} is known, or it arrived too long ago", id=args.id[:80])
        left = frozenset(letter.left) if letter is not None else frozenset()
        has = [agent for agent in letter.receivers if agent not in left and agent not in gone] if letter is not None else []
        state = "waiting" if left else "dead" if dead and not has else "delivered"
        shown = {**_view(letter)} if letter is not None else {"id": args.id}
        return {
            **shown, "state": state, "has": has[:SHOWN], "has_not": [*left][:SHOWN], "dead": dead[:SHOWN],
            "counts": {"has": len(has), "has_not": len(left), "dead": len(dead)},
        }  # fmt: skip

    def _was_taken(self, id: str) -> bool:
        """Whether the number was used in a stream that is known, and not refused: then who it was for has it."""
        stream, _, number = id.rpartition("-")
        known = next((one for one in self._state.mail.streams.values() if one.id == stream), None)
        return known is not None and number.isdecimal() and 0 < int(number) <= known.last and int(number) not in known.refused

    async def _drop(self, args: Args) -> dict[str, Any]:
        """Raises NotFound."""
        await self._effective()
        mail = self._state.mail
        known = {*mail.ids, *(dead.id for dead in mail.dead.values())}
        unknown = [id for id in args.ids if id not in known]
        if unknown or not args.ids:
            raise NotFound(f"no mail {(unknown or ['?'])[0][:80]} waits or is dead", ids=unknown[:20])
        self._propose(DropMail(args.ids))
        await self._effective()
        return {"dropped": list(args.ids)}

    async def _groups(self, args: Args) -> dict[str, Any]:
        """All, with the number of members; or one (``name``), with its members. Raises NotFound."""
        await self._effective()
        groups = self._state.mail.groups
        if not args.name:
            return {"groups": [{"name": name, "members": len(members)} for name, members in sorted(groups.items())]}
        if args.name not in groups:
            raise NotFound(f"nobody is in group {args.name[:80]!r}", group=args.name[:80])
        members = groups[args.name]
        listed = [{"agent": agent, "since": iso(since)} for agent, since in members.items()]
        return {"name": args.name, "members": listed[:SHOWN], "count": len(members)}

    async def _leave(self, args: Args) -> dict[str, Any]:
        """An operator takes an agent out of a group. Raises NotFound."""
        await self._effective()
        if args.id not in self._state.mail.groups.get(args.name, ()):
            raise NotFound(f"{args.id[:80]} is not in group {args.name[:80]!r}", group=args.name[:80])
        if len(args.id) > LISTED_MAX:
            raise BadInput("no agent is called so")
        self._propose(LeaveGroup(args.name, AgentId(args.id)))
        await self._effective()
        return {"group": args.name, "agent": args.id}


def _body(note: Note) -> Any:
    if isinstance(note.body, Stored):
        return {"$stored": note.body.key, "size": note.body.size}
    try:
        return from_json(note.body) if isinstance(note.body, bytes) else None
    except ComityError:
        return {"$size": len(note.body) if isinstance(note.body, bytes) else 0}


def _view(letter: Letter) -> dict[str, Any]:
    note = letter.note
    return {
        "id": letter.id,
        "from": note.sender,
        "to": list(letter.receivers[:5]),
        "receivers": len(letter.receivers),
        "waiting": len(letter.left),
        "topic": note.topic,
        "performative": note.performative,
        "sent": iso(letter.at_ms),
        "until": iso(letter.until_ms),
        "body": _body(note),
    }


def _dead_view(dead: DeadMail) -> dict[str, Any]:
    return {
        "id": dead.id,
        "from": dead.note.sender,
        "receiver": dead.receiver,
        "topic": dead.note.topic,
        "code": dead.code,
        "message": dead.message,
        "died": iso(dead.dead_ms),
        "body": _body(dead.note),
    }
