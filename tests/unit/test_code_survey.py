"""The analysis behind the code-survey example: listing, surveying, cross-referencing, reporting."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path

import pytest

from code_survey import listing, references, report, timeline, treemap
from code_survey.analysis import BINS, FileSurvey, is_test, survey_file
from code_survey.references import Imports, cross_reference
from code_survey.timeline import Loss, Run, Try, Work


def surveyed(tmp_path: Path, source: str | bytes, name: str = "module.py") -> FileSurvey:
    data = source if isinstance(source, bytes) else textwrap.dedent(source).encode()
    (tmp_path / name).write_bytes(data)
    return survey_file(tmp_path, name)


# What a file holds


@pytest.mark.parametrize(
    ("body", "complexity"),
    [
        ("pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("for x in y: pass\nelse: pass", 2),
        ("while a and b or c: pass", 4),
        ("try: pass\nexcept A: pass\nexcept B: pass\nfinally: pass", 3),
        ("return 1 if a else 2", 2),
        ("return [x for x in y if x if z for w in x]", 5),
        ("with a: return lambda: b or c", 2),
        ("match a:\n case 1: pass\n case [x, *_] if x: pass\n case _: pass", 3),
        ("def inner():\n  if a: pass\nclass C:\n  def m(self):\n    if a: pass", 1),
        ("assert a and b", 2),
    ],
)
def test_complexity_is_decisions_plus_one(tmp_path: Path, body: str, complexity: int) -> None:
    found = surveyed(tmp_path, "def f():\n" + textwrap.indent(body, "  "))
    by_name = {function.name: function for function in found.most_complex}
    assert by_name["f"].complexity == complexity
    assert found.error == ""


def test_functions_are_named_placed_and_counted(tmp_path: Path) -> None:
    found = surveyed(
        tmp_path,
        """\
        class A:
            async def m(self):
                def inner():
                    return 1 or 2

                return inner


        def f(x):
            if x and x > 1:
                return 1
        """,
    )
    got = [(function.name, function.line, function.lines, function.complexity) for function in found.most_complex]
    assert got == [("f", 9, 3, 3), ("A.m.inner", 3, 2, 2), ("A.m", 2, 5, 1)]
    assert (found.functions, found.classes, found.complexity) == (3, 1, 6)
    assert found.spread == [1, 2, *[0] * (len(BINS) - 1)]
    assert found.lines == 11


def test_module_level_code_belongs_to_no_function(tmp_path: Path) -> None:
    found = surveyed(tmp_path, "if a and b: pass\nx = [y for y in z]\n")
    assert (found.functions, found.complexity) == (0, 0)


def test_public_names_without_docstring(tmp_path: Path) -> None:
    found = surveyed(
        tmp_path,
        '''\
        """Documented."""

        class A:
            """Documented."""
            def bare(self): ...
            def told(self):
                """Documented."""
            def _own(self): ...
            @property
            def value(self):
                """Documented."""
            @value.setter
            def value(self, to): ...
            class Inner: ...

        class _B:
            def hidden(self): ...

        try:
            def either():
                """Documented."""
        except E:
            def either(): ...

        @overload
        def f(x: int): ...
        def f(x):
            def nested(): ...
        ''',
    )
    assert found.undocumented_names == ["f", "A.Inner", "A.bare"]
    assert (found.public, found.undocumented) == (8, 3)


def test_a_module_is_a_public_name_unless_private_or_empty(tmp_path: Path) -> None:
    assert surveyed(tmp_path, "x = 1").undocumented_names == ["(module)"]
    assert surveyed(tmp_path, "def f(): ...", "_private.py").public == 0
    assert surveyed(tmp_path, "", "__init__.py").public == 0


def test_imports_are_told_apart_by_when_they_run(tmp_path: Path) -> None:
    found = surveyed(
        tmp_path,
        """\
        import a.b, c
        from .x import y, z as w
        from . import v
        from d import *
        if TYPE_CHECKING:
            import e
        else:
            import f
        if typing.TYPE_CHECKING:
            import g
        if __name__ == "__main__":
            import h
        try:
            import i
        except ImportError:
            i = None
        class K:
            import k
        def late():
            import a.b, l
        """,
    )
    assert found.imports == [".:v", ".x:y", ".x:z", "a.b", "c", "d", "f", "i", "k"]
    assert found.deferred == ["e", "g", "h", "l"]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"def f(:\n", "invalid syntax"),
        (b"print 'old'\n", "Missing parentheses"),
        (b"# -*- coding: nonsense -*-\nx = 1\n", "unknown encoding"),
        (b"x = '\xff'\n", "utf-8"),
        (b"x = 1\x00\n", "null bytes"),
        (b"x = " + b"(" * 5000 + b")" * 5000 + b"\n", "nested"),
    ],
)
def test_a_file_that_does_not_parse_is_counted(tmp_path: Path, source: bytes, error: str) -> None:
    found = surveyed(tmp_path, source)
    assert error in found.error
    assert (found.size, found.lines, found.functions, found.imports) == (len(source), source.count(b"\n"), 0, [])


def test_a_tree_too_deep_to_walk_or_parse_never_raises(tmp_path: Path) -> None:
    found = surveyed(tmp_path, "x = " + "-" * 3000 + "1\n")
    assert found.lines == 1


def test_odd_encodings_and_invalid_escapes_parse(tmp_path: Path) -> None:
    assert surveyed(tmp_path, "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1")).error == ""
    assert surveyed(tmp_path, "\ufeffx = 'bom'\r\n".encode()).error == ""
    assert surveyed(tmp_path, rb"x = '\d'" + b"\n").error == ""


def test_a_file_that_is_gone_is_counted_too(tmp_path: Path) -> None:
    assert survey_file(tmp_path, "gone.py") == FileSurvey("gone.py", error="No such file or directory")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("test/support.py", True),
        ("a/tests/b.py", True),
        ("idlelib/idle_test/x.py", True),
        ("test_x.py", True),
        ("a/x_test.py", True),
        ("conftest.py", True),
        ("a/testing.py", False),
        ("latest/contest.py", False),
        ("unittest/case.py", False),
    ],
)
def test_tests_are_known_by_their_names(path: str, answer: bool) -> None:
    assert is_test(path) is answer


# Which files there are


def test_every_file_is_in_one_batch(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"p{number % 7}" / "q"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"m{number}.py").write_text("x = 1\n" * (number * 37 % 900))
    found = listing.list_files(tmp_path)
    assert sorted(found.files) == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py"))
    assert len(set(found.files)) == 300
    assert all(1 <= len(batch) <= listing.FILES_PER_BATCH for batch in found.batches)


def test_what_is_not_the_folders_own_code_is_passed_over(tmp_path: Path) -> None:
    for path in ("a.py", "b.txt", "site-packages/c.py", ".git/d.py", "venv/e.py", "p/__pycache__/f.py", "p/g.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "broken.py").symlink_to("nowhere.py")
    assert listing.list_files(tmp_path) == listing.Listing([["a.py"], ["p/g.py"]])


def test_a_name_that_is_not_text_is_left_out_and_told(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"odd\xff.py")).write_text("")
    except OSError:
        pytest.skip("this file system refuses such names")
    assert listing.list_files(tmp_path) == listing.Listing([], [r"odd\udcff.py"])


def test_large_files_and_full_batches_start_a_new_one() -> None:
    sizes = {f"{number:04}.py": 1000 for number in range(3000)} | {"large.py": 10**6, "last.py": 1}
    batches = listing.share_out(sizes)
    assert [path for batch in batches for path in batch] == list(sizes)
    assert max(map(len, batches)) == listing.FILES_PER_BATCH
    assert batches[-1] == ["last.py"]
    assert batches[-2] == ["large.py"]


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        listing.list_files(tmp_path / "gone")


# Who imports whom


def imports(**files: list[str]) -> list[Imports]:
    return [Imports(path.replace("__", "/") + ".py", targets, []) for path, targets in files.items()]


def test_imports_resolve_to_the_longest_known_name() -> None:
    found = cross_reference(
        [
            Imports("pkg/__init__.py", [".core:run", "json"], []),
            Imports("pkg/core.py", ["pkg.sub.leaf:thing", "pkg.sub"], [".:sub"]),
            Imports("pkg/sub/__init__.py", ["..core:run"], []),
            Imports("pkg/sub/leaf.py", [".:leaf", "...pkg:core", "pkg:run"], []),
            Imports("tests/test_core.py", ["pkg.core", "pkg:core"], []),
        ]
    )
    counts = {item.module: (item.by_code, item.by_tests) for item in found.imported}
    # core imports leaf and sub; __init__, sub and leaf import core; "pkg:run" is the package's own name, not a module.
    assert counts == {"pkg.core": (3, 1), "pkg": (1, 0), "pkg.sub": (1, 0), "pkg.sub.leaf": (1, 0)}
    assert found.links == 7
    assert found.cycles == [["pkg", "pkg.core", "pkg.sub", "pkg.sub.leaf"]]


def test_a_name_bound_in_the_package_hides_the_submodule() -> None:
    found = cross_reference(
        [
            Imports("unit/__init__.py", [".main:main"], []),
            Imports("unit/main.py", [], []),
            Imports("a.py", ["unit:main"], []),
            Imports("b.py", ["unit.main"], []),
        ]
    )
    assert {item.module: item.by_code for item in found.imported} == {"unit": 1, "unit.main": 2}


def test_cycles_are_largest_first_and_leave_out_late_imports_and_tests() -> None:
    files = imports(a=["b"], b=["c"], c=["a"], d=["e"], e=["d"], f=["g"], g=[], test_x=["test_y"], test_y=["test_x"])
    files.append(Imports("h.py", ["f"], []))
    files[6] = Imports("g.py", [], ["f"])
    assert cross_reference(files).cycles == [["a", "b", "c"], ["d", "e"]]


def test_deep_chains_need_no_recursion() -> None:
    chain = [Imports(f"m{number}.py", [f"m{(number + 1) % 5000}"], []) for number in range(5000)]
    assert [len(group) for group in cross_reference(chain).cycles] == [5000]


def test_module_names_go_up_as_far_as_packages_do() -> None:
    names = references.module_names(["src/pkg/__init__.py", "src/pkg/a.py", "src/b.py", "__init__.py", "c.py"])
    assert names["src/pkg/__init__.py"] == "pkg"
    assert names["src/pkg/a.py"] == "pkg.a"
    assert names["src/b.py"] == "b"
    assert names["c.py"] == "c"


# The pictures


@pytest.mark.parametrize("weights", [[5.0], [6, 6, 4, 3, 2, 2, 1], [100, *[1.0] * 60], [1e-3, 1e-6]])
def test_squarified_boxes_fill_the_area_without_overlap(weights: list[float]) -> None:
    area = treemap.Box(10, 20, 300, 200)
    boxes = treemap.squarify(weights, area)
    assert [box.area for box in boxes] == pytest.approx([weight * area.area / sum(weights) for weight in weights])
    for number, one in enumerate(boxes):
        assert one.x >= 10 - 1e-6
        assert one.y + one.height <= 220 + 1e-6
        for other in boxes[:number]:
            wide = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            high = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(wide, high) <= 1e-6


def test_the_treemap_holds_every_file() -> None:
    surveys = [FileSurvey(f"p{n % 5}/m{n}.py", lines=n * n, functions=n % 3, complexity=n) for n in range(200)]
    surveys += [FileSurvey("<odd>&.py", lines=500), FileSurvey("tests/test_a.py", lines=70)]
    svg = treemap.treemap(surveys)
    merged = [int(count) for count in re.findall(r"<title>(\d+) small files", svg)]
    assert svg.count("<title>") - len(merged) + sum(merged) == len(surveys)
    assert merged
    assert "&lt;odd&gt;&amp;" in svg
    assert "Tests: 70 lines in 1 files" in svg


def example_run() -> Run:
    lost = [Try("node-2", "surveyor-3", 1.0, 2.0, kept=False), Try("node-1", "surveyor-10", 2.25, 3.0, kept=True)]
    return Run(
        ["node-1", "node-2"],
        [
            Work("split", 0, [Try("node-1", "splitter", 0.1, 0.4, kept=True)]),
            Work("survey", 12, [Try("node-1", "surveyor-9", 0.5, 1.5, kept=True)]),
            Work("survey", 8, lost),
        ],
        [Loss("node-2", 2.0)],
        3.1,
    )


def test_a_run_knows_what_moved_and_how_fast() -> None:
    run = example_run()
    assert [(lost.node, after.node) for lost, after in run.moved()] == [("node-2", "node-1")]
    assert run.gap() == pytest.approx(0.25)
    assert Run(["a"], [], [Loss("a", 1.0)], 2.0).gap() is None
    assert timeline.lanes(run.work) == ["node-1", "node-2"]


def test_the_timeline_shows_lost_and_repeated_work() -> None:
    svg = timeline.timeline(example_run())
    assert svg.count('<rect class="lost"') == svg.count('<rect class="again"') == svg.count('<path class="move"') == 1
    assert svg.count('<rect class="done"') == 1
    assert "node-2 killed at 2.0 s" in svg
    assert svg.index("surveyor-9 on node-1") < svg.index("surveyor-10 on node-1")


# The report


class Page(HTMLParser):
    """Checks that tags are balanced and nothing is fetched from elsewhere."""

    VOID = frozenset({"meta", "wbr", "br", "rect", "line", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert tag == "path" or self.open.pop() == tag


def test_the_report_is_one_whole_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    surveyed(tmp_path / "code", "import b\ndef f(x):\n  return x or 1\n", "a.py")
    surveyed(tmp_path / "code", "import a\n", "b.py")
    surveyed(tmp_path / "code", "def f(:\n", "<c>.py")
    listed = ["<c>.py", "a.py", "b.py"]
    surveys = [survey_file(tmp_path / "code", path) for path in listed]
    found = cross_reference([Imports(item.path, item.imports, item.deferred) for item in surveys])
    out = tmp_path / "report.html"
    covered = report.write_report(out, str(tmp_path / "code"), listed, surveys, found, example_run())
    assert covered == report.Coverage(3, 3)
    assert covered.is_exact
    text = out.read_text(encoding="utf-8")
    assert "3 listed, 3 surveyed, 0 missing, 0 twice" in text
    assert "&lt;c&gt;.py" in text
    assert "<c>.py" not in text
    assert "http" not in text
    assert "url(" not in text.replace("url(#hatch)", "")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.links == []
    assert sorted(tmp_path.iterdir()) == [tmp_path / "code", out]


def test_a_report_on_nothing(tmp_path: Path) -> None:
    covered = report.write_report(tmp_path / "r.html", "/empty", [], [], cross_reference([]), Run())
    assert covered == report.Coverage(0, 0)
    assert "0 listed, 0 surveyed" in (tmp_path / "r.html").read_text()


def test_coverage_names_what_is_missing_twice_or_unasked() -> None:
    surveys = [FileSurvey("a.py"), FileSurvey("a.py"), FileSurvey("z.py")]
    covered = report.coverage(["a.py", "b.py"], surveys)
    assert covered == report.Coverage(2, 2, missing=["b.py"], twice=["a.py"], unasked=["z.py"])
    assert not covered.is_exact
    text = report.page("/x", covered, surveys, cross_reference([]), Run())
    assert "Not every file once" in text
    assert "2 listed, 2 surveyed, 1 missing, 1 twice: b.py, a.py, z.py" in text


def test_surveys_survive_json(tmp_path: Path) -> None:
    msgspec = pytest.importorskip("msgspec")
    found = surveyed(tmp_path, "import a\ndef f(x):\n  return x or 1\n")
    assert msgspec.json.decode(msgspec.json.encode(found), type=FileSurvey) == found
    assert dataclasses.asdict(found)["most_complex"] == [{"name": "f", "line": 2, "lines": 2, "complexity": 2}]
