"""The leader's part in mail, item by item: what it takes in, refuses and sends again, and whom it does not believe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from peers import Peer, World, until

from comity.controller import delivering
from comity.controller.controller import Controller
from comity.core.mail import STREAM_KEPT_MS
from comity.model import published, wire
from comity.model.ids import AgentId, TaskIds
from comity.model.mail import Note, Outgoing
from comity.model.payload import Stored
from comity.model.wire_mail import (
    Deliver,
    Grouped,
    InGroups,
    MailDone,
    MailSettled,
    MailTaken,
    SendMail,
    StreamOver,
)

A, B = AgentId("n1/a"), AgentId("n1/b")


class Scene:
    """A leader, a client that sends, a node with two agents that receive."""

    def __init__(self, world: World, controller: Controller, client: Peer, node: Peer) -> None:
        self.world, self.controller, self.client, self.node = world, controller, client, node
        self.stream = self.new_stream()
        self.number = 0

    def new_stream(self, ago_ms: int = 0, seed: int = 1) -> str:
        return TaskIds(lambda: int(self.world.now() * 1000) - ago_ms, seed).next()

    def mail(self, to: str = "n1/a", body: Any = b"1", **about: Any) -> Outgoing:
        fields = {name: about.pop(name) for name in list(about) if name in Note.__struct_fields__}
        note = Note(**{"sender": "c1", "topic": "news", "performative": "inform", "body": body, **fields})
        return Outgoing(note, to if not about.get("group") and "tags" not in about else "", **about)

    async def post(self, *mails: Outgoing) -> MailTaken:
        """Send these, and wait until the last is answered."""
        for mail in mails or (self.mail(),):
            self.number += 1
            await self.client.say(SendMail(self.stream, self.number, mail))
        return await self.client.hear(MailTaken, lambda taken: taken.upto >= self.number)

    async def refused(self, mail: Outgoing) -> str:
        """With which code."""
        taken = await self.post(mail)
        return {number: code for number, code, _ in taken.refused}[self.number]

    async def again(self, life: int) -> None:
        """The node is killed, and started again."""
        await self.node.kill()
        await until(lambda: "n1" not in self.controller.state.nodes and A not in self.controller.census.agents)
        self.node = await self.world.peer("n1")
        await self.node.join("a", "b", incarnation=life)

    async def delivered(self, *numbers: int) -> Deliver:
        return await self.node.hear(Deliver, lambda deliver: tuple(mail.number for mail in deliver.mails) == numbers)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(delivering, "REPEAT_S", 0.1)
    monkeypatch.setattr(delivering, "PULSE_S", 0.05)
    world = World(max_mailbox=300)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", "b")
    yield Scene(world, controller, client, node)
    await controller.stop()


async def test_mail_is_taken_once_and_delivered_until_it_is_acknowledged(scene: Scene) -> None:
    assert await scene.post() == MailTaken(scene.stream, 0, 1)
    first = await scene.delivered(1)
    assert (first.agent, first.after, first.mails[0].is_repeat) == (A, 0, False)
    await scene.client.say(SendMail(scene.stream, 1, scene.mail()))
    assert (await scene.client.hear(MailTaken)).upto == 1, "a repeated mail is answered again"
    again = await scene.delivered(1)
    assert again.after == 0 and again.mails[0].left_ms < first.mails[0].left_ms, "who does not acknowledge is given it again"
    await scene.node.say(MailDone(((A, (1,)),)), MailDone(((A, (1,)),)))
    await scene.node.hear(MailSettled, lambda settled: settled.done == ((A, (1,)),))
    await scene.node.say(MailDone(((A, (1,)),)))
    await scene.node.hear(MailSettled)
    assert not scene.controller.state.mail.letters and scene.controller.state.mail.taken == 1


async def test_a_gap_waits_and_an_old_stream_is_over(scene: Scene) -> None:
    await scene.client.say(SendMail(scene.stream, 2, scene.mail()), SendMail(scene.stream, 1, scene.mail()))
    assert (await scene.client.hear(MailTaken)).upto == 1
    await scene.client.say(SendMail(scene.new_stream(ago_ms=5000), 1, scene.mail()))
    assert await scene.client.hear(StreamOver)
    other = await scene.world.peer("c2")
    await other.say(SendMail(scene.new_stream(ago_ms=STREAM_KEPT_MS + 5000), 1, scene.mail(sender="c2")))
    assert await other.hear(StreamOver)
    before = scene.controller.stats()["malformed_messages"]
    await other.say(SendMail("no stream", 1, scene.mail(sender="c2")))
    await until(lambda: scene.controller.stats()["malformed_messages"] > before)
    newer = scene.new_stream(ago_ms=-10)
    await scene.client.say(SendMail(newer, 1, scene.mail()))
    assert (await scene.client.hear(MailTaken, lambda taken: taken.stream == newer)).upto == 1


@pytest.mark.parametrize(
    ("code", "about"),
    [
        ("access-denied", {"sender": "n1/a"}),
        ("access-denied", {"body": Stored("n1/mail/x", 5000, b"d" * 16)}),
        ("bad-input", {"body": Stored("c1/mail/x", 5000, b"d")}),
        ("bad-input", {"performative": "shout"}),
        ("bad-input", {"ttl_ms": -1}),
        ("bad-input", {"group": "no such name"}),
        ("bad-input", {"to": "n 1/a"}),
        ("too-large", {"body": b"x" * 1025}),
        ("too-large", {"topic": "x" * 201}),
        ("too-large", {"conversation": "x" * 501}),
        ("unknown-agent", {"to": "nobody"}),
        ("not-found", {"group": "none"}),
        ("no-agent", {"tags": ("none",)}),
    ],
)
async def test_what_cannot_be_sent_is_refused_and_stays_so(scene: Scene, code: str, about: dict[str, Any]) -> None:
    assert await scene.refused(scene.mail(**about)) == code
    await scene.client.say(SendMail(scene.stream, 1, scene.mail()))
    again = await scene.client.hear(MailTaken)
    assert again.refused[0][:2] == (1, code), "whatever is sent under its number later"
    assert (await scene.post()).upto == 2


async def test_names_and_capabilities_are_looked_up_by_the_leader(scene: Scene) -> None:
    for _ in range(2):
        await scene.post(scene.mail(to="echo"))
    assert {letter.receivers for letter in scene.controller.state.mail.letters.values()} == {(A,), (B,)}
    other = await scene.world.peer("n2")
    await other.join("a")
    await until(lambda: AgentId("n2/a") in scene.controller.census.agents)
    assert await scene.refused(scene.mail(to="a")) == "bad-input", "two are called so"
    await scene.post(scene.mail(to="b"))
    assert scene.controller.state.mail.letters[3].receivers == (B,)
    await scene.post(scene.mail(tags=()))
    assert len(scene.controller.state.mail.letters[4].receivers) == 3
    await scene.controller.registry.put("agents/n2/0", published.encode_agents([]))
    await until(lambda: AgentId("n2/a") not in scene.controller.census.agents)
    await scene.post(scene.mail(to="a"))
    assert scene.controller.state.mail.letters[5].receivers == (A,)


async def test_an_agent_has_a_window_of_its_mail(scene: Scene) -> None:
    await scene.post(*[scene.mail() for _ in range(300)])
    assert await scene.refused(scene.mail()) == "mailbox-full"
    had: list[int] = []
    while len(had) < 300:
        due = len(had) + 1
        deliver = await scene.node.hear(Deliver, lambda deliver, due=due: deliver.mails[0].number == due)
        assert deliver.after in (0, len(had)) and len(deliver.mails) <= delivering.DELIVERED
        had += [mail.number for mail in deliver.mails]
        assert len(had) <= delivering.WINDOW or had[-1] - had[0] <= 300
        await scene.node.say(MailDone(((A, tuple(mail.number for mail in deliver.mails)),)))
    assert had == list(range(1, 301))
    await until(lambda: not scene.controller.state.mail.letters)


async def test_who_is_full_is_left_out_and_told_of(scene: Scene) -> None:
    await scene.post(*[scene.mail() for _ in range(300)])
    assert not (await scene.post(scene.mail(tags=()))).refused
    letter = scene.controller.state.mail.letters[301]
    assert letter.receivers == (B,) and (301, A) in scene.controller.state.mail.dead
    found = await scene.client.ask("receipts", id=letter.id)
    assert found["state"] == "waiting" and found["dead"][0]["code"] == "mailbox-full" and found["has_not"] == [B]


async def test_nobody_speaks_for_another_nodes_agents(scene: Scene) -> None:
    await scene.post()
    other = await scene.world.peer("n2")
    await other.join("a")
    before = scene.controller.stats()["malformed_messages"]
    await other.say(MailDone(((A, (1,)),), ((A, 1, "no", "no"),)), InGroups(((A, "ops", True),)))
    await until(lambda: scene.controller.stats()["malformed_messages"] > before)
    assert list(scene.controller.state.mail.letters) == [1] and not scene.controller.state.mail.groups


async def test_groups_are_durable_before_the_node_is_told(scene: Scene) -> None:
    joins = InGroups(((A, "ops", True), (B, "ops", True), (A, "ops", True)))
    await scene.node.say(joins)
    assert (await scene.node.hear(Grouped)).changes == joins.changes
    assert list(scene.controller.state.mail.groups["ops"]) == [A, B]
    await scene.node.say(InGroups(((B, "ops", False), (B, "never", False))))
    await scene.node.hear(Grouped)
    assert (await scene.client.ask("groups", name="ops"))["count"] == 1
    assert not (await scene.post(scene.mail(group="ops"))).refused


async def test_what_a_function_cannot_take_is_buried(scene: Scene) -> None:
    await scene.post()
    await scene.node.say(MailDone((), ((A, 1, "ValueError", "no"),)))
    await scene.node.hear(MailSettled, lambda settled: settled.done == ((A, (1,)),))
    (dead,) = (await scene.client.ask("mail-dead"))["dead"]
    assert (dead["receiver"], dead["code"], dead["body"]) == (A, "ValueError", 1)


async def test_mail_that_takes_its_node_down_gets_its_last_chance_alone(scene: Scene) -> None:
    """The first mail kills the node; those of another sender and to another agent that were beside it are not buried with it."""
    await scene.post(scene.mail(), scene.mail(conversation="behind it"))
    other = await scene.world.peer("c2")
    stream = scene.new_stream(seed=2)
    for number, to in enumerate(("n1/a", "n1/b"), 1):
        await other.say(SendMail(stream, number, scene.mail(to, sender="c2")))
    await other.hear(MailTaken, lambda taken: taken.upto == 2)
    for life in (2, 3):
        await scene.node.hear(Deliver, lambda deliver: 4 in [mail.number for mail in deliver.mails])
        await scene.again(life)
    mail = scene.controller.state.mail
    assert mail.losses == {(1, A): 2, (3, A): 2, (4, B): 2}, "of each sender the first that its agent had"
    await scene.delivered(1)
    await scene.again(4)
    assert [key for key, dead in mail.dead.items() if dead.code == "poison"] == [(1, A)]
    for number, agent in ((3, A), (4, B)):
        assert (await scene.delivered(number)).mails[0].is_repeat
        await scene.node.say(MailDone(((agent, (number,)),)))
    await scene.delivered(2)
    await scene.node.say(MailDone(((A, (2,)),)))
    await until(lambda: not mail.letters and not mail.losses)


async def test_mail_of_an_attempt_that_reaches_nobody_is_dead(scene: Scene) -> None:
    task = await scene.client.submit()
    run = await scene.node.hear(wire.Run)
    lost = scene.mail(to="nobody", sender="n1/a")
    await scene.node.say(wire.Done(task, run.epoch, b"1", 1, (lost, scene.mail(to="n1/b", sender="n1/a"))))
    await scene.client.hear(wire.Ended)
    mail = scene.controller.state.mail
    assert [(dead.receiver, dead.code) for dead in mail.dead.values()] == [("nobody", "unknown-agent")]
    assert [letter.id for letter in mail.letters.values()] == [f"{task}/end/2"]


async def test_an_attempt_that_sends_in_anothers_name_fails(scene: Scene) -> None:
    task = await scene.client.submit(retries=0)
    run = await scene.node.hear(wire.Run)
    await scene.node.say(wire.StepDone(task, run.epoch, "one", b"1", (scene.mail(sender="n2/a"),)))
    assert (await scene.node.hear(wire.Recorded)).code == "access-denied"
    await scene.node.say(wire.Done(task, run.epoch, b"1", 1, (scene.mail(sender="n2/a"),)))
    ended = await scene.client.hear(wire.Ended)
    assert ended.failure is not None and ended.failure.code == "access-denied"
    assert not scene.controller.state.mail.letters
