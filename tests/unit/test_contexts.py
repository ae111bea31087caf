"""Named connections: saved, chosen, and found without being named."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from comity.config import Settings
from comity.contexts import Context, Contexts, config_home, resolve
from comity.errors import BadSettings, NotFound, Unreachable

LAB = Context(urls=("nats://lab:4222",), network="lab", credentials="/keys/me.creds")
HERE = Context(urls=("nats://127.0.0.1:4222",), authority="/data")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"COMITY_CONFIG": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}


def choose(env: dict[str, str], tmp_path: Path, **flags: Any) -> Context:
    return resolve(Settings.load(flags, env=env, cwd=tmp_path), env)


def test_saved_contexts_are_private_and_survive(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    contexts.put("lab", LAB)
    contexts.put("other", HERE)
    again = Contexts(tmp_path)
    assert again.names() == ["lab", "other"]
    assert again.current == "lab"
    assert again.get("lab") == LAB
    assert stat.S_IMODE((tmp_path / "contexts.json").stat().st_mode) == 0o600
    again.use("other")
    again.remove("other")
    assert Contexts(tmp_path).current == ""
    assert [path.name for path in tmp_path.iterdir()] == ["contexts.json"]


def test_unknown_context_names_those_that_exist(tmp_path: Path) -> None:
    contexts = Contexts(tmp_path)
    contexts.put("lab", LAB)
    for act in (contexts.get, contexts.use, contexts.remove):
        with pytest.raises(NotFound, match="lab"):
            act("lob")


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "contexts.json").write_text("{")
    with pytest.raises(BadSettings, match=r"contexts\.json"):
        Contexts(tmp_path)


def test_nothing_known(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="comity up"):
        choose(env, tmp_path)


def test_network_in_the_default_place_is_found(env: dict[str, str], tmp_path: Path) -> None:
    HERE.write_local(tmp_path / "data" / "comity" / "main")
    assert choose(env, tmp_path) == HERE
    assert choose(env, tmp_path, context="local") == HERE


def test_current_beats_local_and_a_name_beats_both(env: dict[str, str], tmp_path: Path) -> None:
    HERE.write_local(tmp_path / "data" / "comity" / "main")
    contexts = Contexts(config_home(env))
    contexts.put("lab", LAB)
    contexts.put("here", HERE)
    assert choose(env, tmp_path) == LAB
    assert choose(env, tmp_path, context="here") == HERE
    assert choose({**env, "COMITY_CONTEXT": "here"}, tmp_path) == HERE


def test_a_data_directory_that_is_named_beats_the_current_context(env: dict[str, str], tmp_path: Path) -> None:
    Contexts(config_home(env)).put("lab", LAB)
    HERE.write_local(tmp_path / "mine")
    assert choose(env, tmp_path, data_dir=tmp_path / "mine") == HERE
    assert choose({**env, "COMITY_DATA_DIR": str(tmp_path / "mine")}, tmp_path) == HERE
    assert choose({**env, "COMITY_DATA_DIR": str(tmp_path / "none")}, tmp_path) == LAB
    with pytest.raises(Unreachable, match="none"):
        choose(env, tmp_path, data_dir=tmp_path / "none")


def test_an_address_borrows_credentials_of_its_context(env: dict[str, str], tmp_path: Path) -> None:
    Contexts(config_home(env)).put("lab", LAB)
    assert choose(env, tmp_path, urls="nats://lab:4222") == LAB
    found = choose(env, tmp_path, urls="nats://new:1", credentials="x.creds", network="n")
    assert found == Context(urls=("nats://new:1",), network="n", credentials="x.creds")
    assert choose({**env, "COMITY_CONTEXT": "lab"}, tmp_path, urls="nats://new:1").urls == ("nats://new:1",)
    assert choose({**env, "COMITY_URLS": "nats://new:1"}, tmp_path, context="lab") == LAB


def test_an_address_of_the_local_network_is_known(env: dict[str, str], tmp_path: Path) -> None:
    HERE.write_local(tmp_path / "data" / "comity" / "main")
    assert choose(env, tmp_path, urls="nats://127.0.0.1:4222").authority == "/data"


def test_address_and_context_contradict(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "comity.toml").write_text('urls = ["nats://a:1"]\ncontext = "lab"')
    with pytest.raises(BadSettings, match="not both"):
        choose(env, tmp_path)
    with pytest.raises(BadSettings, match="not both"):
        choose(env, tmp_path, urls="nats://b:1", context="lab")


def test_config_home() -> None:
    assert config_home({"HOME": "/h"}) == Path("/h/.config/comity")
    assert config_home({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/comity")
    assert config_home({"COMITY_CONFIG": "/c", "XDG_CONFIG_HOME": "/x"}) == Path("/c")
