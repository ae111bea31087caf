"""What a node puts in the registry: its record, its agents in chunks, each capability once under the hash of its JSON."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from comity.errors import InvalidInput
from comity.model.capability import AgentRecord, Capability, NodeRecord
from comity.model.codec import UNREADABLE

_sorted_json = msgspec.json.Encoder(order="deterministic")
_encoder = msgspec.msgpack.Encoder()
_agents = msgspec.msgpack.Decoder(list[AgentRecord])
_node = msgspec.msgpack.Decoder(NodeRecord)


def encode_capability(capability: Capability) -> tuple[str, bytes]:
    """A capability as a node publishes it once, under ``schemas/NODE/HASH``: the hash, and its JSON."""
    data = _sorted_json.encode(capability)
    return hashlib.blake2b(data, digest_size=16).hexdigest(), data


def decode_capability(data: bytes) -> Capability:
    try:
        return msgspec.json.decode(data, type=Capability)
    except UNREADABLE as error:
        raise InvalidInput(f"not a capability: {error}") from error


def encode_agents(agents: list[AgentRecord]) -> bytes:
    return _encoder.encode(agents)


def decode_agents(data: bytes) -> list[AgentRecord]:
    """The agents of a chunk. What many have in common is one object: there may be a hundred thousand."""
    try:
        agents = _agents.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not a list of agents: {error}") from error
    shared: dict[Any, Any] = {}
    for agent in agents:
        agent.node = shared.setdefault(agent.node, agent.node)
        agent.offers = shared.setdefault(agent.offers, agent.offers)
        agent.resources = shared.setdefault(agent.resources, agent.resources)
    return agents


def encode_node(node: NodeRecord) -> bytes:
    return _encoder.encode(node)


def decode_node(data: bytes) -> NodeRecord:
    try:
        return _node.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not a node record: {error}") from error
