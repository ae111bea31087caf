"""Whatever a user's function raises is its own failure: told at once, in words that can be sent, and the node lives on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from node_stage import Caller, Stage, settle, staged_on

from comity.agent import Agent
from comity.errors import ComityError, Refuse
from comity.model import wire
from comity.model.ids import TaskId

staged = staged_on(asyncio.new_event_loop)


class Panic(BaseException):
    """Such as what other languages' libraries raise."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Mute(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]  # noqa: PLE0307


ODD: list[tuple[BaseException, str]] = [
    (Panic("lost"), "Panic"),
    (KeyboardInterrupt(), "KeyboardInterrupt"),
    (GeneratorExit(), "GeneratorExit"),
    (Speechless(), "Speechless"),
    (Mute(), "Mute"),
    (ValueError("caf\udce9"), "ValueError"),
    (ComityError(object()), "error"),  # type: ignore[arg-type]
]


def odd_agent(error: BaseException) -> Agent:
    agent = Agent("a")

    @agent.capability
    async def listens() -> None:
        raise error

    @agent.capability
    def plain() -> None:
        raise error

    @agent.capability
    async def fine() -> str:
        return "fine"

    return agent


@pytest.mark.parametrize(("error", "code"), ODD, ids=[code for _, code in ODD])
@pytest.mark.parametrize("name", ["listens", "plain"])
@staged
async def test_an_attempt_fails_with_it(stage: Stage, name: str, error: BaseException, code: str) -> None:
    _, leader = await stage.started(odd_agent(error))
    leader.assign(name)
    failed = await leader.next(wire.Failed)
    assert failed.failure.code == code
    assert failed.failure.message == failed.failure.message.encode().decode()
    leader.say("n1", settle(failed))
    leader.assign("fine", epoch=2)
    assert await leader.done() == "fine"


@pytest.mark.parametrize(("error", "code"), ODD, ids=[code for _, code in ODD])
@pytest.mark.parametrize("name", ["listens", "plain"])
@staged
async def test_a_caller_is_told(stage: Stage, name: str, error: BaseException, code: str) -> None:
    await stage.started(odd_agent(error))
    caller = await Caller.join(stage)
    how, said = await caller.ask("n1/a", topic=name)
    assert (how, said["code"]) == ("failure", code)
    assert await caller.ask("n1/a", topic="fine") == ("inform", "fine")


@pytest.mark.parametrize("reason", [None, ["a", "list"], "caf\udce9", 7])
@staged
async def test_a_refusal_says_anything(stage: Stage, reason: Any) -> None:
    _, leader = await stage.started(odd_agent(Refuse(reason)))
    caller = await Caller.join(stage)
    leader.assign("listens", task=TaskId("t1"))
    declined = await leader.next(wire.Declined)
    assert declined.reason == str(reason).encode("utf-8", "backslashreplace").decode()
    assert await caller.ask("n1/a", topic="listens") == ("refuse", {"message": declined.reason})
