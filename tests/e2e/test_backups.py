"""Backups of a network that works, networks made of them, and damage on a disk: real processes, a real server, real files."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from town import LIMIT_S, Town, kill, story

from comity.backup.targets import open_target
from comity.cli.backing_up import back_up
from comity.config import Settings
from comity.errors import ForeignData, Unreachable
from comity.log.jetstream import JetStreamLog
from comity.model.ids import EPOCH_BITS
from conftest import need_server

pytestmark = pytest.mark.server
DETECT_S = 60.0


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    (tmp_path / "first").mkdir()
    async with Town(tmp_path / "first") as town:
        yield town


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Town]:
    """Where a restored network lives."""
    (tmp_path / "second").mkdir()
    async with Town(tmp_path / "second") as town:
        yield town


async def comity(town: Town, *words: str) -> tuple[int, Any]:
    """Type a command; its exit code, and its answer or its error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comity", *words, "-o", "json",
        env=town.env, cwd=town.folder, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return process.returncode, json.loads(err.splitlines()[-1])["error"] if process.returncode and err else json.loads(out)


async def ok(town: Town, *words: str) -> Any:
    code, said = await comity(town, *words)
    assert code == 0, said
    return said


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_backup_under_load_is_restored_and_its_open_tasks_finish(town: Town, other: Town) -> None:
    up = await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    done = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(100)])
    await asyncio.gather(*(task.result() for task in done))
    large = await net.submit("nobody_does", {"text": "x" * 300_000})
    logged = await net.submit("nobody_does", {"text": "y" * 5_000})
    running = await net.submit_many("work", [{"number": n, "seconds": 30.0} for n in range(1000, 1004)], retries=0)
    async with story(net) as told:
        await told.until(lambda _: len(told.count("task.started")) >= len(done) + len(running))
    load = asyncio.create_task(busy(net))
    first = await ok(town, "backup", "create", "--to", "backups")
    second = await ok(town, "backup", "create", "--to", "backups")
    load.cancel()
    await asyncio.wait([load])
    assert (first["first"], second["first"], first["keys"], first["missing"]) == (True, False, False, [])
    assert second["index"] > first["index"] and second["reused_pieces"] > 0
    assert [row["name"] for row in await ok(town, "backup", "list", "--from", "backups")] == [first["name"], second["name"]]
    for made in (first, second):
        assert (await ok(town, "backup", "verify", made["name"], "--from", "backups"))["checked_bytes"] == made["bytes"]
    epochs = [(await task.status())["epoch"] for task in running]
    lag = (await net.stats())["loop_lag"]
    print("the leader's loop while it was copied:", lag)

    code, error = await comity(town, "backup", "restore", "--from", "backups", "--data", str(town.data))
    assert (code, error["code"]) == (1, "already-running")
    await kill(up)
    code, error = await comity(town, "backup", "restore", "--from", "backups", "--data", str(town.data))
    assert (code, error["code"]) == (6, "conflict") and "not empty" in error["message"]

    made = await ok(town, "backup", "restore", "--from", "backups", "--data", str(other.data))
    assert (made["new_generation"], made["name"]) == (1, second["name"])
    assert made["new_network_id"] != made["network_id"]
    await other.up()
    await other.hire("n1")
    net = await other.client()
    assert (await net.stats())["restored_from"] == f"entry {second['index']} of network {second['network_id']}"
    assert await asyncio.gather(*(net.task(task.id).result(timeout=LIMIT_S) for task in done)) == [n * n for n in range(100)]
    for task, epoch in zip(running, epochs, strict=True):
        found = await net.task(task.id).status()
        assert found["attempts"][0]["ending"] == "evicted" and found["retries_used"] == 0
        if found["state"] != "waiting":
            assert found["epoch"] >> EPOCH_BITS == 1 and found["epoch"] > epoch
    text = await net.task(large.id).status(), await net.task(logged.id).status()
    assert [found["state"] for found in text] == ["submitted", "submitted"]
    async with story(net) as told:
        event = await told.until(lambda event: event["type"] == "network.restored")
        assert event["index"] == 1 and second["network_id"] in event["reason"]
    async with asyncio.timeout(LIMIT_S):
        while not (numbers := other.runs()):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    await other.hire("n2")
    again = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(50)])
    assert await asyncio.gather(*(task.result() for task in again)) == [n * n for n in range(50)]
    assert not {*numbers} & {*range(100)}, "what was finished is not done again"


async def busy(net: Any) -> None:
    """Submit without end."""
    number = 5000
    while True:
        tasks = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(number, number + 20)])
        await tasks[0].result()
        number += 20


async def test_open_tasks_run_to_their_end_in_the_restored_network(town: Town, other: Town) -> None:
    await town.up()
    net = await town.client()
    tasks = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(60)])
    big = await net.submit("work", {"number": 60, "seconds": 0.01}, key="big")
    await ok(town, "backup", "create", "--to", "backups")
    await ok(town, "backup", "restore", "--from", "backups", "--data", str(other.data))
    await other.up()
    await other.hire("n1")
    there = await other.client()
    assert await asyncio.gather(*(there.task(task.id).result(timeout=LIMIT_S) for task in [*tasks, big])) == [
        n * n for n in range(61)
    ]
    assert (await there.submit("work", {"number": 60, "seconds": 0.01}, key="big")).id == big.id
    assert (await net.stats())["totals"]["completed"] == 0, "the first network knows nothing of it"


async def test_clients_and_nodes_of_the_old_network_are_told_of_the_new_one(
    town: Town, other: Town, free_port: Callable[[], int]
) -> None:
    port = free_port()
    up = await town.up(port)
    await town.hire("n1")
    net = await town.client()
    await ok(town, "backup", "create", "--to", "backups", "--with-keys")
    await ok(town, "backup", "restore", "--from", "backups", "--data", str(other.data))
    waiting = await net.submit("nobody_does", {})
    await kill(up)
    await other.up(port)
    with pytest.raises(ForeignData, match="now answers in place of"):
        await waiting.result(timeout=LIMIT_S)
    assert await asyncio.wait_for(town.nodes["n1"].wait(), LIMIT_S) == 1
    assert "foreign-data" in town.said()


@pytest.mark.parametrize("how", ["altered", "cut", "newer"])
async def test_a_damaged_or_newer_backup_is_refused_with_its_place(town: Town, other: Town, how: str) -> None:
    await town.up()
    net = await town.client()
    await net.submit("nobody_does", {"text": "x" * 5_000})
    made = await ok(town, "backup", "create", "--to", "backups")
    backups = town.folder / "backups"
    if how == "newer":
        (path,) = backups.glob("manifests/*.json")
        other_name = "20990101T000000.000Z-1-other"
        body = json.loads(path.read_text())["manifest"] | {"format": 2, "name": other_name}
        place = reseal(backups, other_name, body)
        words = (other_name, "--from", "backups")
        expected = "foreign-data"
    else:
        path = max(backups.glob("pieces/*/*"), key=lambda path: path.stat().st_size)
        data = path.read_bytes()
        path.write_bytes(data[:-1] if how == "cut" else data[:99] + bytes([data[99] ^ 1]) + data[100:])
        place, words, expected = path.name, (made["name"], "--from", "backups"), "corrupt"
    for command in (("verify",), ("restore", "--data", str(other.data))):
        code, error = await comity(town, "backup", command[0], *words, *command[1:])
        assert (code, error["code"]) == (1, expected)
        assert place in error["message"]
    assert not other.data.exists()
    assert not list(other.folder.glob(".data*")), "nothing is left"


async def test_where_restores_cannot_be_written_down_the_generation_is_named(town: Town, other: Town) -> None:
    await town.up()
    await ok(town, "backup", "create", "--to", "backups")
    (town.folder / "backups" / "restores").write_text("a file, where a folder must be")
    words = ("backup", "restore", "--from", "backups", "--data", str(other.data), "--network", "second")
    code, error = await comity(town, *words)
    assert (code, error["code"]) == (3, "unreachable") and "--generation" in error["message"]
    assert not other.data.exists()
    assert (await ok(town, *words, "--generation", "7"))["new_generation"] == 7
    assert json.loads((other.data / "network.json").read_text())["network"] == "second"
    code, error = await comity(other, "up", "--port", "0")
    assert (code, error["code"]) == (1, "foreign-data"), "it is called otherwise"


def reseal(backups: Path, name: str, body: dict[str, Any]) -> str:
    from hashlib import blake2b

    text = json.dumps(body, separators=(",", ":"))
    mark = blake2b(text.encode(), digest_size=16).hexdigest()
    (backups / "manifests" / f"{name}.json").write_text(f'{{"digest":"{mark}","manifest":{text}}}\n')
    return f"manifests/{name}.json"


async def test_exit_codes_suit_a_timetable(town: Town, tmp_path: Path) -> None:
    code, error = await comity(town, "backup", "create", "--to", "backups")
    assert (code, error["code"]) == (3, "unreachable")
    code, error = await comity(town, "backup", "list", "--from", "nowhere")
    assert (code, error["code"]) == (5, "not-found")
    (town.folder / "empty").mkdir()
    code, error = await comity(town, "backup", "verify", "--from", "empty")
    assert (code, error["code"]) == (5, "not-found")
    assert await ok(town, "backup", "list", "--from", "empty") == []
    code, error = await comity(town, "backup", "create", "--to", "ftp://x")
    assert (code, error["code"]) == (2, "bad-input")


async def test_a_log_that_cannot_be_opened_for_a_moment_is_waited_for(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await town.up()
    opening, tries = JetStreamLog.open, 0

    async def later(*args: Any, **options: Any) -> JetStreamLog:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unreachable("JetStream: JetStream system temporarily unavailable")
        return await opening(*args, **options)

    monkeypatch.setattr(JetStreamLog, "open", later)
    monkeypatch.setattr("os.nice", lambda _: 0)  # it is this process that would be polite
    loaded = Settings.load({"data_dir": town.data}, env={}, cwd=town.folder)
    made, _ = await back_up(loaded, open_target(str(town.folder / "backups"), create=True), with_keys=False)
    assert made.is_first and tries == 2


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("stream", ["LOG", "STORE"])
async def test_a_flipped_bit_in_the_servers_files_is_told_of_within_a_minute(town: Town, other: Town, stream: str) -> None:
    up = await town.up()
    net = await town.client()
    needle = "a needle in a haystack, of which there is one"
    size = 300_000 if stream == "STORE" else 3_000
    task = await net.submit("nobody_does", {"text": (needle + "-" * size)})
    for n in range(20):
        await net.submit("nobody_does", {"text": f"{n}"})
    blocks = town.data.glob(f"jetstream/*/streams/CY_main_{stream}/msgs/*.blk")
    (block,) = [path for path in blocks if needle.encode() in path.read_bytes()]
    async with story(net) as told:
        with block.open("r+b") as file:
            at = block.read_bytes().index(needle.encode()) + 5
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
        flipped = time.perf_counter()
        async with asyncio.timeout(DETECT_S):
            event = await anext_damage(told)
        print(f"told of after {time.perf_counter() - flipped:.1f} s: {event['place']}: {event['reason']}")
    place = event["place"]
    assert place.startswith("log entry ") if stream == "LOG" else place.endswith(task.id)
    code, found = await comity(town, "doctor")
    (finding,) = [check for check in found["checks"] if check["check"] == "storage"]
    assert code == 1 and finding["verdict"] == "wrong" and place in finding["found"]
    code, said = await comity(town, "backup", "create", "--to", "backups")
    (lost,) = said["details"]["places"]
    assert (code, said["code"]) == (1, "corrupt") and task.id in lost
    (row,) = await ok(town, "backup", "list", "--from", "backups")
    assert (row["damaged"], row["open"]) == ([lost], 21), "the rest was backed up"
    assert (await ok(town, "backup", "verify", "--from", "backups"))["name"] == row["name"]
    await kill(up)
    if stream == "LOG":  # the server cuts the log off at the damage when it starts again
        code, error = await comity(town, "up", "--port", "0", "--http-port", "0")
        assert (code, error["code"]) == (1, "corrupt"), error
    await ok(town, "backup", "restore", "--from", "backups", "--data", str(other.data))
    await other.up()
    assert (await (await other.client()).stats())["tasks"]["submitted"] == 21


async def anext_damage(told: Any) -> dict[str, Any]:
    while True:
        for event in told.told:
            if event["type"] == "storage.damaged":
                found: dict[str, Any] = event
                return found
        told._news.clear()
        await told._news.wait()
