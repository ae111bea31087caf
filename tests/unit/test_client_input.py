"""What a client is given and cannot send: refused at once, by a typed error, and nothing of it leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from stand_in import ground

from comity.client import Client
from comity.errors import BadInput, NotSerializable
from comity.model import wire
from comity.model.capability import Requirements

NAN = float("nan")
ODD = "a\udcff"
TASK = "0" * 24
Try = Callable[[Client], Awaitable[Any]]


async def events(client: Client, **options: Any) -> None:
    async for _ in client.events(**options):
        return


async def of_task(client: Client, after: int) -> None:
    async for _ in client.task(TASK).events(after):
        return


@pytest.mark.parametrize("timeout", [NAN, float("inf"), 1e300, -5, 0, "5", True])
async def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    async with ground() as g:
        await g.leader()
        client = await g.client()
        task = client.task(TASK)
        waits: dict[str, Callable[[], Awaitable[Any]]] = {
            "request": lambda: client.request("n1/a", 1, timeout=timeout),
            "ready": lambda: client.ready(timeout),
            "result": lambda: task.result(timeout),
            "status": lambda: task.status(timeout),
            "why": lambda: task.why(timeout),
            "cancel": lambda: task.cancel("", timeout),
            "rate": lambda: task.rate(0.5, timeout),
            "shutdown": lambda: client.shutdown("0" if timeout == 0 else timeout),
        }
        for name, wait in waits.items():
            with pytest.raises(BadInput, match="timeout"):
                await wait()
                pytest.fail(name)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda c: c.submit("x", ODD),
        lambda c: c.submit("x", {"a": [ODD]}),
        lambda c: c.submit("x", {ODD: 1}),
        lambda c: c.submit_many("x", [1, ODD]),
        lambda c: c.submit("x", NAN),
        lambda c: c.submit("x", {"a": NAN, "b": None}),
        lambda c: c.request("n1/a", [NAN]),
    ],
)
async def test_an_input_without_a_form_in_json(attempt: Try) -> None:
    async with ground() as g:
        leader = await g.leader()
        client = await g.client()
        with pytest.raises(NotSerializable):
            await attempt(client)
        assert not leader.all(wire.SubmitTask)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda c: c.submit(ODD),
        lambda c: c.submit("x", key=ODD),
        lambda c: c.submit("x", key="k" * 501),
        lambda c: c.submit("x", key=5),
        lambda c: c.submit("x", tags=[ODD]),
        lambda c: c.submit("x", tags=["a b"]),
        lambda c: c.submit("x", tags=""),
        lambda c: c.submit("x", tags=[1]),
        lambda c: c.submit("x", requirements=Requirements(labels={"a": ODD})),
        lambda c: c.submit("x", requirements=Requirements(tags=(1,))),
        lambda c: c.submit("x", requirements=Requirements(gpu=NAN)),
        lambda c: c.submit("x", requirements={"gpu": 1}),
        lambda c: c.submit("x", priority=True),
        lambda c: c.submit("x", retries=10**20),
        lambda c: c.submit("x", retries=1.5),
        lambda c: c.submit("x", deadline_s=1e300),
        lambda c: c.submit("x", deadline_s="5"),
        lambda c: c.submit("x", attempt_timeout_s=1e300),
        lambda c: c.submit("x", start_timeout_s=float("inf")),
        lambda c: c.request(ODD, 1),
        lambda c: c.request("n1/a", 1, topic=ODD),
        lambda c: c.request("n1/a", 1, topic="t" * 201),
        lambda c: c.request("no node/a", 1),
        lambda c: c.request("x", 1, requirements=Requirements(kind=ODD)),
        lambda c: c.send(f"{ODD}/a", 1),
        lambda c: c.send("n1/a", 1, conversation=ODD),
        lambda c: c.send("n1/a", 1, in_reply_to=ODD),
        lambda c: c.broadcast(1, topic=ODD),
        lambda c: c.broadcast(1, tags=[ODD]),
        lambda c: c.discover(tags=["a b"]),
        lambda c: c.cancel(TASK, ODD),
        lambda c: c.cancel(TASK, "x" * 2001),
        lambda c: c.pause(f"n1/{ODD}"),
        lambda c: c.tasks(state="foo"),
        lambda c: c.tasks(before="xx"),
        lambda c: c.tasks(capability=ODD),
        lambda c: c.set_strategy(ODD, "least_loaded"),
        lambda c: events(c, after=10**20),
        lambda c: events(c, after="1"),
        lambda c: of_task(c, 10**20),
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(attempt: Try) -> None:
    async with ground(request_timeout_s=5.0) as g:
        leader = await g.leader()
        node = await g.node()
        client = await g.client()
        await client.directory.ready(10.0)
        with pytest.raises(BadInput):
            await attempt(client)
        asked = [item.what for item in leader.all(wire.Ask)]
        assert not set(asked) - {"hello"} and not leader.all(wire.SubmitTask) and not leader.all(wire.CancelTask)
        assert not node.all(wire.Message)


async def test_a_topic_is_one_line() -> None:
    async with ground() as g:
        client = await g.client()
        for topic in ("", ODD, "\x1b[31m", "t" * 201):
            with pytest.raises(BadInput, match="topic"):
                client.on(topic)
