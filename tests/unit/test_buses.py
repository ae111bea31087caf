"""Which bus an address means, what it needs beside it, and who a process is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity.amqp.address import Where
from comity.buses import must_have_doors, own_name, trust
from comity.cli.place import chosen
from comity.config import Settings
from comity.connect import identity
from comity.contexts import Context, check_url
from comity.errors import BadSettings

ETCD = "etcd://h"
ALL = {"log": ETCD, "registry": ETCD, "store": "file:///s"}


def test_an_address_says_where_and_who(tmp_path: Path) -> None:
    assert Where.parse("amqp://h") == Where((("h", 5672),))
    (tmp_path / "secret").write_text("s\n")
    found = Where.parse(f"amqp://n%401@h1:1,h2,[::1]:3/a%2Fb?own=1&events=e&ca=/c&password_file={tmp_path}/secret")
    assert found == Where(
        (("h1", 1), ("h2", 5671), ("::1", 3)), "a/b", "n@1", "s", ca="/c", events="e", own=True, is_safe=True
    )
    assert found.shown == "amqps://h1:1, amqps://h2:5671, amqps://[::1]:3"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("amqp://", "names no host"),
        ("amqp://u:secret@h:x", "a port is a number"),
        ("amqp://h?what=1", "'what' means nothing"),
        ("amqp://h?own=yes", "own can be 1"),
        ("amqps://h?cert=/c", "cert and key go together"),
        ("amqp://h?password_file=/none/there", "No such file"),
    ],
)
def test_what_is_no_address_is_refused(address: str, why: str) -> None:
    with pytest.raises(BadSettings, match="is not the address of a RabbitMQ") as refusal:
        check_url(address)
    assert why in refusal.value.message
    assert "secret" not in refusal.value.message


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(BadSettings, match="/none/there"):
        Where.parse("amqps://h?ca=/none/there").tls()
    assert Where.parse("amqp://h").tls() is None


def test_several_servers_are_one_address() -> None:
    assert Settings.load({"urls": "amqp://u@h1,h2/v"}, env={}).settings.urls == ("amqp://u@h1,h2/v",)
    assert Settings.load({"urls": "nats://h1, nats://h2"}, env={}).settings.urls == ("nats://h1", "nats://h2")


def test_rabbitmq_keeps_nothing() -> None:
    with pytest.raises(BadSettings, match=r"no registry and no store is named.*--registry etcd://HOST:PORT --store file"):
        must_have_doors(Context(urls=("amqp://h",), doors={"log": ETCD}))
    must_have_doors(Context(urls=("amqp://h",), doors=ALL))
    must_have_doors(Context(urls=("nats://h",)))


def test_a_user_of_its_own_is_the_process() -> None:
    own, shared = Context(urls=("amqp://n1:p@h?own=1",)), Context(urls=("amqp://n1:p@h",))
    assert identity(own) == identity(own, "node", "n1") == ("n1", None)
    with pytest.raises(BadSettings, match="cannot be 'n2'"):
        identity(own, "node", "n2")
    assert identity(shared, "node", "n2") == ("n2", None)
    assert (own_name(own, ""), own_name(shared, ""), own_name(Context(urls=("nats://h",)), "")) == ("n1", "", "")
    assert (len(trust(own)), len(trust(shared)), len(trust(Context(urls=("nats://h",))))) == (0, 1, 0)
    with pytest.raises(BadSettings, match="credentials files are NATS's"):
        identity(Context(urls=("amqp://h",), credentials="/c"))


def test_a_stack_says_what_was_not_said(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("bus", "log", "registry", "store"))
    assert chosen(tmp_path, None, None, nothing) == (None, {})
    assert chosen(tmp_path, "nats", "nats://h", nothing) == ("nats://h", {})
    bus, places = chosen(tmp_path, "classic", None, nothing | {"log": "etcd://mine"})
    assert (bus, places["log"], places["registry"]) == ("amqp://127.0.0.1", "etcd://mine", "etcd://127.0.0.1:2379")
    assert places["store"] == f"file://{tmp_path}/store"
    assert chosen(tmp_path, None, None, nothing | {"bus": "amqps://h"}) == ("amqps://h", {})


@pytest.mark.parametrize(
    ("stack", "connect", "bus", "why"),
    [
        ("odd", None, None, "no stack 'odd'"),
        (None, "nats://h", "amqp://h", "--bus or --connect"),
        ("classic", "nats://h", None, "--bus or --connect"),
        (None, None, "nats://u:secret@h", "--bus is for amqp://, and nats://h is not"),
    ],
)
def test_a_choice_that_contradicts_itself_is_refused(
    tmp_path: Path, stack: str | None, connect: str | None, bus: str | None, why: str
) -> None:
    with pytest.raises(BadSettings, match=why):
        chosen(tmp_path, stack, connect, {"bus": bus})
