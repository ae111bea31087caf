"""Every setting of every program, in one frozen value, read once at the edge: flags > COMITY_* > comity.toml >
defaults.

Durations are seconds and end in ``_s``. A setting ``lease_s`` is the flag ``--lease-s``, the variable
``COMITY_LEASE_S`` and the key ``lease_s`` of ``comity.toml``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from comity.errors import BadInput, BadSettings
from comity.model.ids import check_token
from comity.model.limits import FAR_S, NUMBER_MAX

__all__ = ["DOORS", "FILE_NAME", "Loaded", "Settings", "data_home"]

FILE_NAME = "comity.toml"
PREFIX = "COMITY_"
BYTES_MAX = 1 << 50
DEFAULT_NETWORK = "main"
DOORS = ("registry", "log", "store")
"""What may lie elsewhere than the bus."""
TABLES = ("doors", "raft")
"""Settings of several parts, each from the source that is nearest."""
_MISSED_BEACONS = 3


def data_home(env: Mapping[str, str]) -> Path:
    """Where networks keep their data unless told otherwise (XDG Base Directory Specification, ``XDG_DATA_HOME``)."""
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path(env.get("HOME") or "~").expanduser() / ".local" / "share") / "comity"


class Loaded(NamedTuple):
    """Settings, and for each field where its value came from: a flag, a variable, a file or "default"."""

    settings: Settings
    sources: dict[str, str]


class RaftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The member of a built-in Raft that runs on this machine: ``members`` the founding ones (``ID=HOST:PORT,...``), ``id`` which
    of them it is, ``keys`` the folder of its certificates. A follower campaigns after one to two ``election_s`` without a word
    from its leader, who speaks every ``heartbeat_s``."""

    members: str = ""
    id: str = ""
    keys: str = ""
    election_s: float = 0.5
    heartbeat_s: float = 0.1


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be set. Raises BadSettings, naming the field, for a value out of range or two that contradict each
    other.

    Where: ``network`` one subject token; ``urls`` of servers; ``context`` a named connection; ``credentials`` a creds
    file; ``ca`` the certificate that the servers' are signed by; ``doors`` addresses of what lies elsewhere than the bus
    (``COMITY_DOORS="registry=etcd://h1,h2 log=etcd://h1,h2"``); ``raft`` this machine's part in
    a built-in Raft (``COMITY_RAFT="election_s=1 heartbeat_s=0.2"``); ``data_dir`` of the embedded network (default: the
    network's folder under ``data_home``); ``listen`` the address at which others reach it ("": this machine only).
    Liveness: see each name; a node is suspect after three beacons missed, so ``lease_s`` must be longer than that. Tasks:
    defaults for those that do not say. ``retry_budget``: how many retries one first attempt pays for while nothing
    succeeds. ``poison_nodes``: a task that so many nodes had when they were lost is not tried again (0: it
    is), nor is mail at which its receiver's node was lost so often. ``max_waiting`` and the ``keep_*`` limits bound what a
    network holds.
    """

    network: str = DEFAULT_NETWORK
    urls: tuple[str, ...] = ()
    context: str = ""
    credentials: Path | None = None
    ca: Path | None = None
    doors: dict[str, str] = {}
    raft: RaftSettings = RaftSettings()
    listen: str = ""
    data_dir: Path = Path()
    port: int = 4222
    http_port: int = 8470
    nats_server: Path | None = None
    replicas: int = 1
    fsync: bool = True
    """False: acknowledged before it is on disk. For measurements: a power cut loses what was accepted."""

    beacon_s: float = 0.5
    lease_s: float = 3.0
    orphan_s: float = 60.0
    drain_timeout_s: float = 30.0
    cancel_grace_s: float = 5.0

    start_timeout_s: float = 10.0
    attempt_timeout_s: float = 1800.0
    retries: int = 3
    retry_first_s: float = 0.2
    retry_factor: float = 2.0
    retry_max_s: float = 60.0
    retry_budget: float = 0.1
    poison_nodes: int = 3
    request_timeout_s: float = 30.0
    submit_timeout_s: float = 30.0

    max_waiting: int = 100_000
    max_waiting_bytes: int = 1 << 30
    max_waiting_per_submitter: int = 0
    """0: four fifths of ``max_waiting``. Of the bytes one submitter may take the same share."""
    breaker_failures: int = 5
    breaker_window_s: float = 60.0
    breaker_open_s: float = 5.0
    """When an agent that fails is given a rest: see ``core.breaker``."""

    mail_ttl_s: float = 7 * 86_400.0
    max_mailbox: int = 10_000
    max_mail: int = 1_000_000
    """Durable mail that does not say how long it is kept; how much of it may wait for one agent, and for all together."""

    dedup_window_s: float = 600.0
    keep_finished: int = 1_000_000
    keep_finished_s: float = 7 * 86_400.0
    keep_dead: int = 10_000
    keep_dead_s: float = 30 * 86_400.0
    snapshot_every: int = 100_000
    """Log entries between two snapshots."""
    health_s: float = 5.0
    health_failures: int = 3
    health_successes: int = 2
    """How often an agent that says how it is (``@agent.health``) is asked, and after how many failures in a row it is
    unhealthy, after how many successes well again."""
    inspect_rate_mb: float = 4.0
    inspect_pause_s: float = 15.0
    """Log and store are read again at so many MB a second (0: not at all), to find damage; then there is a pause."""

    def __post_init__(self) -> None:
        if self.data_dir == Path():
            msgspec.structs.force_setattr(self, "data_dir", data_home(os.environ) / self.network)
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        try:
            check_token(self.network, "network")
        except BadInput as error:
            raise BadSettings(error.message, setting="network", value=self.network) from None
        for name in self.doors:
            if name not in DOORS:
                said = f"{name!r} is no door that may lie elsewhere; there are {', '.join(DOORS)}"
                raise BadSettings(said, setting="doors", value=name)
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if field.endswith("_s") and not 0 < value <= FAR_S:
                said = f"{field} must be a positive number of seconds, and at most {FAR_S:.0f}, not {value}"
                raise BadSettings(said, setting=field, value=value)
            if field in _LEAST and not _LEAST[field] <= value:
                raise BadSettings(f"{field} must be at least {_LEAST[field]}, not {value}", setting=field, value=value)
            most = BYTES_MAX if field.endswith("_bytes") else NUMBER_MAX
            if field in _LEAST and value > most:
                raise BadSettings(f"{field} must be at most {most}", setting=field)
            if field in ("port", "http_port") and not 0 <= value <= 65_535:
                raise BadSettings(f"{field} must be 0 to 65535, not {value}", setting=field, value=value)

    def _check_together(self) -> None:
        self._must_exceed(
            "lease_s", "beacon_s", "a node whose three beacons are missed is suspect, not dead", _MISSED_BEACONS
        )
        self._must_exceed("orphan_s", "lease_s", "an orphan is what outlives its node's lease")
        self._must_exceed("dedup_window_s", "submit_timeout_s", "a resend must still be known as one")
        times = self.raft
        if not 0 < 2 * times.heartbeat_s <= times.election_s:
            said = f"election_s ({times.election_s:g}) must be at least 2 x heartbeat_s ({times.heartbeat_s:g}), which is above 0"
            raise BadSettings(f"raft: {said}: else followers campaign against a leader that is there", setting="raft")
        self._must_exceed("keep_finished_s", "dedup_window_s", "a resend of a finished task must find it")

    def _must_exceed(self, longer: str, shorter: str, why: str, times: int = 1) -> None:
        have, bound = getattr(self, longer), getattr(self, shorter)
        if have <= bound * times:
            factor = f"{times} x " if times > 1 else ""
            message = f"{longer} ({have:g}) must be more than {factor}{shorter} ({bound:g}): {why}"
            raise BadSettings(message, setting=longer, other=shorter)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        file: Path | None = None,
        cwd: Path | None = None,
    ) -> Loaded:
        """Read all sources. ``flags`` that are None were not given. ``file`` None: ``comity.toml`` in ``cwd`` if there
        is one.

        Raises BadSettings naming the field and its source.
        """
        env = os.environ if env is None else env
        found: dict[str, Any] = {}
        sources = dict.fromkeys(cls.__struct_fields__, "default")
        for origin, values in (*_file_values(file, cwd or Path()), *_env_values(env), *_flag_values(flags or {})):
            for name, value in values.items():
                converted = _convert(name, value, origin)
                found[name] = {**found.get(name, {}), **converted} if name in TABLES else converted
                sources[name] = origin
        if "raft" in found:
            found["raft"] = RaftSettings(**found["raft"])
        if "data_dir" not in found:
            found["data_dir"] = data_home(env) / str(found.get("network", DEFAULT_NETWORK))
        try:
            return Loaded(cls(**found), sources)
        except BadSettings as error:
            error.details["source"] = sources[error.details["setting"]]
            raise


_LEAST = {
    "retries": 0, "retry_factor": 1, "retry_budget": 0, "poison_nodes": 0, "max_waiting": 1, "max_waiting_bytes": 1,
    "max_waiting_per_submitter": 0, "keep_finished": 1, "keep_dead": 0, "snapshot_every": 1, "replicas": 1,
    "breaker_failures": 1, "health_failures": 1, "health_successes": 1, "inspect_rate_mb": 0, "max_mailbox": 1, "max_mail": 1,
}  # fmt: skip
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Settings)}


def _file_values(file: Path | None, cwd: Path) -> list[tuple[str, dict[str, Any]]]:
    path = file or cwd / FILE_NAME
    if file is None and not path.is_file():
        return []
    try:
        values = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise BadSettings(f"cannot read {path}: {error.strerror}", source=str(path)) from error
    except msgspec.DecodeError as error:
        raise BadSettings(f"{path} is not TOML: {error}", source=str(path)) from error
    return [(str(path), values)]


def _env_values(env: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Each setting's variable. Others that start with COMITY_ are not ours to refuse, unless one looks like a slip."""
    values = []
    for key in sorted(env):
        name = key.removeprefix(PREFIX).lower()
        if not key.startswith(PREFIX) or not env[key]:
            continue
        if name in _TYPES:
            values.append((key, {name: env[key]}))
        elif near := _near(name):
            raise BadSettings(f"{key} is no setting; did you mean {PREFIX}{near.upper()}?", setting=name, source=key)
    return values


def _flag_values(flags: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"--{name.replace('_', '-')}", {name: value}) for name, value in flags.items() if value is not None]


def _near(name: str) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(name, sorted(_TYPES), n=1, cutoff=0.85)), "")


def _convert(name: str, value: Any, origin: str) -> Any:
    if name not in _TYPES:
        near = _near(name)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(_TYPES)}"
        raise BadSettings(f"{origin}: {name!r} is no setting; {hint}", setting=name, source=origin)
    kind = _TYPES[name]
    if isinstance(value, str) and name == "urls":
        parts = [value] if value.strip().startswith(("amqp://", "amqps://")) else value.split(",")
        value = tuple(part.strip() for part in parts if part.strip())
    if isinstance(value, str) and name in TABLES:
        value = {part: said for part, _, said in (pair.partition("=") for pair in value.split())}
    if isinstance(value, str | os.PathLike) and kind in (Path, Path | None):
        return Path(value).expanduser()
    try:
        if name == "raft":
            made = msgspec.convert(value, RaftSettings, strict=False)
            return {part: getattr(made, part) for part in value}
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise BadSettings(f"{origin}: {name}: {error}", setting=name, source=origin, value=str(value)) from None
