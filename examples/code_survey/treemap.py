"""A treemap of the surveyed files as SVG: area is lines, colour is the mean complexity of a file's functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePosixPath
from typing import NamedTuple

from code_survey.analysis import FileSurvey, is_test

WIDTH, HEIGHT, TESTS, BETWEEN = 1120.0, 600.0, 130.0, 24.0
"""Width, height of the map of code, height of the map of tests, and the space between them."""
STEPS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
"""Upper bounds of mean complexity for the colours c0 to c5; c6 is open."""
LOOSE = "top level"
HEADER = 17.0
SMALLEST = 7.0
"""Files with less area than this, in square units, are drawn as one."""


class Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height

    def inset(self, by: float, top: float = 0.0) -> Box:
        return Box(self.x + by, self.y + by + top, max(self.width - 2 * by, 0), max(self.height - 2 * by - top, 0))


@dataclass(slots=True)
class _Folder:
    """A folder: its own files and its folders, by name. ``weight`` is the sum of their lines."""

    files: list[FileSurvey] = field(default_factory=list)
    folders: dict[str, _Folder] = field(default_factory=dict)
    weight: float = 0.0


def treemap(surveys: Sequence[FileSurvey]) -> str:
    """The SVG element. Folders are boxes in boxes, the outermost named. Tests come below, at a scale of their own."""
    code = [survey for survey in surveys if not is_test(survey.path)]
    tests = [survey for survey in surveys if is_test(survey.path)]
    first = code or tests
    parts: list[str] = []
    height = HEIGHT * min(1.0, max(0.3, len(first) / 60))
    _draw(_tree(first), Box(0, 0, WIDTH, height), parts, depth=0)
    if code and tests:
        parts.append(f'<text class="map" x="1.5" y="{height + 18:.0f}">{_scales(code, tests, height)}</text>')
        _draw(_tree(tests), Box(0, height + BETWEEN, WIDTH, TESTS), parts, depth=0)
        height += BETWEEN + TESTS
    label = f"Treemap of {len(surveys)} files: area is lines, colour is mean complexity"
    body = "".join(parts)
    return f'<svg class="treemap" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{label}">{body}</svg>'


def _scales(code: Sequence[FileSurvey], tests: Sequence[FileSurvey], height: float) -> str:
    lines = sum(map(_weight, tests))
    ratio = (height / sum(map(_weight, code))) / (TESTS / lines)
    scale = f"1/{ratio:.0f} of" if ratio >= 1.5 else f"{1 / ratio:.0f} times" if ratio <= 0.67 else "about"
    return f"Tests: {lines:,.0f} lines in {len(tests):,} files, at {scale} the scale above"


def squarify(weights: Sequence[float], box: Box) -> list[Box]:
    """Boxes with areas in proportion to ``weights`` (positive, descending), as square as they come.

    Bruls, Huizing and van Wijk, "Squarified Treemaps", 2000.
    """
    scale = box.area / sum(weights) if weights else 0.0
    areas = [weight * scale for weight in weights]
    placed: list[Box] = []
    start = 0
    while start < len(areas):
        side = min(box.width, box.height)
        end, row = start + 1, areas[start]
        while end < len(areas) and _worst(areas[start : end + 1], row + areas[end], side) <= _worst(
            areas[start:end], row, side
        ):
            row += areas[end]
            end += 1
        depth = row / side if side else 0.0
        along = 0.0
        for area in areas[start:end]:
            length = area / depth if depth else 0.0
            if box.width >= box.height:
                placed.append(Box(box.x, box.y + along, depth, length))
            else:
                placed.append(Box(box.x + along, box.y, length, depth))
            along += length
        if box.width >= box.height:
            box = Box(box.x + depth, box.y, max(box.width - depth, 0), box.height)
        else:
            box = Box(box.x, box.y + depth, box.width, max(box.height - depth, 0))
        start = end
    return placed


def colour(survey: FileSurvey) -> str:
    """The CSS class of a file's tile."""
    if not survey.functions:
        return "none"
    return f"c{sum(survey.complexity / survey.functions > step for step in STEPS)}"


def _worst(areas: Sequence[float], total: float, side: float) -> float:
    """The largest ratio of sides in a row of boxes along ``side``."""
    if not total or not side:
        return float("inf")
    return max(side * side * areas[0] / total**2, total**2 / (side * side * areas[-1]))


def _weight(survey: FileSurvey) -> float:
    return max(survey.lines, 1)


def _tree(files: Sequence[FileSurvey]) -> _Folder:
    root = _Folder()
    for survey in files:
        folder = root
        folder.weight += _weight(survey)
        parts = PurePosixPath(survey.path).parts[:-1]
        for part in parts:
            folder = folder.folders.setdefault(part, _Folder())
            folder.weight += _weight(survey)
        folder.files.append(survey)
    while len(root.folders) == 1 and not root.files:
        root = next(iter(root.folders.values()))
    if root.folders and root.files:
        root.folders[LOOSE] = _Folder(root.files, {}, sum(map(_weight, root.files)))
        root.files = []
    return root


def _draw(folder: _Folder, box: Box, parts: list[str], depth: int) -> None:
    per_line = box.area / folder.weight if folder.weight else 0.0
    large = [survey for survey in folder.files if _weight(survey) * per_line >= SMALLEST]
    small = [survey for survey in folder.files if _weight(survey) * per_line < SMALLEST]
    items: list[tuple[float, str, _Folder | FileSurvey | list[FileSurvey]]] = [
        *((inner.weight, name, inner) for name, inner in folder.folders.items()),
        *((_weight(survey), survey.path, survey) for survey in large),
    ]
    if small:
        items.append((sum(map(_weight, small)), "", small))
    items.sort(key=lambda item: (-item[0], item[1]))
    for (_, name, item), place in zip(items, squarify([item[0] for item in items], box), strict=True):
        if isinstance(item, _Folder):
            _draw_folder(name, item, place, parts, depth)
        elif isinstance(item, FileSurvey):
            _draw_file(item, place, parts)
        else:
            lines = sum(survey.lines for survey in item)
            parts.append(_tile("none", place, f"{len(item)} small files\n{lines:,} lines together"))


def _draw_folder(name: str, folder: _Folder, box: Box, parts: list[str], depth: int) -> None:
    if depth:
        _draw(folder, box.inset(0.6 if min(box.width, box.height) > 6 else 0), parts, depth + 1)
        return
    box = box.inset(1.5 if min(box.width, box.height) > 8 else 0.2)
    shown = _fit(name, box.width - 6, 6.4)
    if box.height < 46 or len(shown) < min(len(name), 4):
        _draw(folder, box, parts, depth + 1)
        return
    parts.append(f'<text class="folder" x="{box.x + 2:.1f}" y="{box.y + 11.5:.1f}">{escape(shown)}</text>')
    _draw(folder, Box(box.x, box.y + HEADER, box.width, box.height - HEADER), parts, depth + 1)


def _draw_file(survey: FileSurvey, box: Box, parts: list[str]) -> None:
    mean = f"mean complexity {survey.complexity / survey.functions:.1f}" if survey.functions else "no functions"
    told = f"{survey.path}\n{survey.lines:,} lines, {survey.functions:,} functions, {mean}"
    parts.append(_tile(colour(survey), box, f"{told}\nnot parsed: {survey.error}" if survey.error else told))
    name = PurePosixPath(survey.path).stem
    if name == "__init__":
        name = PurePosixPath(survey.path).parent.name + "/"
    shown = _fit(name, box.width - 7, 5.9)
    if box.height >= 17 and (shown == name or len(shown) > 7):
        at = f'x="{box.x + 4:.1f}" y="{box.y + 12.5:.1f}"'
        parts.append(f'<text class="file on-{colour(survey)}" {at}>{escape(shown)}</text>')


def _tile(css: str, box: Box, told: str) -> str:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    return f'<rect class="{css}" {place}><title>{escape(told)}</title></rect>'


def _fit(text: str, width: float, each: float) -> str:
    """As much of ``text`` as fits, with an ellipsis if cut; ``each`` is the mean width of a letter."""
    room = int(width / each)
    if len(text) <= room:
        return text
    return text[: room - 1] + "…" if room > 3 else ""
