"""Backups: what comes back, what is written twice, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backed import BIG, HUGE, Town, complete, create, restored, town, until

from comity.backup import contents
from comity.backup import manifest as manifests
from comity.backup.check import check
from comity.backup.create import referred
from comity.backup.manifest import Manifest
from comity.backup.restore import restore
from comity.backup.targets import FolderTarget
from comity.controller import keeping, snapshot
from comity.core.tasks import Tasks
from comity.errors import BadInput, Conflict, Corrupt, ForeignData, NotFound
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model import wire, wire_mail
from comity.model.ids import EPOCH_BITS, NetworkId, ProcessId, TaskId, TaskIds
from comity.model.mail import Note, Outgoing
from comity.model.records import Records, Step
from comity.model.task import Dropped, Logged, Stored, Task, TaskFailure, TaskSpec, TaskState
from comity.store.memory import MemoryStore


@pytest.fixture
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    made = await town(monkeypatch)
    yield made
    await made.controller.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "backups"


async def test_what_was_there_comes_back_in_a_network_of_its_own(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    await check(FolderTarget(folder), made)
    assert made.tasks == {"completed": 1, "submitted": 2, "working": 1, "archived": 1}
    world, said = await restored(folder, made, "new")
    assert (said.origin, said.index, said.generation) == ("net", made.index, 1)
    controller = await world.controller("k9")
    controller.state.check()
    client = await world.peer("c9")
    for task in (here.archived, here.finished):
        found = await client.ask("task", id=task)
        assert (found["state"], found["result"]) == ("completed", "done")
    assert (await client.ask("task", id=here.waiting))["state"] == "submitted"
    attempts = (await client.ask("task", id=here.running))["attempts"]
    assert [(attempt["epoch"], attempt["ending"]) for attempt in attempts] == [(here.epoch, "evicted")]
    assert await client.state(here.running) == "waiting"
    assert (await client.ask("task", id=here.running))["retries_used"] == 0
    assert await client.submit(key="once") == here.archived, "keys are kept"
    figures = await client.ask("stats")
    assert figures["totals"]["submitted"] == here.controller.state.totals.submitted
    assert figures["restored_from"] == f"entry {made.index} of network net"
    await controller.stop()


async def test_open_tasks_finish_there_and_old_epochs_count_for_nothing(here: Town, folder: Path) -> None:
    world, _ = await restored(folder, (await create(here, folder)).manifest, "new")
    controller = await world.controller("k9")
    client, node = await world.peer("c9"), await world.peer("n1")
    await client.say(wire.FollowTask((here.running,)))
    await node.say(wire.Done(here.running, here.epoch, b'"from the other network"', 1))
    await node.hear(wire.Settled, lambda s: (here.running, here.epoch) in s.reports)
    assert await client.state(here.running) == "waiting"
    await node.join("a", incarnation=2)
    run = await node.hear(wire.Run)
    assert (run.task, run.number) == (here.running, 2)
    assert run.epoch > 1 << EPOCH_BITS > here.epoch
    await node.say(wire.Done(run.task, run.epoch, b'"here"', 1))
    assert (await client.hear(wire.Ended)).result == b'"here"'
    waiting = controller.state.tasks[here.waiting].spec.input
    assert type(waiting) is Stored
    assert await MemoryStore(world.store).read(waiting.key) == BIG
    assert await MemoryStore(world.store).read("c1/inputs/x") == HUGE
    await controller.stop()


async def test_a_restored_network_lives_on_without_what_it_began_from_being_read_twice(here: Town, folder: Path) -> None:
    """Its own snapshots, its past as events, and another controller."""
    world, _ = await restored(folder, (await create(here, folder)).manifest, "new")
    first = await world.controller("k8")
    await first.stop()
    second = await world.controller("k9")
    assert (second.state.term, second.state.generation) == (first.state.term + 1, 1)
    told = [change.kind async for _, _, changes in second.changes(0, second.ledger.index) for change in changes]
    assert told[:2] == ["leader.elected", "network.restored"]
    assert {"task.requeued"} <= set(told)
    await second.stop()


async def test_without_what_it_began_from_a_network_does_not_begin(here: Town, folder: Path) -> None:
    world, said = await restored(folder, (await create(here, folder)).manifest, "new")
    del world.store.values[said.base.key]
    with pytest.raises(Corrupt, match=said.base.key):
        await world.controller("k9")
    await MemoryStore(world.store).put(said.base.key, b"something else")
    with pytest.raises(Corrupt, match=said.base.key):
        await world.controller("k9")


async def test_the_next_backup_writes_only_what_changed(here: Town, folder: Path) -> None:
    first = await create(here, folder)
    assert (first.is_first, first.reused) == (True, 0)
    again = await create(here, folder)
    assert (again.is_first, again.wrote) == (False, 1), "the head, which says at which entry"
    await here.client.submit("later", input=b"1")
    third = await create(here, folder)
    assert third.wrote == 2, "and the tasks in its group"
    for name in await manifests.names(FolderTarget(folder)):
        await check(FolderTarget(folder), await manifests.read(FolderTarget(folder), name))


async def test_a_value_in_many_pieces_is_found_again_by_its_digest(
    here: Town, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comity.backup.pieces.PIECE", 100_000)
    first = await create(here, folder)
    (held,) = [held for held in first.manifest.objects if held.key == "c1/inputs/x"]
    assert [piece.size for piece in held.pieces] == [100_000, 100_000, 100_000, 2]
    read = []
    store = Watched(MemoryStore(here.world.store), read.append)
    assert (await create(here, folder, store=store)).wrote == 1
    assert "c1/inputs/x" not in read
    await check(FolderTarget(folder), first.manifest)


class Watched(MemoryStore):
    """Tells of each value before it is read, and of each look at all of them when it is over."""

    def __init__(self, inner: MemoryStore, reads: Callable[[str], Any], listed: Callable[[], Any] = lambda: None) -> None:
        super().__init__(inner.state)
        self._reads = reads
        self._listed = listed

    async def get(self, key: str) -> AsyncIterator[bytes]:
        self._reads(key)
        async for chunk in super().get(key):
            yield chunk

    async def list(self, prefix: str) -> list[Stored]:
        found = await super().list(prefix)
        if not prefix:
            self._listed()
        return found


async def test_what_goes_while_it_is_copied_does_not_tear_it(here: Town, folder: Path) -> None:
    """An archive chunk is dropped after the state that names it was read."""
    state = here.controller.state
    key = state.archive[0].key

    def drop(_: str = "") -> None:
        if key in here.world.store.values:
            here.world.store.values.pop(key)
            assert here.controller.leading is not None
            here.controller.leading.leader.propose(Dropped((key,)))

    made = await create(here, folder, store=Watched(MemoryStore(here.world.store), lambda _: None, drop))
    assert made.tries == 2
    assert key not in [held.key for held in made.manifest.objects]
    assert made.manifest.tasks["archived"] == 0
    await check(FolderTarget(folder), made.manifest)


async def test_a_log_trimmed_while_it_is_copied_does_not_tear_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its payloads went to the store first, which the next moment's state says."""
    here = await town(monkeypatch, snapshot_every=5, keep_finished=1)
    monkeypatch.setattr("comity.controller.payloads.HOT_BYTES", 1)

    class Trimmed(MemoryLog):
        async def read(self, after: int, limit: int = 256) -> list[Item]:
            while limit == 1 and self.state.first <= after + 1:
                await here.client.submit("later")
            return await super().read(after, limit)

    made = await create(here, folder, log=Trimmed(here.world.log))
    assert made.tries > 1
    moved = [held.key for held in made.manifest.objects if held.key.startswith(keeping.MOVED)]
    assert len(moved) == 2 and here.world.log.first > 1
    await check(FolderTarget(folder), made.manifest)
    world, _ = await restored(folder, made.manifest, "new")
    assert await MemoryStore(world.store).read(moved[0]) == BIG
    await here.controller.stop()


async def test_a_lost_value_is_named_not_waited_for(here: Town, folder: Path) -> None:
    key = here.controller.state.archive[0].key
    del here.world.store.values[key]
    with pytest.raises(Corrupt, match=key):
        await create(here, folder)
    assert await manifests.names(FolderTarget(folder)) == []


async def test_a_damaged_value_is_left_out_and_said(here: Town, folder: Path) -> None:
    key = here.controller.state.archive[0].key
    here.world.store.values[key].data += b"x"
    made = (await create(here, folder)).manifest
    assert made.damaged == [key]
    await check(FolderTarget(folder), made)


async def test_an_expired_payload_is_said_to_be_missing(here: Town, folder: Path) -> None:
    del here.world.store.values["c1/inputs/x"]
    made = (await create(here, folder)).manifest
    assert made.missing == ["c1/inputs/x"]
    await check(FolderTarget(folder), made)


async def test_a_damaged_log_is_not_copied(here: Town, folder: Path) -> None:
    log = here.world.log
    log.entries[3] = log.entries[3][:-1] + bytes([log.entries[3][-1] ^ 1])
    with pytest.raises(Corrupt, match="log entry 4"):
        await create(here, folder)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :])


@pytest.mark.parametrize("how", ["gone", "cut", "altered"])
async def test_damage_is_refused_with_its_place(here: Town, folder: Path, how: str) -> None:
    made = (await create(here, folder)).manifest
    for piece in [made.state[0], made.payloads[0], made.objects[0].parts[0]]:
        shutil.copytree(folder, copy := folder.with_name(f"{piece.digest}-{how}"))
        damage(copy / piece.name, how)
        with pytest.raises(Corrupt) as caught:
            await check(FolderTarget(copy), made)
        assert piece.name in caught.value.details["places"]
        with pytest.raises(Corrupt, match=piece.digest):
            await restored(copy, made, "new")


async def test_all_damage_is_named(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    for piece in {*made.pieces()}:
        damage(folder / piece.name, "altered")
    with pytest.raises(Corrupt, match=r"; \.\.\.") as caught:
        await check(FolderTarget(folder), made)
    assert sorted(caught.value.details["places"]) == sorted(piece.name for piece in {*made.pieces()})


@pytest.mark.parametrize("how", ["cut", "altered"])
async def test_a_damaged_manifest_is_refused(here: Town, folder: Path, how: str) -> None:
    made = (await create(here, folder)).manifest
    path = folder / made.file
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_bytes(path.read_bytes().replace(b'"index":', b'"index":1'))
    with pytest.raises(Corrupt, match=made.name):
        await manifests.find(FolderTarget(folder))
    again = await create(here, folder)
    assert not again.is_first and again.reused > 1, "it does not keep the next one from being made"
    assert await manifests.find(FolderTarget(folder)) == again.manifest


async def test_a_renamed_manifest_is_refused(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    (folder / made.file).rename(folder / "manifests" / "21000101T000000.000Z-9-net.json")
    with pytest.raises(Corrupt, match=made.name):
        await manifests.find(FolderTarget(folder))


async def test_a_newer_backup_is_refused(here: Town, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = (await create(here, folder)).manifest
    newer = msgspec.structs.replace(made, format=2, name="20990101T000000.000Z-1-net")
    (folder / newer.file).write_bytes(manifests.encode(newer))
    with pytest.raises(ForeignData, match="format 2") as caught:
        await manifests.find(FolderTarget(folder), newer.name)
    assert caught.value.details["place"] == newer.file
    monkeypatch.setattr(snapshot, "FORMAT", snapshot.FORMAT - 1)  # as an older version would see it
    for refused in (check(FolderTarget(folder), made), restored(folder, made, "new")):
        with pytest.raises(ForeignData, match="another version"):
            await refused


async def test_a_state_that_is_not_the_manifests_is_refused(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    with pytest.raises(Corrupt, match="not that after entry"):
        await check(FolderTarget(folder), msgspec.structs.replace(made, index=made.index - 1))
    kept = [held for held in made.objects if not held.key.startswith(keeping.ARCHIVE)]
    with pytest.raises(Corrupt, match=keeping.ARCHIVE):
        await check(FolderTarget(folder), msgspec.structs.replace(made, objects=kept))


async def test_a_backup_is_restored_into_an_empty_network_only(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    world, _ = await restored(folder, made, "new")
    for there in (world, here.world):
        before = dict(there.store.values)
        with pytest.raises(Conflict, match="empty"):
            await restore(
                FolderTarget(folder), made, MemoryLog(there.log), MemoryStore(there.store),
                network_id=there.network_id, generation=9, now_ms=1, keep_s=1.0,
            )  # fmt: skip
        assert there.store.values == before


async def test_each_restored_network_has_a_higher_generation(here: Town, folder: Path) -> None:
    made = (await create(here, folder)).manifest
    _, first = await restored(folder, made, "one")
    world, second = await restored(folder, made, "two")
    assert (first.generation, second.generation) == (1, 2)
    controller, client, node = await world.controller("k9"), await world.peer("c9"), await world.peer("n9")
    await node.join("a")
    await complete(client, node)
    there = Town(world, controller, client, node, *here[4:])
    other = folder.with_name("elsewhere")
    again = (await create(there, other)).manifest
    assert (again.generation, again.last_epoch >> EPOCH_BITS) == (2, 2)
    assert (await restored(other, again, "three"))[1].generation == 3
    (folder / "restores" / "two.json").write_text("{")
    with pytest.raises(Corrupt, match=r"restores/two\.json"):
        await restored(folder, made, "four")
    await controller.stop()


async def test_backups_are_found_by_name_and_the_newest_without(here: Town, folder: Path) -> None:
    target = FolderTarget(folder)
    with pytest.raises(NotFound):
        await manifests.find(target)
    older = (await create(here, folder)).manifest
    here.world.wall += 60
    newer = (await create(here, folder)).manifest
    assert (await manifests.find(target)).name == newer.name
    assert (await manifests.find(target, older.name[:18])).name == older.name
    with pytest.raises(BadInput, match="2 backups"):
        await manifests.find(target, "2")
    with pytest.raises(NotFound, match="nonsense"):
        await manifests.find(target, "nonsense")
    world, _ = await restored(folder, newer, "new")
    there = Town(world, await world.controller("k9"), await world.peer("c9"), *here[3:])
    theirs = (await create(there, folder)).manifest
    with pytest.raises(BadInput, match="several networks"):
        await manifests.find(target)
    assert (await manifests.find(target, theirs.name)).network_id == "new"
    await there.controller.stop()


def test_a_manifest_is_json_that_anybody_can_read() -> None:
    whole = manifests.encode(
        Manifest(
            version="1", name="n", network="main", network_id=NetworkId("net"), at_ms=1, index=1, log_digest="", term=1,
            generation=0, last_epoch=0, entry_ms=1, state=[], payloads=[], objects=[],
        )
    )  # fmt: skip
    read = json.loads(whole)
    assert set(read) == {"digest", "manifest"}
    assert manifests.decode(whole, "here").network_id == "net"


async def test_nothing_else_is_stopped_by_a_backup(here: Town, folder: Path) -> None:
    """The leader goes on: what is submitted while it is copied is accepted, and belongs to the next one."""
    accepted: list[Any] = []

    async def head() -> int:
        accepted.append(await here.client.submit("later"))
        await until(lambda: here.controller.ledger.index > 0)
        return here.controller.ledger.index

    made = await create(here, folder, head=head)
    assert made.manifest.tasks["submitted"] == 3
    assert len(accepted) == 1


async def test_a_payload_in_a_damaged_entry_is_left_out_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot lies after the entry, so it is needed for its payloads alone."""
    here = await town(monkeypatch)
    assert here.controller.leading is not None
    here.controller.leading.keeping.snapshot_wanted = True
    await until(lambda: bool(here.controller.state.snapshots))
    place = here.controller.state.tasks[here.waiting].spec.input
    assert type(place) is Logged
    entries = here.world.log.entries
    entries[place.index - 1] = entries[place.index - 1][:-1]
    made = (await create(here, folder)).manifest
    (lost,) = made.damaged
    assert lost.startswith(f"{keeping.MOVED}{here.waiting}-input-")
    await check(FolderTarget(folder), made)
    world, _ = await restored(folder, made, "new")
    controller = await world.controller("k9")
    assert type(controller.state.tasks[here.waiting].spec.input) is Stored
    await controller.stop()
    await here.controller.stop()


async def fail(here: Town) -> TaskId:
    task = await here.client.submit()
    run = await here.node.hear(wire.Run, lambda run: run.task == task)
    await here.node.say(wire.Failed(task, run.epoch, TaskFailure("broken", "no", retryable=False)))
    await here.client.hear(wire.Ended, lambda ended: ended.task == task)
    return task


async def test_dead_letters_schedules_and_nodes_set_aside_come_back(
    here: Town, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the letters one is in memory, and one in a store object of its own."""
    client, state = here.client, here.controller.state
    await client.say(wire.AddSchedule(1, "nightly", "0 3 * * *", "UTC", client.spec("later", input=b"1")))
    assert (await client.hear(wire.Answer, lambda answer: answer.ref == 1)).code == ""
    old = await fail(here)
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "CHUNK_AGE_MS", 0)
        await until(lambda: old not in state.tasks)
    new = await fail(here)
    await client.ask("drain-node", id="n1", reason="a new disk")
    made = (await create(here, folder)).manifest
    assert state.dead.letters[old].key in {held.key for held in made.objects}
    await check(FolderTarget(folder), made)
    world, _ = await restored(folder, made, "new")
    controller = await world.controller("k9")
    there = controller.state
    there.check()
    assert list(there.dead.letters) == [old, new]
    assert (there.schedules, there.aside) == (state.schedules, state.aside)
    assert set(there.schedules) == {"nightly"} and set(there.aside) == {"n1"}
    found = await (await world.peer("c9")).ask("replay-dead", ids=[old, new])
    assert [one["id"] for one in found["replayed"]] == [old, new]
    await controller.stop()


async def test_mail_and_groups_come_back(here: Town, folder: Path) -> None:
    client, state = here.client, here.controller.state
    kept = await MemoryStore(here.world.store).put("c1/mail/x", HUGE, ttl_s=600)
    stream = TaskIds(lambda: int(here.world.now() * 1000), 7).next()
    for number, body in enumerate((b"1", kept), 1):
        note = Note("c1", "news", "inform", body)
        await client.say(wire_mail.SendMail(stream, number, Outgoing(note, "away/agent")))
    await client.hear(wire_mail.MailTaken, lambda taken: taken.upto == 2)
    await here.node.say(wire_mail.InGroups((("n1/a", "ops", True),)))
    await here.node.hear(wire_mail.Grouped)
    made = (await create(here, folder)).manifest
    assert kept.key in {held.key for held in made.objects}
    await check(FolderTarget(folder), made)
    world, _ = await restored(folder, made, "new")
    controller = await world.controller("k9")
    there = controller.state
    there.check()
    assert there.mail.letters == state.mail.letters and there.mail.groups == state.mail.groups != {}
    assert await MemoryStore(world.store).read(kept.key) == HUGE
    await controller.stop()


async def test_a_backup_without_a_dead_letters_task_is_damaged(
    here: Town, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await fail(here)
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "CHUNK_AGE_MS", 0)
        await until(lambda: old not in here.controller.state.tasks)
    key = here.controller.state.dead.letters[old].key
    made = (await create(here, folder)).manifest
    lacking = msgspec.structs.replace(made, objects=[held for held in made.objects if held.key != key])
    with pytest.raises(Corrupt, match=f"lacks {key}"):
        await check(FolderTarget(folder), lacking)


async def test_what_attempts_recorded_comes_along() -> None:
    records = Records(steps={"plan": Step(Logged(7, 3, 2000), 2000, 10, 1), "read": Step(b'"ok"', 4, 11, 1)})
    task = Task(TaskSpec(TaskId("t1"), "x", b"1", ProcessId("c1")), TaskState.WAITING, 5, records=records)
    state = Tasks(NetworkId("net"))
    state.tasks[task.spec.id] = task
    found = contents.logged(state)
    (key,) = found.keys.values()
    found.stored[7, 3] = Stored(key, 2000, b"d" * 16)
    whole = contents._whole(task, found.stored)
    assert whole.records is not None
    assert [step.result for step in whole.records.steps.values()] == [found.stored[7, 3], b'"ok"']
    assert records.steps["plan"].result == Logged(7, 3, 2000), "the network's own is left alone"
    assert referred(state) == {}
    state.tasks[task.spec.id] = whole
    assert list(referred(state)) == [key]
