"""The leader's schedules: who may make them, and what it does about times at which it did not lead."""

from __future__ import annotations

from typing import Any

import msgspec
from peers import Peer, World, a_while, until

from comity.controller.controller import Controller
from comity.model import wire
from comity.model.ids import TaskId
from comity.model.task import DropSchedule, Schedule, TaskSpec


def spec(peer: Peer, **more: Any) -> TaskSpec:
    more = {"input": b"{}", "submitter": peer.name} | more
    return TaskSpec(TaskId(""), "echo", **more)


async def add(peer: Peer, cron: str = "* * * * *", name: str = "tick", **more: Any) -> Any:
    await peer.say(wire.AddSchedule(7, name, cron, "UTC", spec(peer, **more)))
    answer = await peer.hear(wire.Answer, lambda a: a.ref == 7)
    return answer.code or msgspec.json.decode(answer.body)


def fired(controller: Controller) -> list[str]:
    return [task.spec.key for task in controller.state.tasks.values()]


async def test_times_at_which_nobody_led_are_made_up_for_by_one_late_firing() -> None:
    world = World()
    world.wall += 30 - world.now() % 60  # far from the full minute, before and after
    first = await world.controller("k1")
    client = await world.peer("c1")
    answer = await add(client)
    assert (answer["name"], answer["fired"], answer["last"]) == ("tick", 0, None)
    await first.stop()
    world.wall += 3 * 3600
    second = await world.controller("k2")
    await until(lambda: len(fired(second)) == 1)
    assert second.state.schedules["tick"].fired == 1
    await client.say(wire.FollowEvents(8, after=0))
    said = await client.hear(wire.EventNotice, lambda n: b"schedule.fired" in n.body)
    assert "late: 100 due before were missed" in msgspec.json.decode(said.body)["reason"]
    await a_while(0.6)
    assert len(fired(second)) == 1
    await second.stop()


async def test_nothing_fires_while_nothing_is_taken_in() -> None:
    world = World(max_waiting=2)
    controller = await world.controller()
    client = await world.peer("c1")
    await add(client, "* * * * * *")
    await until(lambda: controller.state.waiting == 2)
    count = controller.state.schedules["tick"].fired
    await a_while(1.3)
    assert (controller.state.waiting, controller.state.schedules["tick"].fired) == (2, count)
    await controller.stop()


async def test_what_a_schedule_submits_is_checked_as_a_submit_is() -> None:
    world = World()
    controller = await world.controller()
    client = await world.peer("c1")
    assert await add(client, priority=77) == "bad-input"
    assert await add(client, key="mine") == "bad-input"
    assert await add(client, "* * 31 2 *") == "bad-input"
    assert await add(client, input=b"x" * 1025) == "too-large"
    assert await add(client, input=b"{") == "invalid-input"
    assert await add(client, name="no/such") == "bad-input"
    assert await client.ask("schedules") == {"schedules": []}
    assert await client.ask("remove-schedule", id="tick") == "not-found"
    await controller.stop()


async def test_one_that_cannot_be_read_here_is_said_and_left() -> None:
    world = World()
    controller = await world.controller()
    client = await world.peer("c1")
    await client.say(wire.FollowEvents(8))
    await add(client)
    state = controller.state
    state.schedules["odd"] = Schedule("odd", "* * * * *", "Mars/Base", spec(client))
    said = await client.hear(wire.EventNotice, lambda n: b"schedule.unreadable" in n.body)
    assert "Mars/Base" in msgspec.json.decode(said.body)["reason"]
    listed = (await client.ask("schedules"))["schedules"]
    assert [(one["name"], one["next"] is None) for one in listed] == [("odd", True), ("tick", False)]
    assert controller.leading is not None
    controller.leading.leader.propose(DropSchedule("odd"))
    await until(lambda: "odd" not in state.schedules)
    await controller.stop()
