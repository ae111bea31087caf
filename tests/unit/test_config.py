"""Settings: where each value comes from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from comity.config import Settings, data_home
from comity.errors import BadSettings


def test_defaults_agree_with_each_other(tmp_path: Path) -> None:
    settings, sources = Settings.load(env={"HOME": "/home/ada"}, cwd=tmp_path)
    assert settings.lease_s == 3.0
    assert settings.data_dir == Path("/home/ada/.local/share/comity/main")
    assert set(sources.values()) == {"default"}
    assert len(Settings.__struct_fields__) < 50


def test_flags_beat_variables_beat_the_file(tmp_path: Path) -> None:
    (tmp_path / "comity.toml").write_text('retries = 1\nlease_s = 9\nurls = ["nats://a:1"]\nnetwork = "lab"\n')
    env = {
        "COMITY_RETRIES": "2",
        "COMITY_LEASE_S": "8",
        "COMITY_URLS": "nats://b:1, nats://c:2",
        "XDG_DATA_HOME": "/data",
    }
    settings, sources = Settings.load({"retries": 7, "port": None}, env=env, cwd=tmp_path)
    assert (settings.retries, settings.lease_s, settings.network) == (7, 8.0, "lab")
    assert settings.urls == ("nats://b:1", "nats://c:2")
    assert settings.data_dir == Path("/data/comity/lab")
    assert sources["retries"] == "--retries"
    assert sources["lease_s"] == "COMITY_LEASE_S"
    assert sources["network"] == str(tmp_path / "comity.toml")
    assert sources["port"] == "default"


def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings, _ = Settings.load(env={"COMITY_CREDENTIALS": "~/me.creds"}, cwd=tmp_path)
    assert settings.credentials == tmp_path / "me.creds"


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"beacon_s": 1.0, "lease_s": 3.0}, "lease_s"),
        ({"orphan_s": 2.0}, "orphan_s"),
        ({"submit_timeout_s": 600.0}, "dedup_window_s"),
        ({"keep_finished_s": 60.0}, "keep_finished_s"),
        ({"request_timeout_s": 0.0}, "request_timeout_s"),
        ({"request_timeout_s": float("inf")}, "request_timeout_s"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s"),
        ({"retries": -1}, "retries"),
        ({"port": 65_536}, "port"),
        ({"network": "a.b"}, "network"),
    ],
)
def test_values_that_cannot_hold_are_refused(values: dict[str, object], setting: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettings) as caught:
        Settings.load(values, env={}, cwd=tmp_path)
    assert caught.value.details["setting"] == setting
    with pytest.raises(BadSettings):
        Settings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "env", "toml", "culprit"),
    [
        ({}, {}, "leases_s = 3", "leases_s"),
        ({}, {}, "colour = 3", "colour"),
        ({}, {}, "retries = 'many'", "retries"),
        ({}, {}, "retries = ", "comity.toml"),
        ({}, {"COMITY_RETRIES": "two"}, "", "COMITY_RETRIES"),
        ({}, {"COMITY_LEASES_S": "2"}, "", "COMITY_LEASE_S"),
        ({"lease": 3}, {}, "", "--lease"),
    ],
)
def test_the_culprit_is_named(
    flags: dict[str, object], env: dict[str, str], toml: str, culprit: str, tmp_path: Path
) -> None:
    (tmp_path / "comity.toml").write_text(toml)
    with pytest.raises(BadSettings, match=culprit):
        Settings.load(flags, env=env, cwd=tmp_path)


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    _, sources = Settings.load(env={"COMITY_DEBUG": "1", "COMITY_CONFIG": "/x", "PATH": "/bin"}, cwd=tmp_path)
    assert set(sources.values()) == {"default"}


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="cannot read"):
        Settings.load(env={}, file=tmp_path / "none.toml")


def test_data_home_follows_xdg() -> None:
    assert data_home({"XDG_DATA_HOME": "/d", "HOME": "/h"}) == Path("/d/comity")
