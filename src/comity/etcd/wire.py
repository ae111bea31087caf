"""What is said to etcd's JSON gateway and what it answers. Bytes travel in base64, 64-bit numbers as strings."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from comity.errors import AccessDenied, ComityError, NotFound, TooLarge, Unreachable

_UNAUTHENTICATED, _EXHAUSTED, _OUT_OF_RANGE, _NOT_FOUND, _DENIED = 16, 8, 11, 5, 7
T = TypeVar("T")


class Compacted(NotFound):
    """What should be watched was compacted away: read anew."""


class Header(msgspec.Struct):
    cluster_id: int = 0
    member_id: int = 0
    revision: int = 0


class Reply(msgspec.Struct):
    header: Header = msgspec.field(default_factory=Header)


class Kv(msgspec.Struct):
    key: bytes
    value: bytes = b""
    mod_revision: int = 0
    create_revision: int = 0
    lease: int = 0


class Range(Reply):
    kvs: list[Kv] = []
    more: bool = False
    count: int = 0


class Response(msgspec.Struct):
    """Of one operation of a transaction."""

    response_range: Range | None = None


class Txn(Reply):
    succeeded: bool = False
    responses: list[Response] = []


class Lease(Reply):
    ID: int = 0
    TTL: int = 0


class Event(msgspec.Struct):
    kv: Kv
    type: str = "PUT"

    @property
    def is_gone(self) -> bool:
        return self.type == "DELETE"


class Renewed(msgspec.Struct):
    result: Lease


class Token(msgspec.Struct):
    token: str


class Told(Reply):
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    created: bool = False
    events: list[Event] = []


class Failure(msgspec.Struct):
    message: str = ""
    code: int = 0
    grpc_code: int = 0


class Line(msgspec.Struct):
    result: Told | None = None
    error: Failure | None = None


class Status(Reply):
    version: str = ""
    leader: int = 0
    size: int = msgspec.field(name="dbSize", default=0)
    errors: list[str] = []


class Version(msgspec.Struct):
    etcdserver: str = ""


class Members(Reply):
    members: list[Any] = []


def span_of(prefix: bytes) -> dict[str, Any]:
    """All keys that begin with ``prefix`` (which is not empty and does not end in 0xff)."""
    return {"key": prefix, "range_end": prefix[:-1] + bytes([prefix[-1] + 1])}


def put(key: bytes, value: bytes, lease: int = 0) -> dict[str, Any]:
    return {"request_put": {"key": key, "value": value, **({"lease": str(lease)} if lease else {})}}


def get(key: bytes) -> dict[str, Any]:
    return {"request_range": {"key": key}}


def decode(url: str, data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=False)
    except msgspec.DecodeError as error:
        raise Unreachable(f"{url} answers what no etcd would: {error}", url=url) from error


def is_of_token(failure: Failure) -> bool:
    return failure.code == _UNAUTHENTICATED or "revision of auth store is old" in failure.message


def meant(url: str, failure: Failure) -> ComityError:
    """What a refusal of etcd's means here."""
    code, said = failure.code or failure.grpc_code, failure.message.removeprefix("etcdserver: ")
    if code in (_DENIED, _UNAUTHENTICATED) or "authentication failed" in said or "user name is empty" in said:
        return AccessDenied(f"{url}: {said}", url=url)
    if any(words in said for words in ("request is too large", "too many operations", "message larger than max")):
        return TooLarge(f"{url}: {said}", url=url)
    if code == _OUT_OF_RANGE and "compacted" in said:
        return Compacted(f"{url}: {said}", url=url)
    if code == _NOT_FOUND:
        return NotFound(f"{url}: {said}", url=url)
    if code == _EXHAUSTED and "space" in said:  # the write at which it became full may have happened
        return Unreachable(f"{url} is full: raise its quota, or compact, defragment and disarm the alarm ({said})", url=url)
    if "authentication is not enabled" in said:
        return Unreachable(f"{url} has no users ({said}): the address must name none", url=url)
    return Unreachable(f"{url}: {said or failure}", url=url)
