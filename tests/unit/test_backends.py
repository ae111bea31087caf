"""Which address means which backend, what others are told of it, and where a network's doors may be."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from comity import backends
from comity.backends import Elsewhere, check_places, public, told
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.cli.place import must_fit
from comity.cli.raft_member import OwnMember
from comity.cli.up import with_last_doors
from comity.config import Settings
from comity.contexts import Context
from comity.errors import BadSettings, ForeignData
from comity.model.ids import ProcessId


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("etcd://ada:secret@h1:1,h2/our/place?password_file=/x", "etcd://h1:1,h2/our/place"),
        ("etcd://h1?ca=/own.pem&cert=/c&key=/k", "etcds://h1"),
        ("consul://:token@h1:8500", "consul://h1:8500"),
        ("file:///shared/folder", "file:///shared/folder"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_others_are_told_no_secrets_and_no_files(address: str, shown: str) -> None:
    assert public(address) == shown


@pytest.mark.parametrize(
    "places", [{"log": "consul://h"}, {"log": "http://h"}, {"store": "etcd://h"}, {"registry": "file:///x"}, {"log": ""}]
)
def test_a_door_is_only_where_it_can_be(places: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="can be at"):
        check_places(places)


def test_the_address_of_a_raft_is_read_before_anything_begins() -> None:
    with pytest.raises(BadSettings, match="know no users"):
        check_places({"log": "raft://ada@h1"})
    check_places({"log": "rafts://h1,h2:7000/west"})


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda _name: None)
    with pytest.raises(BadSettings, match=r"comity\[etcd\]"):
        check_places({"log": "etcd://h"})
    check_places({"store": "file:///x", "log": "raft://h1"})
    with pytest.raises(BadSettings, match=r"comity\[s3\]"):
        check_places({"store": "s3://bucket"})


async def test_nobody_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "TOLD_S", 0.01)
    bus = MemoryBus(MemoryNetwork(), ProcessId("n1"))
    assert await told(bus) == {}
    await bus.close()


async def test_a_folder_is_joined_only_where_it_is_the_networks(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        elsewhere = Elsewhere(stack, {"store": f"file://{tmp_path}/a%20b"})
        with pytest.raises(BadSettings, match="not here"):
            await elsewhere.store("main", "n1")
        store = await elsewhere.store("main", network_id="one")
        await store.put("network/x", b"y")
        assert await (await elsewhere.store("main", "n1")).read("network/x") == b"y"
        assert (tmp_path / "a b" / "main" / "network").read_text() == "one"
        with pytest.raises(ForeignData, match="of network one, not two"):
            await elsewhere.store("main", network_id="two")


def test_doors_are_read_from_all_sources(tmp_path: Path) -> None:
    (tmp_path / "comity.toml").write_text('[doors]\nlog = "etcd://file"\nregistry = "etcd://file"\n')
    env = {"COMITY_DOORS": "registry=etcd://h1,h2?ca=/x store=file:///s"}
    loaded = Settings.load({"doors": {"store": "file:///flag"}}, env=env, cwd=tmp_path)
    assert loaded.settings.doors == {"log": "etcd://file", "registry": "etcd://h1,h2?ca=/x", "store": "file:///flag"}
    with pytest.raises(BadSettings, match="'bus' is no door"):
        Settings.load(env={"COMITY_DOORS": "bus=amqp://h"}, cwd=tmp_path)


def test_a_network_remembers_its_doors_and_is_not_moved(tmp_path: Path) -> None:
    own = Settings(data_dir=tmp_path)
    assert with_last_doors(own) is own
    Context(urls=("nats://h",), doors={"log": "etcd://h1"}).write_local(tmp_path)
    assert with_last_doors(own).doors == {"log": "etcd://h1"}
    assert with_last_doors(Settings(data_dir=tmp_path, doors={"log": "etcd://h2"})).doors == {"log": "etcd://h2"}
    with pytest.raises(BadSettings, match="To move"):
        with_last_doors(Settings(data_dir=tmp_path, doors={"registry": "etcd://h1"}))


def test_a_networks_own_member_is_where_its_log_was(tmp_path: Path) -> None:
    member = OwnMember(cluster="main", id="m1", listen="h1:7400", members={"m1": "h1:7400"})
    given = Settings(data_dir=tmp_path, doors={"log": member.log})
    Context(urls=("nats://h",), doors={"log": "raft://h1", "registry": "consul://h"}).write_local(tmp_path)
    assert with_last_doors(given, member).doors == {"log": member.log, "registry": "consul://h"}
    Context(urls=("nats://h",)).write_local(tmp_path)
    with pytest.raises(BadSettings, match="To move"):
        with_last_doors(given, member)


@pytest.mark.parametrize(
    ("settings", "clusters", "why"),
    [({}, True, "cluster"), ({"fsync": False}, False, "without fsync")],
)
def test_what_could_not_keep_a_promise_is_refused(
    tmp_path: Path, settings: dict[str, bool], clusters: bool, why: str
) -> None:
    with pytest.raises(BadSettings, match=why):
        must_fit(Settings(data_dir=tmp_path, doors={"log": "etcd://h"}, **settings), clusters=clusters)
    must_fit(Settings(data_dir=tmp_path, fsync=False), clusters=True)
    must_fit(Settings(data_dir=tmp_path, fsync=False, doors={"log": "etcd://h", "store": "file:///x"}), clusters=False)
