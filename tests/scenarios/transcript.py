"""Scenario files: blocks of commands, each followed by ``----`` and the trace they leave. The form is that of etcd's raft tests.

    # A comment.
    offer 1 a
    ----
    1 effective term=1

A command is words and ``key=value`` pairs. A block ends at a blank line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

RULE = "----"


class Command(NamedTuple):
    name: str
    words: list[str]
    options: dict[str, str]


class Stage(Protocol):
    """One machine, driven by commands. A stage lives for one file."""

    def do(self, command: Command) -> Iterable[str]:
        """Carry out a command; the lines it leaves in the trace."""
        ...


def parse(line: str) -> Command:
    name, *rest = line.split()
    pairs = dict(part.split("=", 1) for part in rest if "=" in part)
    return Command(name, [part for part in rest if "=" not in part], pairs)


def play(text: str, stage: Stage) -> str:
    """The file's text with the traces that ``stage`` really leaves."""
    out: list[str] = []
    trace: list[str] = []
    in_trace = False
    for line in text.splitlines():
        if line == RULE:
            out += [RULE, *trace]
            trace, in_trace = [], True
        elif not line.strip():
            out.append("")
            in_trace = False
        elif not in_trace:
            out.append(line)
            if not line.startswith("#"):
                trace += stage.do(parse(line))
    if trace:
        out += [RULE, *trace]
    return "\n".join(out) + "\n"
