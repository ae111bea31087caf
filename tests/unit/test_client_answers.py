"""Answers to what tasks ask, as a client gives them."""

from __future__ import annotations

import msgspec
import pytest
from stand_in import ground

from comity.errors import Conflict, NotSerializable
from comity.model import wire
from comity.model.ids import ProcessId
from comity.model.task import LOG_LIMIT, Stored
from comity.store.memory import MemoryStore


async def test_an_answer_is_given_and_its_task_shown() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")

        def take(item: wire.AnswerTask, sender: ProcessId) -> None:
            refused = item.name == "other"
            body = {"message": "it asks for something else"} if refused else {"state": "waiting"}
            leader.say(sender, wire.Answer(item.ref, "conflict" if refused else "", msgspec.json.encode(body)))

        leader.answers[wire.AnswerTask] = take
        assert await task.answer({"ok": True}) == {"state": "waiting"}
        said = leader.all(wire.AnswerTask)[0]
        assert (said.task, said.name, said.answer) == (task.id, "", b'{"ok":true}')
        with pytest.raises(Conflict, match="something else"):
            await task.answer(1, name="other")
        with pytest.raises(NotSerializable):
            await task.answer(object())
        await task.answer("x" * LOG_LIMIT)
        large = leader.all(wire.AnswerTask)[-1].answer
        assert isinstance(large, Stored) and large.key.startswith(f"c1/answers/{task.id}/")
        assert len(await MemoryStore(g.values).read(large.key)) == LOG_LIMIT + 2
