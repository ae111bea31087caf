"""Whose keys these are: the first to write under a network's name leaves its id, and another network is turned away."""

from __future__ import annotations

from typing import Any

import msgspec

from comity.errors import Corrupt, ForeignData, NotFound
from comity.etcd.client import Etcd
from comity.etcd.wire import get, put
from comity.failpoints import durable
from comity.model.ids import check_token

FORMAT = 1


class Mark(msgspec.Struct, frozen=True):
    """``has_log``: a log was begun here. ``asserted``: what an operator says of the servers' durability."""

    id: str
    format: int = FORMAT
    has_log: bool = False
    asserted: str = ""


def keys_of(etcd: Etcd, network: str) -> str:
    """What all keys of the network begin with."""
    return f"{etcd.where.prefix}/{check_token(network, 'network')}/"


def mark_key(etcd: Etcd, network: str) -> bytes:
    return f"{keys_of(etcd, network)}network".encode()


def is_missing(key: bytes) -> dict[str, Any]:
    """Compares: there is no such key."""
    return {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


async def belong(etcd: Etcd, network: str, *, create: bool, network_id: str = "") -> Mark:
    """The network's mark; ``create``: make it if it is missing. ``network_id`` "": whichever is there.

    Raises NotFound (there is none), ForeignData (another network, or a later version, has these keys), Corrupt, AccessDenied, and
    Indefinite errors.
    """
    key = mark_key(etcd, network)
    if create and network_id:
        mark = Mark(network_id)
        with durable("etcd.mark"):
            found = await etcd.txn([is_missing(key)], [put(key, msgspec.json.encode(mark))], [get(key)])
        if found.succeeded:
            return mark
        held = next((said.response_range.kvs for said in found.responses if said.response_range), [])
    else:
        held = (await etcd.range(key)).kvs
    if not held:
        raise NotFound(f"there is no network {network!r} under {etcd.where.prefix}/ on {etcd.url}", network=network)
    try:
        there = msgspec.json.decode(held[0].value, type=Mark)
    except msgspec.DecodeError as error:
        raise Corrupt(f"the key {key.decode()} is damaged: {error}", key=key.decode()) from error
    if there.format != FORMAT:
        raise ForeignData(f"{key.decode()} is of format {there.format}, which this version does not know", key=key.decode())
    if network_id not in ("", there.id):
        said = f"{keys_of(etcd, network)} on {etcd.url} belongs to network {there.id}, not {network_id}"
        raise ForeignData(f"{said}: give this one another name (--network), or another prefix", key=key.decode())
    return there


async def adopt(etcd: Etcd, network: str, new_id: str) -> Mark:
    """The network's mark; if there is none, one is made with ``new_id``. Raises as ``belong`` does."""
    while True:
        try:
            return await belong(etcd, network, create=False)
        except NotFound:
            try:
                return await belong(etcd, network, create=True, network_id=new_id)
            except ForeignData:  # another has just begun it
                continue
