"""Find the agents of a module or file: ``package.module``, ``path/to/file.py``, either with ``:name``."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from comity.agent import Agent
from comity.errors import ModuleFailed
from comity.node.failing import said_by

__all__ = ["files_of", "load", "replicate", "split"]


def split(target: str) -> tuple[str, str]:
    """The module or file, and the name after the colon ("" if there is none)."""
    place, colon, name = target.rpartition(":")
    return (place, name) if colon and name.replace(".", "").isidentifier() else (target, "")


def load(target: str) -> list[Agent]:
    """Import it and give its agents, each once, in order. Raises ModuleFailed: why it cannot be imported, or that there are none.

    A file is imported by the name it has from the topmost folder of its package, so that its own imports, and functions that
    run in other processes, work.
    """
    place, name = split(target)
    module = _module_of_file(Path(place)) if _is_file(place) else _import(place, Path.cwd())
    if name:
        try:
            found = _agents([getattr(module, name)])
        except AttributeError:
            raise ModuleFailed(f"{place} has no {name!r}", target=target) from None
        if not found:
            raise ModuleFailed(f"{target} is neither an Agent nor a list of them", target=target)
        return found
    found = _agents(vars(module).values())
    if not found:
        raise ModuleFailed(f"{place} makes no Agent (at its top level)", target=target)
    return found


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if path.is_dir():
        path /= "__init__.py"
    if not path.is_file():
        raise ModuleFailed(f"there is no file {path}", path=str(path))
    parts = [] if path.stem == "__init__" else [path.stem]
    root = path.parent
    while (root / "__init__.py").is_file():
        parts.append(root.name)
        root = root.parent
    name = ".".join(reversed(parts))
    module = _import(name, root)
    if Path(module.__file__ or "").resolve() != path:
        raise ModuleFailed(f"{path} is hidden by another module called {name!r}: rename it", path=str(path))
    return module


def _import(name: str, root: Path) -> ModuleType:
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, SystemExit included
        raise ModuleFailed(f"cannot import {name}: {_cause(error)}", module=name) from error


def _cause(error: BaseException) -> str:
    """The error in one line, with the place in the user's code where it arose."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    words = said_by(error)
    said = f"{type(error).__name__}: {words}" if words else type(error).__name__
    lines = traceback.extract_tb(error.__traceback__)
    theirs = [line for line in lines if _is_users(line.filename)]
    return f"{said} ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else said


def _is_users(file: str) -> bool:
    """Whether it is neither ours, nor an installed package's, nor Python's own."""
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts) or file.startswith(("<", _PYTHON))
    return not installed and _OURS not in path.resolve().parents


_OURS = Path(__file__).resolve().parents[1]
_PYTHON = sysconfig.get_path("stdlib")


def _agents(values: Iterable[Any]) -> list[Agent]:
    found: dict[int, Agent] = {}
    for value in values:
        for agent in value if isinstance(value, list | tuple) else [value]:
            if isinstance(agent, Agent):
                found[id(agent)] = agent
    return list(found.values())


def replicate(agents: list[Agent], count: int) -> list[Agent]:
    """``count`` of each agent: itself, now called ``name-1``, and others with its functions, ``name-2`` and so on."""
    if count == 1:
        return agents
    found = []
    for agent in agents:
        twins = [agent.twin(f"{agent.name}-{number}") for number in range(2, count + 1)]
        agent.name = f"{agent.name}-1"
        found += [agent, *twins]
    return found


def files_of(before: Iterable[str], target: str, error: BaseException | None = None) -> list[Path]:
    """What to watch for changes: the files of modules imported since ``before`` that are not installed packages, the target,
    and those that ``error`` tells of."""
    place, _ = split(target)
    known = frozenset(before)
    files = [getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name not in known]
    if _is_file(place):
        files.append(place)
    while error is not None:
        files += [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        files.append(getattr(error, "filename", None))
        error = error.__cause__ or error.__context__
    paths = sorted({Path(file).resolve() for file in files if file and file.endswith(".py")})
    return [path for path in paths if _is_users(str(path))]
