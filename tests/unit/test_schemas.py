"""docs/schemas is current, and true of what is really sent."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from comity.model import published, wire
from comity.model.capability import AgentRecord, Capability, NodeRecord, Offer
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.item import Item
from comity.model.parts import Part, PartsOffered, ReadParts
from comity.model.payload import Stored
from comity.model.task import TaskFailure, TaskSpec, TaskState

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "schemas"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return found


def as_json(data: bytes) -> Any:
    """MessagePack as JSON of the same shape, bytes in base 64."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, list):
            return [plain(part) for part in value]
        return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value

    return plain(msgspec.msgpack.decode(data))


def test_they_are_current(generate: ModuleType) -> None:
    """If this fails: make schemas"""
    for name, text in generate.texts().items():
        assert (FOLDER / name).read_text() == text, name
    assert {path.name for path in FOLDER.glob("*.json")} == set(generate.texts())


def test_every_item_has_a_tag_of_its_own_and_a_channel(generate: ModuleType) -> None:
    tags = [generate.tag_of(item) for item in generate.ITEMS]
    assert len(set(tags)) == len(tags)
    names = {item.__name__ for item in generate.ITEMS}
    assert names >= generate.TO_LEADER | generate.TO_ALL
    said = {message for channel in schema("asyncapi.json")["channels"].values() for message in channel["messages"]}
    assert said == names


def test_what_they_refer_to_is_there() -> None:
    files = {name: schema(name) for name in ("asyncapi.json", "wire.json", "envelope.json", "registry.json")}
    for name, content in files.items():
        for reference in set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(content))):
            file, _, path = reference.partition("#/")
            place: Any = files[file or name]
            for step in path.split("/"):
                assert step in place, (name, reference)
                place = place[step]


SAID: list[Item] = [
    wire.SubmitTask(TaskSpec(TaskId("t"), "echo", b"{}", ProcessId("c"))),
    wire.Run(TaskId("t"), 1, 1, 1, AgentId("n/a"), "echo", Stored("c/x", 3, b"d" * 16), 1),
    wire.Ended(TaskId("t"), TaskState.FAILED, None, TaskFailure("code", "message", True)),
    wire.Beacon(1, 1, 0.1, 0.2, 30.0, 0, 1, calls={AgentId("n/a"): 1}),
    wire.Message(Envelope(id="1", performative=Performative.CFP, sender="c", tags=("a",))),
    PartsOffered(TaskId("t"), 1, 1),
    ReadParts(1, TaskId("t"), 1, 0, 0, 64),
    Part(1, 1, 1, b'"x"'),
]


def test_what_is_sent_is_as_they_say() -> None:
    validator = jsonschema_rs.validator_for(schema("wire.json"))
    assert validator.is_valid(as_json(wire.encode(SAID)))
    envelope = Envelope(id="1", performative=Performative.REQUEST, sender="c", body=b"{}")
    assert jsonschema_rs.validator_for(schema("envelope.json")).is_valid(as_json(msgspec.msgpack.encode(envelope)))
    assert not validator.is_valid([[132, 1, 1, 1]])
    assert not validator.is_valid([[9999, 1]])
    assert not validator.is_valid({"a": 1})


def test_records_are_as_they_say() -> None:
    definitions = schema("registry.json")
    node = NodeRecord(id=ProcessId("n"), incarnation=1)
    agent = AgentRecord(id=AgentId("n/a"), name="a", node=ProcessId("n"), offers=(Offer("echo", "1.0", "hash"),))
    capability = json.loads(published.encode_capability(Capability(name="echo"))[1])
    for name, value in [
        ("NodeRecord", as_json(published.encode_node(node))),
        ("AgentRecord", as_json(published.encode_agents([agent]))[0]),
        ("Capability", capability),
    ]:
        validator = jsonschema_rs.validator_for({"$ref": f"#/$defs/{name}", "$defs": definitions["$defs"]})
        assert validator.is_valid(value), name


def test_the_page_names_tags_as_they_are() -> None:
    tags = schema("wire.json")["x-tags"]
    told = re.findall(r"`(\w+)` \((\d+)", (DOCS / "wire.md").read_text())
    assert len(told) > 15
    for name, tag in told:
        assert tags.get(tag) == name, (name, tag)
