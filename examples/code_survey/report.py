"""The report: one HTML file that needs nothing else. Plain functions, no agents."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import log2
from pathlib import Path

from code_survey.analysis import BINS, FileSurvey, Function, is_test
from code_survey.references import CrossReference, Imported
from code_survey.timeline import Run, timeline
from code_survey.treemap import STEPS, treemap

ROWS = 16


@dataclass(slots=True)
class Coverage:
    """Whether each listed file was surveyed, and once. Lists are sorted."""

    listed: int
    surveyed: int
    missing: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unasked: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.twice or self.unasked)


def coverage(listed: Sequence[str], surveys: Sequence[FileSurvey]) -> Coverage:
    """Compare the files that the splitter listed with those that the surveys hold."""
    asked = set(listed)
    counts = Counter(survey.path for survey in surveys)
    return Coverage(
        len(asked),
        len(counts),
        missing=sorted(asked - counts.keys()),
        twice=sorted(path for path, count in counts.items() if count > 1),
        unasked=sorted(counts.keys() - asked),
    )


def write_report(
    out: Path, folder: str, listed: Sequence[str], surveys: Sequence[FileSurvey], references: CrossReference, run: Run
) -> Coverage:
    """Write the page to ``out``, whole or not at all, and say what it covers."""
    covered = coverage(listed, surveys)
    text = page(folder, covered, sorted(surveys, key=lambda survey: survey.path), references, run)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(out)
    return covered


def page(folder: str, covered: Coverage, surveys: Sequence[FileSurvey], references: CrossReference, run: Run) -> str:
    """The whole page as text."""
    name = Path(folder).name or folder
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    sections = "".join(
        [
            _head(name, folder, covered, surveys, references, run),
            _map(surveys),
            _run(run),
            _complexity(surveys),
            _references(references),
            _undocumented(surveys, references),
            _unparsed(surveys),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(name)}: code survey</title>'
        f"<style>{style}</style></head><body><main>{sections}{_FOOT}</main></body></html>\n"
    )


def _head(
    name: str, folder: str, covered: Coverage, surveys: Sequence[FileSurvey], references: CrossReference, run: Run
) -> str:
    lines = sum(survey.lines for survey in surveys)
    functions = sum(survey.functions for survey in surveys)
    complexity = sum(survey.complexity for survey in surveys) / functions if functions else 0.0
    own = [survey for survey in surveys if not is_test(survey.path)]
    public = sum(survey.public for survey in own)
    documented = public - sum(survey.undocumented for survey in own)
    figures = [
        (f"{len(surveys):,}", "files"),
        (f"{lines:,}", "lines"),
        (f"{functions:,}", "functions"),
        (f"{complexity:.1f}", "mean complexity"),
        (f"{documented / public:.0%}" if public else "none", "names documented"),
        (f"{references.links:,}", "imports inside"),
    ]
    cells = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for value, label in figures)
    return (
        f'<header><p class="eyebrow">Code survey</p><h1>{escape(name)}</h1><p class="lead">{_lead(surveys, run)}</p>'
        f'{_proof(covered)}<dl class="figures">{cells}</dl><p class="where">{escape(folder)}</p></header>'
    )


def _lead(surveys: Sequence[FileSurvey], run: Run) -> str:
    if not run.work:
        return f"{len(surveys):,} files of Python, read from end to end."
    nodes, agents = len(run.nodes), len({(one.node, one.agent) for work in run.work if work.files for one in work.tries})
    crew = f"{agents} agent{'s' * (agents != 1)} on {nodes} node{'s' * (nodes != 1)}"
    text = f"{len(surveys):,} files of Python, read by {crew} in {run.seconds:.1f} seconds."
    moved, gap = len(run.moved()), run.gap()
    if run.losses:
        text += f' <span class="whole">{escape(run.losses[0].node)}</span> was killed on the way.'
        if gap is not None:
            batches = "One batch that it held was" if moved == 1 else f"The {moved} batches that it held were"
            text += f" {batches} running elsewhere {gap:.2f} seconds later."
    return text


def _proof(covered: Coverage) -> str:
    counts = f"{covered.listed:,} listed, {covered.surveyed:,} surveyed, "
    counts += f"{len(covered.missing):,} missing, {len(covered.twice):,} twice"
    if covered.is_exact:
        return f'<p class="proof"><b>Every file once</b> {counts}</p>'
    names = ", ".join([*covered.missing, *covered.twice, *covered.unasked][:20])
    return f'<p class="proof bad"><b>Not every file once</b> {counts}: {escape(names)}</p>'


def _section(title: str, told: str, body: str) -> str:
    return f"<section><h2>{title}</h2><p>{told}</p>{body}</section>"


def _map(surveys: Sequence[FileSurvey]) -> str:
    bounds = ["up to 1.5", *(f"to {step:g}" for step in STEPS[1:]), f"above {STEPS[-1]:g}"]
    keys = "".join(f'<li><i class="c{number}"></i>{text}</li>' for number, text in enumerate(bounds))
    legend = f'<ul class="legend"><li>Mean complexity of a function</li>{keys}<li><i class="none"></i>no functions</li></ul>'
    told = "Every tile is a file; its area is its lines, its colour how tangled its functions are. Point at one to read it."
    return _section("Where the lines are", told, f'{legend}<div class="plot">{treemap(surveys)}</div>')


def _run(run: Run) -> str:
    if not run.work:
        return ""
    told = "A lane per node, a row per agent, a bar per batch of files."
    if run.losses:
        told += " What the killed node held is outlined; threads lead to where the network had it done again."
    keys = [("done", "batch surveyed"), ("other", "splitter, cross-referencer")]
    if run.moved():
        keys += [("lost", "lost with its node"), ("again", "done again elsewhere")]
    legend = "".join(f'<li><i class="{css}"></i>{text}</li>' for css, text in keys)
    return _section("The run", told, f'<ul class="legend">{legend}</ul><div class="plot">{timeline(run)}</div>')


def _complexity(surveys: Sequence[FileSurvey]) -> str:
    own = [survey for survey in surveys if not is_test(survey.path)]
    ranked: list[tuple[Function, str]] = [(function, survey.path) for survey in own for function in survey.most_complex]
    ranked.sort(key=lambda pair: (-pair[0].complexity, pair[1], pair[0].line))
    most = ranked[0][0].complexity if ranked else 1
    rows = [
        f'<tr><td class="code">{_dotted(function.name)}</td><td class="code dim">{_code(path)}:{function.line}</td>'
        f'<td class="number">{function.lines:,}</td><td class="number">{function.complexity}</td>'
        f'<td class="bar">{_bar("c5", function.complexity / most)}</td></tr>'
        for function, path in ranked[:ROWS]
    ]
    table = _table(("Function", "Where", "Lines", "Complexity", ""), rows)
    told = (
        "McCabe's number counts the paths through a function: its decisions plus one. "
        "Above 10 a function gets hard to test. Tests are left out."
    )
    left = f"<div>{_spread(own)}{_packages(own)}</div>"
    return _section("Tangled functions", told, f'<div class="pair">{left}{table}</div>')


def _spread(surveys: Sequence[FileSurvey]) -> str:
    """How many functions fall into each class of complexity, as a list of bars."""
    counts = [sum(survey.spread[number] for survey in surveys) for number in range(len(BINS) + 1)]
    total, most = sum(counts) or 1, max(counts) or 1
    names = ["1", *(f"{low + 1} to {high}" for low, high in pairwise(BINS)), f"over {BINS[-1]}"]
    rows = [
        f'<tr title="{count:,} functions, {count / total:.1%}"><td class="number dim">{name}</td>'
        f'<td class="bar">{_bar("c4", count / most)}</td><td class="number">{count:,}</td></tr>'
        for name, count in zip(names, counts, strict=True)
    ]
    return _table(("Complexity", "", "Functions"), rows, "spread")


def _packages(surveys: Sequence[FileSurvey]) -> str:
    """The packages, or top-level modules, with the most complex functions on average."""
    sums: dict[str, tuple[int, int]] = {}
    for survey in surveys:
        name = survey.path.partition("/")[0]
        functions, complexity = sums.get(name, (0, 0))
        sums[name] = (functions + survey.functions, complexity + survey.complexity)
    large = [(name, *pair) for name, pair in sums.items() if pair[0] >= 20]
    means = sorted((-complexity / functions, name, functions) for name, functions, complexity in large)
    if len(means) < 2:
        return ""
    rows = [
        f'<tr title="{functions:,} functions"><td class="code">{_code(name)}</td>'
        f'<td class="bar">{_bar("c4", mean / means[0][0])}</td><td class="number">{-mean:.1f}</td></tr>'
        for mean, name, functions in means[:8]
    ]
    return _table(("Package or module", "", "Mean"), rows, "spread")


def _references(references: CrossReference) -> str:
    shown = references.imported[:ROWS]
    most = max((item.by_code for item in shown), default=0) or 1
    rows = [
        f'<tr><td class="code" title="{escape(item.path)}">{_code(item.module)}</td>'
        f'<td class="bar">{_bar("c5", item.by_code / most)}</td>'
        f'<td class="number">{item.by_code:,}</td><td class="number dim">{item.by_tests:,}</td></tr>'
        for item in shown
    ]
    table = _table(("Module", "", "By code", "By tests"), rows)
    told = "How many files import a module, counting files of this folder only, whichever way they write it."
    return _section("What everything leans on", told, f'<div class="pair wide-left">{table}{_cycles(references)}</div>')


def _cycles(references: CrossReference) -> str:
    if not references.cycles:
        return '<div class="aside"><h3>Cycles</h3><p>None: the modules can be put in an order.</p></div>'
    items = []
    for group in references.cycles[:12]:
        names = " ".join(f"<code>{_code(name)}</code>" for name in group[:8])
        items.append(f"<li>{names}{f' and {len(group) - 8} more' if len(group) > 8 else ''}</li>")
    rest = len(references.cycles) - len(items)
    more = f"<p>and {rest} more</p>" if rest > 0 else ""
    told = "Modules that import each other while being imported. Imports inside functions do not count; tests are left out."
    return f'<div class="aside"><h3>Cycles</h3><p>{told}</p><ul class="cycles">{"".join(items)}</ul>{more}</div>'


def _undocumented(surveys: Sequence[FileSurvey], references: CrossReference) -> str:
    by_path: dict[str, Imported] = {item.path: item for item in references.imported}
    own = [survey for survey in surveys if survey.undocumented and not is_test(survey.path)]

    def importers(survey: FileSurvey) -> int:
        item = by_path.get(survey.path)
        return item.by_code + item.by_tests if item else 0

    own.sort(key=lambda survey: (-survey.undocumented * log2(2 + importers(survey)), survey.path))
    rows = [
        f'<tr><td class="code">{_code(survey.path)}</td><td class="number">{survey.undocumented:,}</td>'
        f'<td class="number dim">of {survey.public:,}</td><td class="bar">{_bar("c4", survey.undocumented / survey.public)}</td>'
        f'<td class="number">{importers(survey):,}</td><td class="names">{_names(survey)}</td></tr>'
        for survey in own[:ROWS]
    ]
    told = (
        "Public names without a docstring, in the modules where it matters most: many such names, many importers. "
        "A name that starts with an underscore is not public. Tests are left out."
    )
    heads = ("Module", "Undocumented", "", "", "Importers", "Such as")
    body = _table(heads, rows, "undocumented") if rows else "<p>Every public name has a docstring.</p>"
    return _section("Undocumented", told, body)


def _names(survey: FileSurvey) -> str:
    shown = ""
    names = [name for name in survey.undocumented_names if not name.startswith("(")]
    for name in names[:4]:
        if shown and len(shown) + len(name) > 64:
            break
        shown += f"{', ' if shown else ''}{name}"
    return f"<code>{_code(shown)}</code>"


def _unparsed(surveys: Sequence[FileSurvey]) -> str:
    failed = [survey for survey in surveys if survey.error]
    if not failed:
        return ""
    rows = [
        f'<tr><td class="code">{_code(survey.path)}</td><td class="dim">{escape(survey.error)}</td></tr>'
        for survey in failed[: 2 * ROWS]
    ]
    count = "One file is" if len(failed) == 1 else f"{len(failed):,} files are"
    told = f"{count} not today's Python. Their lines count, their functions cannot."
    return _section("Could not be parsed", told, _table(("File", "Reason"), rows))


def _table(heads: Sequence[str], rows: Iterable[str], css: str = "") -> str:
    numeric = {"Lines", "Complexity", "Functions", "Mean", "By code", "By tests", "Undocumented", "Importers"}
    cells = "".join(f'<th scope="col"{" class=number" if head in numeric else ""}>{head}</th>' for head in heads)
    return f'<div class="scroll"><table class="{css}"><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _bar(css: str, share: float) -> str:
    return f'<i class="{css}" style="width:{share * 100:.1f}%"></i>'


def _code(text: str) -> str:
    """Code that may be broken after its dots, slashes and underscores."""
    return re.sub(r"(?<=[a-z0-9])([./_])(?=\w)", r"\1<wbr>", escape(text))


def _dotted(name: str) -> str:
    """A dotted name with its last part standing out."""
    before, dot, last = name.rpartition(".")
    return f'<span class="dim">{_code(before + dot)}</span>{"<wbr>" if dot else ""}{_code(last)}'


_FOOT = (
    "<footer><p>Areas count all lines, blank ones and comments too. A nested function counts by itself. "
    "An import belongs to the file it resolves to in this folder; names from outside are left out.</p>"
    "<p>Made by a crew of Comity agents: a splitter, surveyors, a cross-referencer and a reporter.</p></footer>"
)
