"""How it looks: help in plain text (rich alone would cost more time than all of ``--help`` may), tables, colours only where they
help and only on a terminal (NO_COLOR is heeded, see no-color.org)."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from typer.core import TyperCommand, TyperGroup

_STYLES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
}  # fmt: skip
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = re.compile(r"[-+]?[\d,.]+(/\d+)?( ?[a-zA-Z%]{1,2})?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def is_coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(style: str, text: str, stream: TextIO | None = None) -> str:
    """``text`` in a style (words of ``_STYLES``), if ``stream`` (default: stdout) shows colours."""
    if not style or not text or not is_coloured(stream or sys.stdout):
        return text
    codes = ";".join(_STYLES[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def bold(text: str) -> str:
    return paint("bold", text)


def dim(text: str) -> str:
    return paint("dim", text)


def plain(text: str) -> str:
    """``text`` from elsewhere, unable to command the terminal; on one line."""
    return _CONTROL.sub("�", text.replace("\n", " ").replace("\t", " "))


def width_of(text: str) -> int:
    """Columns that ``text`` takes on a terminal."""
    shown = _ANSI.sub("", text)
    if shown.isascii():
        return len(shown)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)


def cut(text: str, width: int) -> str:
    """``text`` in at most ``width`` columns; an ellipsis says that something is missing. Loses its style if cut."""
    if width_of(text) <= width:
        return text
    kept, left = "", max(width - 1, 0)
    for char in _ANSI.sub("", text):
        left -= width_of(char)
        if left < 0:
            break
        kept += char
    return kept.rstrip() + "…"


def span(seconds: float) -> str:
    """A length of time in a few characters."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def megabytes(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MB"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, indent: str = "") -> list[str]:
    """Lines of a table with its columns aligned: numbers to the right. Empty columns are left out, and the last one is cut at
    the terminal's edge."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    shown = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    widths = {i: max(width_of(text) for text in (columns[i], *(row[i] for row in cells))) for i in shown}
    right = {i for i in shown if all(_is_number(row[i]) for row in cells)}
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000

    def line(texts: Sequence[str], style: str = "") -> str:
        parts, used = [], width_of(indent)
        for i in shown:
            text = texts[i] if i != shown[-1] else cut(texts[i], max(room - used, 8))
            pad = " " * (widths[i] - width_of(text))
            parts.append(pad + paint(style, text) if i in right else paint(style, text) + pad)
            used += widths[i] + 2
        return (indent + "  ".join(parts)).rstrip()

    return [line(columns, "dim"), *(line(row) for row in cells)]


def _is_number(text: str) -> bool:
    return not text or _NUMBER.fullmatch(_ANSI.sub("", text)) is not None


class Command(TyperCommand):
    """Help: what it takes, its own options, then those that all commands share."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*(piece.strip("{}") for piece in super().collect_usage_pieces(ctx)), "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                sections.setdefault(_section(param), []).append((row[0], row[1].removesuffix("  [required]")))
        first, last = ("Arguments", "Options"), ("Which network", "Output")
        own = (name for name in sections if name not in (*first, *last))
        for name in (*first, *own, *last):
            if name in sections:
                with formatter.section(bold(name)):
                    formatter.write_dl(sections[name])


def _section(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    if param.name == "help":
        return "Output"
    return getattr(param, "rich_help_panel", None) or "Options"


class Group(TyperGroup):
    """Help: its commands first, then the options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        rows = [row for param in self.get_params(ctx) if (row := param.get_help_record(ctx)) is not None]
        with formatter.section(bold("Options")):
            formatter.write_dl(rows)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        rows = [(name, self.commands[name].get_short_help_str(200)) for name in self.list_commands(ctx)]
        with formatter.section(bold("Commands")):
            formatter.write_dl(rows)
