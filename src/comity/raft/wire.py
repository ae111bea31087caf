"""What is said when a connection begins, and between a member and who uses the log. Between members it is ``model.raft``.

Whoever connects says Hello; the member answers Welcome, or Refusal and closes. The cluster's id must be the same: another
cluster's member or user, with this one's address by mistake, changes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from comity.model.raft import Message

VERSION = 2


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=101):
    """``sender``: a member's id, reached at ``address``; "" for who only uses the log. ``target``: who is meant, if known."""

    version: int
    cluster: str
    sender: str = ""
    address: str = ""
    target: str = ""


class Welcome(msgspec.Struct, array_like=True, frozen=True, tag=102):
    """``leader``: the id and address of who leads, as far as this member knows."""

    id: str
    leader: str
    leader_address: str


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag=103):
    """An error's code and message."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Append(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    key: int
    after: int
    data: bytes


class Read(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """``is_patient``: answered once there is something, from what the member knows."""

    key: int
    after: int
    limit: int
    is_patient: bool = False


class Bounds(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    key: int


class Trim(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    key: int
    upto: int


class Ping(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=5):
    key: int


class Status(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    key: int


class Change(msgspec.Struct, array_like=True, frozen=True, tag=7):
    key: int
    voters: tuple[str, ...]
    learners: tuple[str, ...]
    addresses: dict[str, str]


class HandOver(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    key: int
    target: str


class Claim(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=9):
    """Have ``mark`` say whose the log is, unless one does (b"": change nothing). Answered by the one that does."""

    key: int
    mark: bytes


Request = Append | Read | Bounds | Trim | Ping | Status | Change | HandOver | Claim


class Done(msgspec.Struct, array_like=True, frozen=True, tag=1):
    key: int
    value: Any = None


class Items(msgspec.Struct, array_like=True, frozen=True, tag=2):
    key: int
    items: list[tuple[int, bytes]]


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=3):
    key: int
    code: str
    message: str
    details: dict[str, Any]


Answer = Done | Items | Failed

decode_hellos = msgspec.msgpack.Decoder(Annotated[list[Hello], msgspec.Meta(min_length=1)]).decode
decode_greetings = msgspec.msgpack.Decoder(list[Welcome | Refusal]).decode
decode_messages = msgspec.msgpack.Decoder(list[Message]).decode
decode_requests = msgspec.msgpack.Decoder(list[Request]).decode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
