"""Random bytes, and almost right ones, to every subject of a live network: it counts them, and goes on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from terminal import Running, Terminal, terminal

from comity.credentials import Authority
from comity.model import wire
from comity.model.parts import NoParts, Part, PartsEnd, PartsOffered, ReadParts
from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow]
AGENTS = '''
from collections.abc import AsyncIterator
from comity import Agent, Message

agent = Agent("w")

@agent.capability
async def letters(text: str) -> AsyncIterator[str]:
    for letter in text:
        yield letter

@agent.on("echo")
async def echo(message: Message) -> str:
    return str(message.body)
'''
ROUNDS = 400
TAGS = [*range(1, 9), 20, 21, 22, 23, 24, 25, 26, 27, *range(40, 47), *range(60, 74), *range(80, 84), *range(130, 135), 999]


@pytest.fixture
def user(tmp_path: Any) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        (user.folder / "agents.py").write_text(AGENTS)
        yield user


def junk(rng: random.Random) -> bytes:
    """Bytes of some kind."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(200))
        case 1:
            return msgspec.msgpack.encode([[rng.choice(TAGS), *(value(rng) for _ in range(rng.randrange(14)))]])
        case 2:
            item = rng.choice([Part(1, 1, 1, b"x"), ReadParts(1, "t", 1, 0, 0, 9), NoParts(1, 1), PartsEnd(1, 1, -7)])  # type: ignore[arg-type]
            data = bytearray(wire.encode([item, PartsOffered("t", 2**50, -1)]))  # type: ignore[arg-type]
            data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        case 3:
            return b"\xdd" + rng.randbytes(4) + rng.randbytes(30)
    return msgspec.msgpack.encode([value(rng) for _ in range(rng.randrange(20))])


def value(rng: random.Random) -> Any:
    return rng.choice([
        None, True, 0, -1, 2**63, 2**64 - 1, 0.5, float("nan"), float("inf"), "", "x" * rng.randrange(100), "n1/w", "k" * 5000,
        rng.randbytes(9), [], {}, [1, [2, [3]]], {"a": {"b": 1}}, rng.randrange(1 << 40),
    ])  # fmt: skip


async def flood(url: str, authority: Authority, targets: list[str]) -> int:
    """Two rogues, a client and a node, say junk wherever they may."""
    sent = 0
    for number, role in enumerate(("client", "node")):
        name, rng = f"rogue{number}", random.Random(number)
        options = authority.mint(role, name).connect_options()  # type: ignore[arg-type]
        nc: Client = await nats.connect(url, name=name, inbox_prefix=f"_INBOX_{name}", **options)
        subjects = [f"cy.main.{kind}.{place}.{name}" for kind, place in (target.split("/") for target in targets)]
        subjects += [f"cy.main.reg.{name}.{rest}" for rest in ("nodes.=", "agents.0", "agents.x.y", "schemas.h", "odd.kind")]
        subjects += [f"cy.main.store.{name}.m.{rest}" for rest in ("a.b", "files.x")] + [f"cy.main.re.n1.77.{name}"]
        for _ in range(ROUNDS):
            for subject in subjects:
                await nc.publish(subject, junk(rng), reply=rng.choice(["", "", f"_INBOX_{name}.x"]))
                sent += 1
            await nc.flush()
        await nc.close()
    return sent


def test_a_live_network_survives_random_bytes(user: Terminal) -> None:
    up, about = user.up()
    node = user.node("agents.py", "--name", "n1")
    follower = user.start("events", "-f")
    authority = Authority.load(user.data)
    controllers = [row for row in user.ok("stats").json.items() if row[0] == "leader"]
    leader = str(controllers[0][1])
    targets = ["to/n1", f"to/{leader}", "topic/leader", "topic/all", "topic/other", "any/controllers", "to/nobody"]
    sent = asyncio.run(flood(about["url"], authority, targets))
    assert sent > 10_000
    assert user.ok("submit", "letters", '{"text": "abc"}', "--stream").lines[-1] == {"result": ["a", "b", "c"]}
    assert user.ok("send", "n1/w", '"hello"', "--topic", "echo").json == "hello"
    assert user.ok("stats").json["malformed_messages"] > 1000
    assert [process.process.poll() for process in (up, node, follower)] == [None, None, None]
    assert all(quiet(process) for process in (up, node))


def quiet(process: Running) -> bool:
    """Whether it never had to tell of a fault of its own."""
    said = []
    while not process._notes.empty():
        said.append(process._notes.get())
    return not any("Traceback" in line for line in said)


