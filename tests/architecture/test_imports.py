"""Who may import whom. The table is the design's, section 5; each refusal says what to do instead."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from source import ROOT, SRC, imports, module_name, python_files, tree

WORDS = ("comity.errors", "comity.model")
WRITES = ("comity.failpoints",)
AGAIN = ("comity.patience",)
DOORS = (
    "comity.bus.base", "comity.bus.outbox", "comity.bus.straying", "comity.registry.base", "comity.log.base", "comity.store.base",
)  # fmt: skip
FACES = (
    "comity.client", "comity.agent", "comity.handles", "comity.message", "comity.speaking", "comity.talking", "comity.directory",
    "comity.finding",
)  # fmt: skip
TALK = ("comity.core.conversations", "comity.core.protocols")
MEMORY = tuple(f"comity.{door}.memory" for door in ("bus", "registry", "log", "store"))
BACKENDS = (
    "comity.bus.nats", "comity.registry.jetstream", "comity.log.jetstream", "comity.log.sqlite", "comity.store.jetstream",
    "comity.store.s3", "comity.s3",
    "comity.store.folder", "comity.jetstream", "comity.registry.etcd", "comity.log.etcd", "comity.log.raft",
    "comity.registry.consul", "comity.etcd", "comity.consul",
    "comity.remote", *MEMORY,
    "comity.bus.rabbitmq", "comity.amqp",
)  # fmt: skip

# Place -> what it may import of Comity. The longest place that a module lies in counts. A place may import itself, except
# the doors' folders, where one backend knows nothing of another.
TABLE: dict[str, tuple[str, ...]] = {
    "comity.errors": (),
    "comity.model": WORDS,
    "comity.core": WORDS,
    "comity.bus": (*WORDS, "comity.bus.base"),
    "comity.bus.nats": (*WORDS, "comity.bus.base", "comity.bus.end", "comity.bus.connection"),
    "comity.bus.rabbitmq": (*WORDS, "comity.bus.base", "comity.bus.end", "comity.amqp"),
    "comity.registry": (
        *WORDS, *WRITES, "comity.registry.base", "comity.jetstream", "comity.etcd", "comity.consul", "comity.remote",
    ),
    "comity.log": (*WORDS, *WRITES, "comity.log.base", "comity.jetstream", "comity.etcd", "comity.remote"),
    "comity.store": (*WORDS, *WRITES, "comity.store.base", "comity.jetstream"),
    "comity.store.s3": (*WORDS, *WRITES, "comity.store.base", "comity.s3"),
    "comity.log.raft": (*WORDS, "comity.log.base", "comity.raft"),
    "comity.raft": (*WORDS, *WRITES, "comity.core", "comity.log.base"),
    "comity.jetstream": WORDS + WRITES,
    "comity.remote": WORDS,
    "comity.s3": WORDS,
    "comity.amqp": WORDS,
    "comity.consul": (*WORDS, "comity.remote"),
    "comity.etcd": (*WORDS, *WRITES, "comity.remote"),
    "comity.failpoints": ("comity.errors",),
    "comity.patience": ("comity.errors",),
    "comity.tie": (),
    "comity.config": WORDS,
    "comity.contexts": (*WORDS, *WRITES, "comity.amqp.address", "comity.config"),
    "comity.credentials": WORDS + WRITES,
    # It asks the servers about themselves, over a connection of its own.
    "comity.cluster": (*WORDS, "comity.credentials", "comity.jetstream", "comity.bus.connection"),
    "comity.embedded": (*WORDS, *WRITES, "comity.credentials", "comity.cluster.config", "comity.ports", "comity.tie"),
    "comity.ports": (*WORDS, "comity.cluster.config"),
    "comity.finding": WORDS,
    "comity.directory": (*WORDS, "comity.finding", "comity.registry.base"),
    "comity.handles": WORDS + FACES,
    "comity.message": WORDS,
    "comity.speaking": FACES,
    "comity.talking": WORDS,
    "comity.agent": WORDS + FACES,
    # A backup reads the log as a standby does, and its state is a snapshot: both are the controller's.
    "comity.backup": WORDS + AGAIN + DOORS + ("comity.core", "comity.controller", "comity.s3"),
    "comity.client": WORDS + AGAIN + WRITES + DOORS + FACES + TALK + ("comity.config",),
    "comity.node": WORDS + AGAIN + WRITES + DOORS + FACES + ("comity.core", "comity.config", "comity.tie"),
    "comity.controller": WORDS + AGAIN + WRITES + DOORS + ("comity.core", "comity.config"),
    "comity.web": WORDS + DOORS + FACES + ("comity.core", "comity.config", "comity.controller"),
    "comity.backends": WORDS + DOORS + BACKENDS,
    "comity.buses": (
        *WORDS, *DOORS, *BACKENDS, "comity.backends", "comity.bus.connection", "comity.connect", "comity.contexts",
        "comity.credentials",
    ),
    "comity.connect": (
        *WORDS, *AGAIN, *DOORS, *BACKENDS, *FACES, "comity.backends", "comity.buses", "comity.config", "comity.contexts",
        "comity.credentials",
    ),
    "comity.sim": WORDS + WRITES + DOORS + FACES + MEMORY + ("comity.core", "comity.config", "comity.node", "comity.controller"),
    "comity.sim.raft": (*WORDS, "comity.core", "comity.raft", "comity.sim"),
    "comity.cli": ("comity",),
    "comity.__main__": ("comity.cli",),
    "comity.lazy": WORDS + FACES + ("comity.config",),
    "comity": (*WORDS, "comity.connect", "comity.lazy"),
}
ALONE = ("comity.bus", "comity.registry", "comity.log", "comity.store")
NOBODY = ("comity.cli", "comity.sim")

# Place -> packages from outside the standard library. Places not named may use any of the base install.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "comity.errors": (),
    "comity.model": ("msgspec",),
    "comity.core": ("msgspec",),
    "comity.bus.base": (),
    "comity.bus.nats": ("msgspec", "nats"),
    "comity.bus.connection": ("nats",),
    "comity.bus.rabbitmq": ("pamqp",),
    "comity.amqp": ("pamqp",),  # the extra rabbitmq
    "comity.bus": ("msgspec",),
    "comity.registry.jetstream": ("msgspec", "nats"),
    "comity.registry": ("msgspec",),
    "comity.log.jetstream": ("msgspec", "nats"),
    "comity.raft": ("msgspec",),
    "comity.raft.__main__": ("uvloop",),
    "comity.log": ("msgspec",),
    "comity.store.jetstream": ("msgspec", "nats"),
    "comity.store": ("msgspec",),
    "comity.jetstream": ("msgspec", "nats"),
    "comity.remote": ("httpx2",),  # the extra etcd
    "comity.etcd": ("msgspec",),
    "comity.consul": ("msgspec",),
    "comity.s3": ("obstore",),  # the extra s3
}
BASE_INSTALL = (
    "cryptography", "jsonschema_rs", "msgspec", "nats", "prometheus_client", "psutil", "rich", "structlog", "typer", "uvloop",
)  # fmt: skip
# Modules of the standard library that would let the world in.
IMPURE = (
    "asyncio", "socket", "threading", "time", "random", "uuid", "os", "logging", "datetime", "secrets", "subprocess", "signal",
    "concurrent", "multiprocessing", "selectors", "pathlib", "tempfile", "io",
)  # fmt: skip
# What runs on the simulated loop takes time and chance from outside.
SIMULATED = ("comity.node", "comity.controller", "comity.client", "comity.agent", "comity.directory", "comity.bus.outbox")

INSTEAD = {
    ("comity.node", "comity.controller"): "they meet on the bus only: put what both need into model or core",
    ("comity.controller", "comity.node"): "they meet on the bus only: put what both need into model or core",
    ("comity.core", "comity.bus"): "a machine returns an effect; the driver performs it on the door",
    ("comity.core", "comity.failpoints"): "core writes nothing: failpoints stand in drivers and backends, around the write",
    ("comity.model", "comity.core"): "nouns know no machine: move the noun to model, or the function to core",
    ("", "comity.cli"): "cli is the edge: move what others need out of it",
    ("", "comity.sim"): "the simulated world imports us, not we it: take a clock, a door or a random source as a parameter",
    ("", BACKENDS): "depend on the door's base.py; cli (and comity/connect.py) choose the backend",
    ("", "comity.embedded"): "only cli starts servers",
}


def lies_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def place_of(module: str, table: dict[str, tuple[str, ...]]) -> str | None:
    """The longest place in ``table`` that ``module`` lies in; ``comity`` itself holds only the package's ``__init__``."""
    found = [place for place in table if (module == place if place == "comity" else lies_in(module, place))]
    return max(found, key=len, default=None)


def advice(module: str, imported: str) -> str:
    for (who, what), text in INSTEAD.items():
        targets = what if isinstance(what, tuple) else (what,)
        if (not who or lies_in(module, who)) and any(lies_in(imported, target) for target in targets):
            return text
    return "see section 5 of the design: pass it in as a parameter, or move the shared part down to model or core"


def complaint(module: str, imported: str) -> str | None:
    """Why ``module`` may not import ``imported``; None if it may."""
    place = place_of(module, TABLE)
    if place is None:
        return "has no place in TABLE yet: say there what it may import"
    top = imported.partition(".")[0]
    if top == "comity":
        allowed = TABLE[place] if place in ALONE else (*TABLE[place], *((place,) if place != "comity" else ()))
        if any(lies_in(imported, other) for other in NOBODY if not lies_in(module, other) and other not in TABLE[place]):
            return advice(module, imported)
        fine = any(lies_in(imported, other) for other in allowed) or module == imported
        return None if fine else advice(module, imported)
    if top in sys.stdlib_module_names:
        if lies_in(module, "comity.core") and top in IMPURE:
            return "a machine is told what happened and says what to do: take it as an event, a field or a parameter"
        return None
    limited = place_of(module, OUTSIDE)
    if limited is not None and top in OUTSIDE[limited]:
        return None
    if limited is not None:
        most = ", ".join(OUTSIDE[limited]) or "the standard library"
        return f"may use only {most} from outside; a backend has one client library"
    if top not in BASE_INSTALL:
        return "is not in the base install: make it an extra, and import it by name where it is used"
    return None


def check(root: Path, files: list[Path]) -> list[str]:
    modules = {module_name(path, root) for path in files}
    found = []
    for path in files:
        module = module_name(path, root)
        for line, imported in imports(path, modules, root):
            if why := complaint(module, imported):
                found.append(f"{path.relative_to(root)}:{line}: {module} imports {imported}: {why}")
    return found


def test_imports_follow_the_table() -> None:
    found = check(SRC, python_files("src"))
    assert not found, "\n" + "\n".join(found)


def test_every_place_in_the_table_exists() -> None:
    modules = {module_name(path) for path in python_files("src")}
    assert [place for place in TABLE if not any(lies_in(module, place) for module in modules)] == []


def test_what_runs_simulated_takes_time_and_chance_from_outside() -> None:
    found = []
    for path in python_files("src"):
        if not any(lies_in(module_name(path), place) for place in SIMULATED):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = f"{node.value.id}.{node.attr}"
                outside = node.value.id in ("time", "random", "secrets", "uuid") and name != "random.Random"
                if outside or name in ("datetime.now", "datetime.utcnow", "os.urandom"):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found.append(f"{where}: {name}: take a clock or a random source as a parameter")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("module", "imported", "words"),
    [
        ("comity.errors", "comity.model.ids", "section 5"),
        ("comity.model.task", "comity.core.tasks", "nouns know no machine"),
        ("comity.model.task", "pydantic", "may use only msgspec"),
        ("comity.core.tasks", "time", "a machine is told"),
        ("comity.core.tasks", "os.path", "a machine is told"),
        ("comity.core.tasks", "comity.bus.base", "the driver performs it"),
        ("comity.core.tasks", "comity.failpoints", "around the write"),
        ("comity.bus.nats", "comity.bus.memory", "base.py"),
        ("comity.bus.nats", "comity.log.base", "section 5"),
        ("comity.bus.memory", "nats", "one client library"),
        ("comity.log.jetstream", "psutil", "one client library"),
        ("comity.node.node", "comity.controller.leader", "on the bus only"),
        ("comity.controller.leader", "comity.node.node", "on the bus only"),
        ("comity.controller.leader", "comity.bus.nats", "base.py"),
        ("comity.client.client", "comity.registry.jetstream", "base.py"),
        ("comity.node.node", "comity.embedded", "only cli starts servers"),
        ("comity.node.node", "comity.sim.loop", "the simulated world imports us"),
        ("comity.cli.up", "comity.sim.loop", "the simulated world imports us"),
        ("comity.sim.doors", "comity.bus.nats", "base.py"),
        ("comity.node.node", "comity.cli.up", "cli is the edge"),
        ("comity.web.page", "pydantic", "base install"),
        ("comity.novelty", "comity.errors", "no place in TABLE"),
    ],
)
def test_a_wrong_import_is_refused_with_advice(module: str, imported: str, words: str) -> None:
    assert words in (complaint(module, imported) or "")


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("comity.core.tasks", "comity.core.archive"),
        ("comity.core.tasks", "msgspec"),
        ("comity.bus.nats", "nats.aio.client"),
        ("comity.store.jetstream", "comity.jetstream"),
        ("comity.connect", "comity.bus.nats"),
        ("comity.cli.up", "comity.embedded"),
        ("comity.sim.doors", "comity.bus.memory"),
        ("comity.controller.leader", "comity.core.tasks"),
        ("comity", "comity.errors"),
    ],
)
def test_a_right_import_is_let_through(module: str, imported: str) -> None:
    assert complaint(module, imported) is None


def test_no_import_escapes_the_look(tmp_path: Path) -> None:
    package = tmp_path / "comity" / "core"
    package.mkdir(parents=True)
    (tmp_path / "comity" / "sim").mkdir()
    (tmp_path / "comity" / "sim" / "loop.py").write_text("")
    (package / "hidden.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import asyncio\n"
        "def f() -> None:\n    from time import monotonic\n    from ..sim import loop\n"
        "class C:\n    import random as r\n"
        "def g() -> None:\n    import importlib\n    importlib.import_module('socket')\n"
    )
    found = check(tmp_path, sorted(tmp_path.rglob("*.py")))
    assert sorted(line.split(" imports ")[1].split(":")[0] for line in found) == [
        "asyncio", "comity.sim.loop", "random", "socket", "time",
    ]  # fmt: skip
