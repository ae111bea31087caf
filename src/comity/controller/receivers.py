"""Who receives a mail: one agent, any one with a capability, all with a tag, a group, everyone. The leader looks it up once, when
it writes the mail down; so what the log says of a mail never depends on who is registered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from comity.core.tasks import Tasks
from comity.errors import BadInput, NoAgent, NotFound, TooLarge, UnknownAgent
from comity.model.capability import AgentRecord, AgentStatus
from comity.model.ids import AgentId, check_token, node_of
from comity.model.mail import RECEIVERS_BYTES, Outgoing

Known = OrderedDict[AgentId, None]
_NOBODY: Known = OrderedDict()


class Receivers:
    """``agents`` are those registered; told of each that comes, changes or goes. They are put in order by name, tag and
    capability when that is first asked for: most networks have no need of it."""

    def __init__(self, state: Tasks, agents: Mapping[AgentId, AgentRecord]) -> None:
        self._state = state
        self._agents = agents
        self._indexed: dict[AgentId, AgentRecord] | None = None
        self._names: dict[str, Known] = {}
        self._tags: dict[str, Known] = {}
        self._offers: dict[str, Known] = {}

    def _index(self) -> None:
        if self._indexed is None:
            self._indexed = {}
            for agent in self._agents.values():
                self.put(agent)

    def put(self, agent: AgentRecord) -> None:
        self.remove(agent.id)
        if self._indexed is not None:
            self._indexed[agent.id] = agent
            for index, key in self._places(agent):
                index.setdefault(key, OrderedDict())[agent.id] = None

    def remove(self, id: AgentId) -> None:
        agent = self._indexed.pop(id, None) if self._indexed is not None else None
        for index, key in self._places(agent) if agent is not None else ():
            known = index[key]
            del known[id]
            if not known:
                del index[key]

    def _places(self, agent: AgentRecord) -> Iterator[tuple[dict[str, Known], str]]:
        yield self._names, agent.name
        for tag in dict.fromkeys(agent.tags):
            yield self._tags, tag
        for name in dict.fromkeys(offer.name for offer in agent.offers):
            yield self._offers, name

    def is_here(self, agent: AgentId) -> bool:
        """Whether it is hosted now, by a node with a lease."""
        return agent in self._agents and node_of(agent) in self._state.nodes

    def of(self, mail: Outgoing) -> tuple[AgentId, ...]:
        """At least one. Raises BadInput, UnknownAgent, NoAgent, NotFound (a group without members), TooLarge."""
        if mail.to:
            return (self._one(mail.to),)
        if mail.group:
            found: Iterable[AgentId] = self._state.mail.groups.get(mail.group, ())
            if not found:
                raise NotFound(f"nobody is in group {mail.group[:80]!r}", group=mail.group[:80])
        elif mail.tags:
            self._index()
            first = self._tags.get(mail.tags[0], ())
            found = [id for id in first if all(id in self._tags.get(tag, ()) for tag in mail.tags)]
        else:
            found = self._agents
        chosen = tuple(agent for agent in found if agent != mail.note.sender)
        if not chosen:
            raise NoAgent("there is nobody else to receive it")
        if sum(map(len, chosen)) > RECEIVERS_BYTES:
            raise TooLarge(f"{len(chosen)} receivers are too many for one mail: send it by group or tag", limit=RECEIVERS_BYTES)
        return chosen

    def _one(self, target: str) -> AgentId:
        """By id, whether or not it is here; else the only agent of that name, or the next one that offers that capability."""
        if "/" in target:
            node, _, name = target.partition("/")
            check_token(node, "node")
            check_token(name, "agent name")
            return AgentId(target)
        self._index()
        named, offering = self._names.get(target, _NOBODY), self._offers.get(target)
        if len(named) > 1 and not offering:
            ids = ", ".join([*named][:5])
            raise BadInput(f"{len(named)} agents are called {target[:80]!r}: {ids}; name one by its id", name=target[:80])
        if named and not offering:
            return next(iter(named))
        if not offering:
            raise UnknownAgent(f"no agent is called {target[:80]!r}, and none offers it", name=target[:80])
        for _ in range(len(offering)):
            agent = next(iter(offering))
            offering.move_to_end(agent)
            if self.is_here(agent) and self._agents[agent].status is AgentStatus.ACTIVE:
                return agent
        raise NoAgent(f"no live agent offers {target[:80]!r} now", capability=target[:80])
