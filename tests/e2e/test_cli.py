"""The command line as a user types it: real processes, a real server, a real disk."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from terminal import LIMIT_S, Terminal, terminal

from conftest import need_server

pytestmark = pytest.mark.server
HELLO = str(Path(__file__).parents[2] / "examples" / "hello.py")
WORKER = '''
import asyncio
from comity import Agent, Attempt, Refuse

worker = Agent("worker")
others = [Agent("odd")]

@worker.capability
async def slow(attempt: Attempt, seconds: float) -> str:
    await asyncio.sleep(seconds if attempt.number == 1 else 0.1)
    attempt.log("slept")
    return attempt.agent

@worker.capability
def boom() -> None:
    raise ValueError("no good")

@worker.capability
def wrong() -> int:
    return "seven"

@others[0].capability
def odd(number: int) -> bool:
    return number % 2 == 1
'''


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A network that is up, with the agent of ``examples/hello.py`` on a node, for all tests that only use it."""
    need_server()
    with terminal(tmp_path_factory.mktemp("town")) as user:
        user.up()
        user.node(HELLO, "--name", "hello", "--tag", "extra")
        yield user


def until_leader_sees(user: Terminal, status: str) -> None:
    """Until the leader knows that its only agent is so: it hears of it by the registry."""
    user.until(lambda numbers: numbers["agents"] == {status: 1}, "stats")


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Terminal]:
    """Somebody with an empty home."""
    need_server()
    with terminal(tmp_path) as user:
        (tmp_path / "worker.py").write_text(WORKER)
        yield user


# A network that runs


def test_submit_waits_and_prints_the_result(town: Terminal) -> None:
    assert town.ok("submit", "greet", '{"name": "Ada"}').json == "Hello, Ada!"
    shown = town.comity("submit", "greet", "-", "-o", "table", given='{"name": "Ada", "shout": true}')
    assert shown.out == '"HELLO, ADA!"\n'


def test_a_task_can_be_followed_by_its_id_or_its_beginning(town: Terminal, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"name": "Grace"}')
    (submitted,) = town.ok("submit", "greet", f"@{tmp_path}/input.json", "--no-wait", "--key", "once").lines
    task = submitted["id"]
    again = town.ok("submit", "greet", '{"name": "Grace"}', "--no-wait", "--key", "once").json
    assert again["id"] == task
    events = [event["type"] for event in town.ok("tasks", "watch", task).lines]
    assert events[0] == "task.submitted"
    assert events[-1] == "task.completed"

    shown = town.ok("tasks", "show", task[:22], "--why").json
    assert (shown["id"], shown["state"], shown["agent"], shown["key"]) == (task, "completed", "hello/greeter", "once")
    assert shown["result"] == "Hello, Grace!"
    assert shown["why"]["assignment"]["choice"] == "hello/greeter"
    assert [attempt["ending"] for attempt in shown["attempts"]] == ["completed"]
    listed = town.ok("tasks", "list", "--state", "completed", "--capability", "greet").json
    assert task in [row["id"] for row in listed]
    assert task not in [row["id"] for row in town.ok("tasks", "list", "--before", task[:22]).json]
    assert listed == sorted(listed, key=lambda row: row["id"], reverse=True)
    told = town.ok("events", "--task", task).lines
    assert [event["type"] for event in told] == ["task.submitted", "task.assigned", "task.completed"]


def test_who_is_here(town: Terminal) -> None:
    (agent,) = town.ok("agents", "list", "--tag", "extra", "--capability", "greet").json
    assert (agent["id"], agent["status"], agent["node_state"]) == ("hello/greeter", "active", "alive")
    assert (agent["tags"], agent["capabilities"], agent["concurrency"]) == (["demo", "extra"], ["greet"], 8)
    shown = town.ok("agents", "show", "greeter").json
    assert shown["capabilities"][0]["input_schema"]["required"] == ["name"]
    (node,) = town.ok("nodes", "list").json
    assert {"id": "hello", "state": "alive", "agents": 1}.items() <= node.items()
    for name in ("hello", "hel"):
        assert [row["name"] for row in town.ok("nodes", "show", name).json["agents"]] == ["greeter"]
    assert town.ok("agents", "show", "hello/gr").json["id"] == "hello/greeter"
    town.ok("submit", "greet", '{"name": "Ada"}')
    stats = town.ok("stats").json
    assert (stats["nodes"]["alive"], stats["log_durability"]) == (1, "verified")
    assert stats["totals"]["completed"] >= 1


def test_people_get_tables(town: Terminal) -> None:
    lines = town.ok("agents", "list", "-o", "table").out.splitlines()
    assert lines[0].split() == ["AGENT", "STATUS", "NODE", "LOAD", "TAGS", "CAPABILITIES"]
    assert lines[1].split() == ["hello/greeter", "active", "alive", "0/8", "demo", "extra", "greet"]
    assert lines[0].index("STATUS") == lines[1].index("active")
    shown = town.ok("agents", "show", "greeter", "-o", "table").out
    assert "input   {name: string, shout?: boolean}" in shown
    assert "\x1b" not in shown
    task = town.ok("submit", "greet", '{"name": "Ada"}', "--no-wait", "-o", "table").out.strip()
    town.ok("tasks", "watch", task)
    several = {
        "tasks watch": "task.completed", "tasks show --why": "CANDIDATE", "tasks list": "hello/greeter", "events": task,
        "nodes list": "alive", "nodes show": "greeter", "stats": "durability", "context list": "local", "context show": "main",
    }  # fmt: skip
    about = {"tasks watch": [task], "tasks show --why": [task], "nodes show": ["hello"]}
    commands = [[*words.split(), *about.get(words, []), "-o", "table"] for words in several]
    for (words, wanted), done in zip(several.items(), town.each(*commands), strict=True):
        assert done.code == 0, done
        assert wanted in done.out, words


def test_a_task_that_waits_says_why_in_a_pipe_too(town: Terminal) -> None:
    waiting = town.start("submit", "typo", "{}")
    assert "waits: no agent offers typo" in waiting.told("waits")
    assert waiting.stop() == 130


def test_stats_are_told_again_and_again(town: Terminal) -> None:
    watching = town.start("stats", "--watch")
    first, second = watching.json(), watching.json()
    assert first["log_head"] <= second["log_head"]
    assert watching.stop() == 130


def test_talking_to_an_agent(town: Terminal) -> None:
    assert town.ok("send", "greeter", '"1"', "--topic", "ping").json == "pong 1"
    assert town.ok("send", "hello/greeter", '"1"', "--topic", "ping", "--no-request").out == ""
    assert town.ok("broadcast", '"1"', "--topic", "ping", "--tag", "demo").out == ""


def test_a_paused_agent_gets_nothing_until_it_is_resumed(town: Terminal) -> None:
    assert town.ok("agents", "pause", "greeter").json == {"agent": "hello/greeter", "done": "pause"}
    try:
        until_leader_sees(town, "paused")
        refused = town.comity("submit", "greet", '{"name": "Ada"}', "--no-queue")
        assert (refused.code, refused.error["code"]) == (6, "no-agent")
        task = town.ok("submit", "greet", '{"name": "Ada"}', "--no-wait").json["id"]
        assert "no live agent offers greet" in town.ok("tasks", "show", task).json["reason"]
        canceled = town.ok("tasks", "cancel", task, "--reason", "not needed").json
        assert canceled["state"] == "canceled"
    finally:
        town.ok("agents", "resume", "greeter", "-o", "table")
    assert town.ok("submit", "greet", '{"name": "Ada"}').json == "Hello, Ada!"


WRONG = [
    (["submit", "greet", '{"nam": "Ada"}'], "invalid-input", 2),
    (["submit", "greet", '{"name": "a"}', "--priority", "12"], "bad-input", 2),
    (["submit", "nothing", "--no-queue"], "unknown-capability", 5),
    (["submit", "nothing", "--timeout", "0.2"], "timed-out", 3),
    (["submit", "nothing", "--deadline", "0.2"], "deadline-exceeded", 1),
    (["tasks", "show", "0" * 24], "unknown-task", 5),
    (["tasks", "show", "zzz"], "unknown-task", 5),
    (["tasks", "list", "--state", "happy"], "bad-usage", 2),
    (["agents", "show", "nobody"], "unknown-agent", 5),
    (["nodes", "show", "nobody"], "unknown-node", 5),
    (["send", "nobody/x", "1"], "unknown-agent", 5),
    (["stats", "--connect", "nats://127.0.0.1:9"], "unreachable", 3),
    (["run", HELLO, "--name", "hello"], "conflict", 6),
    (["bench", "recovery", "--fault", "server", "--doors", "log=etcd://127.0.0.1:9"], "bad-settings", 2),
]


def test_what_goes_wrong_is_one_typed_error(town: Terminal) -> None:
    for (words, code, exit_code), done in zip(WRONG, town.each(*(words for words, _, _ in WRONG)), strict=True):
        assert (done.error["code"], done.code) == (code, exit_code), words


def test_a_person_is_told_the_cause_and_what_to_do(town: Terminal) -> None:
    done = town.comity("tasks", "show", "0" * 24, "-o", "table")
    assert done.code == 5
    cause, advice, more = done.err.splitlines()
    assert cause.startswith("error[unknown-task] no task 000")
    assert "comity tasks list" in advice
    assert more.strip() == "comity explain unknown-task"
    assert "Traceback" in town.comity("--debug", "tasks", "show", "0" * 24).err


def test_credentials_of_another_network_are_refused(town: Terminal, user: Terminal) -> None:
    user.up("--network", "other")
    theirs = user.data.parent / "other" / "client.creds"
    url = town.ok("context", "show").json["urls"][0]
    done = user.comity("stats", "--connect", url, "--credentials", str(theirs), "--network", "other")
    assert (done.error["code"], done.code) == ("access-denied", 4)
    done = user.comity("stats", "--connect", url, "--credentials", str(theirs), "--network", "main")
    assert (done.error["code"], done.code) == ("bad-settings", 2)
    assert user.comity("stats", "--network", "other").code == 0


def test_contexts_name_connections(town: Terminal, user: Terminal) -> None:
    local = town.ok("context", "show").json
    added = user.ok("context", "add", "work", local["urls"][0], "--credentials", str(town.data / "client.creds")).json
    assert (added["name"], added["current"]) == ("work", True)
    assert user.ok("stats").json["nodes"]["alive"] == 1


def test_another_machine_is_invited(user: Terminal) -> None:
    """With TLS. The other machine is another home: it has none of the network's files but what was copied there."""
    user.up("--listen", "127.0.0.1")
    for name, role in (("gpu-1", "node"), ("desk", "client")):
        said = user.ok("context", "invite", name, "--role", role, "--ttl", "1h").json
        assert (said["file"], said["role"]) == (f"{name}.invite", role)
        assert stat.S_IMODE((user.folder / f"{name}.invite").stat().st_mode) == 0o600
    assert user.comity("context", "invite", "desk", "--role", "client").error["code"] == "conflict"
    there_folder = user.folder / "there"
    there_folder.mkdir()
    with terminal(there_folder) as there:
        (there_folder / "worker.py").write_text(WORKER)
        for name in ("gpu-1", "desk"):
            (user.folder / f"{name}.invite").rename(there_folder / f"{name}.invite")
            assert there.ok("context", "import", f"{name}.invite").json["process"] == name
        there.ok("context", "use", "desk")
        there.node("worker.py", "--context", "gpu-1")
        assert there.ok("submit", "slow", '{"seconds": 0}').json == "gpu-1/worker"
        assert [node["id"] for node in user.ok("nodes", "list").json] == ["gpu-1"]
        done = there.comity("stats", "--context", "gpu-1")
        assert (done.error["code"], done.code) == ("bad-settings", 2)
        done = there.comity("run", "worker.py", "--context", "gpu-1", "--name", "gpu-2")
        assert (done.error["code"], done.code) == ("bad-settings", 2)
        done = there.comity("run", "worker.py", "--context", "gpu-1")
        assert done.error["code"] == "conflict", "that node runs"
        done = there.comity("context", "invite", "more", "--role", "node")
        assert (done.error["code"], done.code) == ("access-denied", 4)


def test_doctor_finds_what_is_wrong(town: Terminal) -> None:
    names = ("nats-server", "data", "credentials", "network", "log", "clock", "replicas")

    def is_well(found: dict[str, Any]) -> bool:
        seen = {check["check"]: check["verdict"] for check in found["checks"]}
        return bool(found["healthy"]) and [seen.get(name) for name in names] == ["ok"] * 7

    town.until(is_well, "doctor")  # an answer that is slow makes a clock seem wrong
    keys = town.data / "keys"
    keys.chmod(0o755)
    try:
        done = town.comity("doctor", "-o", "table")
    finally:
        keys.chmod(0o700)
    assert done.code == 1
    assert f"others may read {keys}" in done.out
    assert f"chmod go= {keys}" in done.out
    done = town.comity("doctor", env={"COMITY_LEASE_S": "0.1"})
    assert done.code == 1
    (settings,) = [check for check in done.json["checks"] if check["check"] == "settings"]
    assert "lease_s" in settings["found"]
    assert town.comity("doctor", "--connect", "nats://127.0.0.1:9").code == 1


# Networks that come, go and fail


def test_up_prints_where_it_is_and_what_to_try_next(user: Terminal) -> None:
    running = user.start("up", "--port", "0", "--http-port", "0", "-o", "table", timely=True)
    began = time.monotonic()
    said = [running.line() for _ in range(9)]
    assert time.monotonic() - began < 20  # half a second, if the machine has nothing else to do
    text = "".join(said)
    assert str(user.data) in text
    for command in ("comity run examples/hello.py", "comity submit greet", "comity events -f"):
        assert command in text
    assert stat.S_IMODE(user.data.stat().st_mode) == 0o700
    assert running.stop() == 0
    running.told("stopping")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_down_lets_running_tasks_end_and_up_carries_on_with_those_that_wait(user: Terminal) -> None:
    running, first = user.up()
    user.node("worker.py:worker", "--name", "w")
    assert "slept" in user.ok("submit", "slow", '{"seconds": 2.4}', "-o", "table").err
    runs = user.ok("submit", "slow", '{"seconds": 1.5}', "--no-wait").json["id"]
    waits = user.ok("submit", "odd", '{"number": 7}', "--no-wait").json["id"]
    assert user.ok("down").json == {"running": 0, "waiting": 1}
    assert running.wait() == 0
    assert user.comity("stats").error["code"] == "unreachable"

    running, second = user.up()
    assert (second["url"], second["open_tasks"]) == (first["url"], 1)
    assert user.ok("tasks", "show", runs).json["result"] == "w/worker"
    user.node("worker.py:others")
    assert user.ok("tasks", "watch", waits).lines[-1]["type"] == "task.completed"
    assert user.ok("tasks", "show", waits).json["result"] is True
    assert user.ok("submit", "slow", '{"seconds": 0}').json == "w/worker", "the node came back by itself"
    assert user.ok("down", "--timeout", "1", "-o", "table").out.startswith("● the network is down")
    assert running.wait() == 0


@pytest.mark.slow
def test_a_killed_nodes_task_runs_elsewhere(user: Terminal) -> None:
    user.env["COMITY_LEASE_S"] = "20"
    user.up()
    nodes = {name: user.node("worker.py:worker", "--name", name, timely=True) for name in ("w1", "w2")}
    follower = user.start("events", "-f", "--after", "0", timely=True)
    task = user.ok("submit", "slow", '{"seconds": 600}', "--no-wait").json["id"]
    victim = follower.until(lambda event: event["type"] == "task.started")["node"]
    killed = time.time()
    nodes[victim].signal(signal.SIGKILL)
    began = follower.until(lambda event: event["type"] == "task.started" and event["node"] != victim)
    assert began["at"] / 1000 - killed < 10.0, "not by the end of its lease"  # the figure is the bench's to tell
    ended = follower.until(lambda event: event["type"] == "task.completed")
    assert (ended["task"], ended["node"]) == (task, began["node"])
    assert [a["ending"] for a in user.ok("tasks", "show", task).json["attempts"]] == ["evicted", "completed"]
    assert follower.stop() == 130


def test_a_node_that_is_told_to_stop_ends_what_it_runs(user: Terminal) -> None:
    user.up()
    node = user.start("run", "worker.py", "--replicas", "2", "--name", "crew", "-o", "table")
    assert "node crew is in network main with 4 agents" in node.line()
    assert "worker-1  offers slow, boom, wrong" in node.line()
    assert sorted(row["name"] for row in user.ok("agents", "list").json) == ["odd-1", "odd-2", "worker-1", "worker-2"]
    task = user.begun("slow", '{"seconds": 2}')
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    shown = user.ok("tasks", "show", task).json
    assert (shown["state"], len(shown["attempts"])) == ("completed", 1)
    assert user.ok("nodes", "list").json == []


def test_a_second_signal_does_not_wait(user: Terminal) -> None:
    user.up()
    node = user.node("worker.py")
    user.begun("slow", '{"seconds": 60}')
    began = time.monotonic()
    node.signal(signal.SIGINT)
    node.told("stopping, once")
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    assert time.monotonic() - began < 25


def test_an_agents_mistakes_are_told(user: Terminal) -> None:
    user.up()
    user.node("worker.py")
    failed = user.comity("submit", "boom", "--retries", "0")
    assert (failed.code, failed.error["code"]) == (1, "task-failed")
    assert "no good" in failed.error["message"]
    assert failed.error["details"]["code"] == "ValueError"
    shown = user.ok("tasks", "show", failed.error["details"]["task"], "-o", "table").out
    assert "error       ValueError: no good" in shown
    waiting = user.start("submit", "nothing", "-o", "table")
    assert "waits: no agent offers nothing" in waiting.told("waits") and waiting.stop() == 130
    wrong = user.comity("submit", "wrong", "--retries", "0")
    assert (wrong.code, wrong.error["details"]["code"]) == (1, "invalid-output")


def test_a_node_that_nobody_would_see_any_more_ends_and_says_so(user: Terminal) -> None:
    user.up()
    code = user.folder / "spoiling.py"
    code.write_text(
        "from comity import Agent\nagent = Agent('spoiling')\n@agent.capability\ndef spoil() -> None:\n"
        "    agent.labels = {'a': object()}\n    agent.withdraw('spoil')\n"
    )
    node = user.node("spoiling.py")
    user.ok("submit", "spoil", "--no-wait")
    node.told("this node stops")
    node.told("unexpected TypeError")
    assert node.wait() == 1


def test_reload_starts_again_with_the_new_code(user: Terminal) -> None:
    user.up()
    code = user.folder / "changing.py"
    lines = "from comity import Agent\nagent = Agent('changing')\n@agent.capability\ndef which() -> int:\n    return {}\n"
    code.write_text(lines.format(1))
    node = user.start("run", "changing.py", "--reload", "--name", "changing", timely=True)
    node.json()
    assert user.ok("submit", "which").json == 1
    code.write_text(lines.format("2 +"))
    assert "changing.py, line 5" in node.told("module-failed")
    code.write_text(lines.format(22))
    node.json()
    assert user.ok("submit", "which").json == 22
    assert node.stop() == 0


def test_two_networks_on_one_directory(user: Terminal) -> None:
    user.up()
    second = user.comity("up", "--port", "0")
    assert (second.error["code"], second.code) == ("already-running", 1)
    assert user.ok("stats").json["role"] == "leader"


def test_a_taken_port_gives_way_to_the_next(user: Terminal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = user.start("up", "--port", str(port), "--http-port", str(port))
        facts = running.json()
        assert facts["url"] != f"nats://127.0.0.1:{port}"
        assert f"port {port} is taken; listening on" in facts["notes"][0]
        metrics = urlsplit(facts["metrics"]).port or 0
        assert port < metrics < port + 10, "the next free one"
        assert facts["notes"][1] == f"port {port} is taken; metrics are on {metrics}"


def test_a_place_that_cannot_be_written_to_is_a_setting_to_correct(user: Terminal) -> None:
    done = user.comity("up", "--data", str(user.folder / "worker.py" / "data"))
    assert (done.error["code"], done.code) == ("bad-settings", 2)
    assert "name a folder that can be written to, with --data" in done.error["message"]


@pytest.mark.slow
def test_agents_may_be_started_before_the_network(user: Terminal) -> None:
    node = user.start("run", "worker.py", "--name", "early")
    assert "waiting for it" in node.told("no network can be reached yet")
    user.up()
    assert node.json()["node"] == "early"
    assert node.stop() == 0
    assert user.comity("run", "worker.py", "--connect", "nats://127.0.0.1:9").code == 3, "it does not wait for ever"


def test_data_that_is_not_ours_is_left_alone(user: Terminal) -> None:
    user.data.mkdir(parents=True)
    (user.data / "diary.txt").write_text("dear diary")
    done = user.comity("up")
    assert (done.error["code"], done.code) == ("foreign-data", 1)
    assert [path.name for path in user.data.iterdir()] == ["diary.txt"]
    other = user.folder / "other"
    running, _ = user.up("--data", str(other), "--network", "theirs")
    assert running.stop() == 0
    done = user.comity("up", "--data", str(other))
    assert done.error["code"] == "foreign-data"
    assert "theirs" in done.error["message"]
    (other / "network.json").write_text("{")
    assert user.comity("up", "--data", str(other), "--network", "theirs").error["code"] == "corrupt"


def test_without_a_server_program(user: Terminal) -> None:
    done = user.comity("up", "--nats-server", "/nowhere/nats-server")
    assert (done.error["code"], done.code) == ("server-failed", 1)


def test_output_that_nobody_reads_is_no_accident(town: Terminal) -> None:
    follower = town.start("events", "-f", "--after", "0")
    follower.line()
    assert follower.stop() == 130
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", "comity", "events"]
    done = subprocess.run(words, env=town.env, stdout=write, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_function_that_never_ends_does_not_keep_a_node(user: Terminal) -> None:
    user.up()
    code = "import time\nfrom comity import Agent\nagent = Agent('stuck')\n"
    code += "@agent.capability\ndef forever() -> None:\n    time.sleep(600)\n"
    (user.folder / "stuck.py").write_text(code)
    node = user.node("stuck.py")
    task = user.begun("forever")
    assert user.until(lambda rows: rows[0]["attempts"] == 1, "nodes", "list")
    node.signal(signal.SIGTERM)
    node.told("stopping, once what runs has ended (1)")
    node.signal(signal.SIGTERM)
    assert node.wait() == 0
    assert user.ok("tasks", "show", task).json["attempts"][0]["ending"] == "refused"
