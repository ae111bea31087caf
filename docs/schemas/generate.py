"""Write the machine-readable description of the wire from the code that speaks it: ``make schemas``.

    wire.json       JSON Schema of a bus message: a list of items
    envelope.json   of one message between agents
    registry.json   of what processes publish about themselves
    asyncapi.json   AsyncAPI 3: which subject carries what, from whom to whom

All of it travels as MessagePack, which JSON Schema describes as the JSON of the same shape; where it says ``contentEncoding:
base64``, MessagePack carries the bytes themselves.
"""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from typing import Any

import msgspec

from comity.model import docstring, wire
from comity.model.capability import AgentRecord, Capability, NodeRecord
from comity.model.envelope import Envelope
from comity.model.item import Item

HERE = Path(__file__).parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ASYNCAPI = "3.0.0"
ITEMS: tuple[type[Item], ...] = typing.get_args(wire.Any_)

# Kind of channel -> its address, what it is for, and who says what there to whom.
CHANNELS: dict[str, tuple[str, str]] = {
    "to": ("cy.{network}.to.{receiver}.{sender}", "To one process."),
    "any": ("cy.{network}.any.{group}.{sender}", "To any one member of a group."),
    "leader": ("cy.{network}.topic.leader.{sender}", "To whichever controller leads; only that one may listen."),
    "everyone": ("cy.{network}.topic.all.{sender}", "To every node and client."),
}
CHANNEL_PARAMETERS = {
    "network": "The network's name.",
    "sender": "The process that publishes: the server refuses any other.",
    "receiver": "The process that is meant.",
    "group": "The group's name.",
}
TO_LEADER = {
    "SubmitTask", "FollowTask", "CancelTask", "Ask", "FollowEvents", "Route", "CallEnded", "AddSchedule", "AnswerTask", "Beacon",
    "Began", "Done", "Failed", "Declined", "Slot", "Live", "Leaving", "RateTask", "Progress", "StepDone", "Checkpointed",
    "InputAsked", "Recall", "Misfit", "SendMail", "MailDone", "InGroups",
}  # fmt: skip
TO_ALL = {"Leading", "Message"}


def tag_of(item: type[Item]) -> int:
    return int(msgspec.inspect.type_info(item).tag)  # type: ignore[attr-defined]


def _named(schema: dict[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Say which place of an array holds which field: JSON Schema has no word for it, so ``title``."""
    if "prefixItems" not in schema:
        return schema
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    skip = len(schema["prefixItems"]) - len(names)
    for name, place in zip(names, schema["prefixItems"][skip:], strict=True):
        if "$ref" not in place:
            place.setdefault("title", name)
    schema["x-fields"] = names
    return schema


def _components(kinds: typing.Iterable[type[Any]]) -> dict[str, Any]:
    """Schemas of ``kinds`` and of all that is in them, by name."""
    _, found = msgspec.json.schema_components(list(kinds), ref_template="#/$defs/{name}")
    known = {kind.__name__: kind for kind in _structs(kinds)}
    for schema in found.values():
        docstring.clean(schema)
    return {name: _named(schema, known[name]) if name in known else schema for name, schema in sorted(found.items())}


def _structs(kinds: typing.Iterable[Any]) -> set[type[Any]]:
    found: set[type[Any]] = set()
    left: list[Any] = [msgspec.inspect.type_info(kind) for kind in kinds]
    while left:
        part = left.pop()
        if isinstance(part, tuple):
            left.extend(part)
        elif isinstance(part, msgspec.inspect.Field):
            left.append(part.type)
        elif isinstance(part, msgspec.inspect.Type):
            if isinstance(part, msgspec.inspect.StructType):
                if part.cls in found:
                    continue
                found.add(part.cls)
            left.extend(getattr(part, name) for name in part.__struct_fields__)
    return found


def wire_schema() -> dict[str, Any]:
    return {
        "$schema": DIALECT, "title": "A bus message of Comity's: a list of items",
        "description": "Each item is an array that begins with its tag. Fields at the end may be left out if they have a default;"
        " fields that are not known are ignored.",
        "type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/{item.__name__}"} for item in ITEMS]},
        "x-tags": {str(tag_of(item)): item.__name__ for item in sorted(ITEMS, key=tag_of)},
        "$defs": _components(ITEMS),
    }  # fmt: skip


def envelope_schema() -> dict[str, Any]:
    return {"$schema": DIALECT, "$ref": "#/$defs/Envelope", "$defs": _components([Envelope])}


def registry_schema() -> dict[str, Any]:
    return {
        "$schema": DIALECT, "title": "What processes publish about themselves",
        "x-keys": {
            "nodes/NODE": "NodeRecord, MessagePack", "agents/NODE/CHUNK": "list of AgentRecord, MessagePack",
            "schemas/NODE/HASH": "Capability, JSON; HASH is what the agents' offers call it",
        },
        "$defs": _components([NodeRecord, AgentRecord, Capability]),
    }  # fmt: skip


def asyncapi() -> dict[str, Any]:
    channels = {name: _channel(name, address, what) for name, (address, what) in CHANNELS.items()}
    messages = {
        item.__name__: {
            "name": item.__name__, "title": f"{item.__name__} (tag {tag_of(item)})", "summary": _summary(item),
            "contentType": "application/msgpack", "payload": {"$ref": f"wire.json#/$defs/{item.__name__}"},
        }
        for item in ITEMS
    }  # fmt: skip
    operations = {
        f"{name}.{verb}": {"action": verb, "channel": {"$ref": f"#/channels/{name}"}, "summary": CHANNELS[name][1]}
        for name in CHANNELS for verb in ("send", "receive") if (name, verb) != ("leader", "receive")
    }  # fmt: skip
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Comity", "version": "1", "license": {"name": "Apache-2.0"},
            "description": "How processes of a Comity network talk over NATS. The story is in docs/wire.md.",
        },
        "defaultContentType": "application/msgpack",
        "servers": {"network": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "Credentials name the process."}},
        "channels": channels, "operations": operations, "components": {"messages": messages},
    }  # fmt: skip


def _channel(name: str, address: str, what: str) -> dict[str, Any]:
    def is_said(item: type[Item]) -> bool:
        match name:
            case "leader":
                return item.__name__ in TO_LEADER
            case "everyone":
                return item.__name__ in TO_ALL
            case "to":
                return item.__name__ not in TO_LEADER
        return item.__name__ == "Message"

    parameters = {key: {"description": text} for key, text in CHANNEL_PARAMETERS.items() if f"{{{key}}}" in address}
    said = {item.__name__: {"$ref": f"#/components/messages/{item.__name__}"} for item in ITEMS if is_said(item)}
    return {"address": address, "description": what, "parameters": parameters, "messages": said}


def _summary(item: type[Item]) -> str:
    text = inspect.getdoc(item) if item.__doc__ != Item.__doc__ else ""
    return " ".join((text or "").split())


def texts() -> dict[str, str]:
    """What each file should say."""
    made = {"wire.json": wire_schema(), "envelope.json": envelope_schema(), "registry.json": registry_schema()}
    made["asyncapi.json"] = asyncapi()
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in made.items()}


def main() -> None:
    for name, text in texts().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
