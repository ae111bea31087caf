"""What a docstring says: its summary, and a line for each parameter (Google, NumPy and reStructuredText styles)."""

from __future__ import annotations

import inspect
import re
from typing import Any

_REST = re.compile(r":(?:param|parameter|arg|argument)\s+(?:[^:\s]+\s+)*?(\w+)\s*:\s*(.*)")
_GOOGLE = re.compile(r"(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_NUMPY = re.compile(r"(\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")
_GOOGLE_HEADS = ("args:", "arguments:", "parameters:", "params:")
_NUMPY_HEADS = ("parameters", "other parameters")


def clean(schema: dict[str, Any]) -> None:
    """Take the source's indentation out of a schema's description, as Python 3.13 and later do."""
    if isinstance(text := schema.get("description"), str):
        schema["description"] = inspect.cleandoc(text)


def parse(text: str | None) -> tuple[str, dict[str, str]]:
    """The summary (first paragraph, on one line) and what is said of each parameter."""
    if not text:
        return "", {}
    lines = inspect.cleandoc(text).splitlines()
    summary: list[str] = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith(":"):
            break
        summary.append(line.strip())
    found: dict[str, list[str]] = {}
    i = 0
    while i < len(lines):
        rest = _REST.match(lines[i].strip())
        if rest is not None:
            i = _more(lines, i + 1, 1, found.setdefault(rest[1], [rest[2]]))
        elif lines[i].strip().lower() in _GOOGLE_HEADS:
            i = _google(lines, i + 1, found)
        elif lines[i].strip().lower() in _NUMPY_HEADS and lines[i + 1 : i + 2] and set(lines[i + 1].strip()) == {"-"}:
            i = _numpy(lines, i + 2, found)
        else:
            i += 1
    return " ".join(summary), {name: " ".join(part for part in parts if part) for name, parts in found.items()}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _more(lines: list[str], i: int, indent: int, into: list[str]) -> int:
    """Gather the lines at least ``indent`` deep that follow."""
    while i < len(lines) and lines[i].strip() and _indent(lines[i]) >= indent:
        into.append(lines[i].strip())
        i += 1
    return i


def _google(lines: list[str], i: int, found: dict[str, list[str]]) -> int:
    while i < len(lines) and lines[i].strip():
        depth = _indent(lines[i])
        entry = _GOOGLE.match(lines[i].strip())
        if not depth or entry is None:
            return i
        i = _more(lines, i + 1, depth + 1, found.setdefault(entry[1], [entry[2]]))
    return i


def _numpy(lines: list[str], i: int, found: dict[str, list[str]]) -> int:
    while i < len(lines) and lines[i].strip():
        entry = _NUMPY.match(lines[i].strip())
        if _indent(lines[i]) or entry is None or (lines[i + 1 : i + 2] and set(lines[i + 1].strip()) == {"-"}):
            return i
        said: list[str] = []
        i = _more(lines, i + 1, 1, said)
        while i < len(lines) and not lines[i].strip() and lines[i + 1 : i + 2] and _NUMPY.match(lines[i + 1].strip()):
            i += 1
        for name in entry[1].split(","):
            found.setdefault(name.strip(), said)
    return i
