"""What one Python file holds: its size, functions, complexity, public names and imports. Plain functions, no agents.

Complexity is McCabe's number ("A Complexity Measure", 1976): decisions + 1, for each function by itself. Decisions are
``if``, ``elif``, loops, ``except``, conditional expressions, each further operand of ``and``/``or``, each ``for`` and
``if`` of a comprehension, and each refutable ``case``.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

BINS = (1, 3, 5, 10, 20, 50)
"""Upper bounds of the first complexity classes in ``FileSurvey.spread``; the last class is open."""
KEPT = 8
"""How many complex functions and undocumented names a survey lists by name; all are counted."""
SOURCE = "surveyed_source"


@dataclass(frozen=True, slots=True)
class Function:
    """A function or method: its dotted name in the file, first line, length in lines, and complexity."""

    name: str
    line: int
    lines: int
    complexity: int


@dataclass(slots=True)
class FileSurvey:
    """What was found in ``path`` (relative to the folder). ``size`` is in bytes. With ``error``, only size and lines
    hold.

    ``imports`` run when the module is imported, ``deferred`` ones later or never (in functions, for type checkers).
    ``a.b`` stands for ``import a.b``, ``a:b`` for ``from a import b``; relative ones keep their leading dots.
    ``most_complex`` and ``undocumented_names`` list the first ``KEPT`` only.
    """

    path: str
    size: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    complexity: int = 0
    spread: list[int] = field(default_factory=lambda: [0] * (len(BINS) + 1))
    most_complex: list[Function] = field(default_factory=list)
    public: int = 0
    undocumented: int = 0
    undocumented_names: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    error: str = ""


def survey_file(folder: Path, path: str) -> FileSurvey:
    """Survey ``folder/path``. A file that cannot be read or parsed counts all the same, with ``error`` saying why."""
    found = FileSurvey(path)
    try:
        source = (folder / path).read_bytes()
    except OSError as error:
        found.error = error.strerror or type(error).__name__
        return found
    found.size = len(source)
    found.lines = len(source.splitlines())
    try:
        tree = _parse(source)
        _Walk(found).read(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        return FileSurvey(path, found.size, found.lines, error=reason)
    return found


def survey_files(folder: Path, paths: Sequence[str]) -> Iterator[FileSurvey]:
    """Survey the files one by one, in the given order."""
    return (survey_file(folder, path) for path in paths)


def is_test(path: str) -> bool:
    """Whether a file belongs to tests, going by its name and its folders' names."""
    pure = PurePosixPath(path)
    folders = any(part in ("test", "tests") or part.endswith("_test") for part in pure.parts[:-1])
    return folders or pure.name.startswith("test_") or pure.stem.endswith("_test") or pure.name == "conftest.py"


def _parse(source: bytes) -> ast.Module:
    # Surveyed code may hold invalid escapes; the parser's warnings about them concern its authors, not our log.
    warnings.filterwarnings("ignore", module=SOURCE)
    return ast.parse(source, filename=SOURCE)


@dataclass(slots=True)
class _Scope:
    """Where the walk is: dotted prefix, whether names are public and code runs at import; the function's decisions."""

    prefix: str
    public: bool
    at_import: bool
    decisions: list[int] = field(default_factory=lambda: [0])


_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = frozenset({ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler})
_LEAVES = frozenset({ast.Name, ast.Constant, ast.Pass, ast.Break, ast.Continue, ast.Global, ast.Nonlocal, ast.alias})
_NO_NODES = frozenset({"ctx", "op", "ops", "id", "name", "attr", "arg", "kind", "type_comment", "module", "level"})


class _Walk:
    """One pass over a module's tree. Most nodes are names and constants, so those are skipped before anything else."""

    def __init__(self, found: FileSurvey) -> None:
        self.found = found
        self.all_functions: list[Function] = []
        self.documented: dict[str, bool] = {}
        self.pending: list[tuple[ast.AST, _Scope]] = []
        self.fields: dict[type[ast.AST], tuple[str, ...]] = {}

    def read(self, tree: ast.Module) -> None:
        stem = PurePosixPath(self.found.path).stem
        public = not stem.startswith("_") or stem == "__init__"
        scope = _Scope("", public, at_import=True)
        if public and tree.body:
            self._name("(module)", tree)
        owners: list[tuple[_FunctionNode, _Scope]] = []
        self._push(tree, scope)
        while self.pending:
            node, scope = self.pending.pop()
            inner = self._enter(node, scope)
            if inner is not scope and isinstance(node, _FunctionNode):
                owners.append((node, inner))
            self._push(node, inner)
        for node, inner in owners:
            self._function(node, inner)
        self._finish()

    def _push(self, node: ast.AST, scope: _Scope) -> None:
        kind = type(node)
        fields = self.fields.get(kind)
        if fields is None:
            fields = self.fields[kind] = tuple(name for name in kind._fields if name not in _NO_NODES)
        for name in fields:
            value = getattr(node, name)
            if value.__class__ is list:
                nodes = [item for item in value if isinstance(item, ast.AST) and type(item) not in _LEAVES]
                self.pending += [(item, scope) for item in nodes]
            elif isinstance(value, ast.AST) and type(value) not in _LEAVES:
                self.pending.append((value, scope))

    def _enter(self, node: ast.AST, scope: _Scope) -> _Scope:
        """Count what ``node`` is; the scope of its children."""
        if isinstance(node, ast.expr):
            if isinstance(node, ast.BoolOp):
                scope.decisions[0] += len(node.values) - 1
            elif isinstance(node, ast.IfExp):
                scope.decisions[0] += 1
        elif type(node) in _BRANCHES:
            scope.decisions[0] += 1
            if isinstance(node, ast.If) and _never_at_import(node.test):
                later = _Scope(scope.prefix, scope.public, False, scope.decisions)
                self.pending += [(item, scope) for item in node.orelse]
                node.orelse = []
                return later
        elif isinstance(node, ast.comprehension):
            scope.decisions[0] += 1 + len(node.ifs)
        elif isinstance(node, _FunctionNode):
            if scope.public and not node.name.startswith("_") and not _continues_another(node):
                self._name(scope.prefix + node.name, node)
            return _Scope(f"{scope.prefix}{node.name}.", public=False, at_import=False)
        elif isinstance(node, ast.ClassDef):
            self.found.classes += 1
            public = scope.public and not node.name.startswith("_")
            if public:
                self._name(scope.prefix + node.name, node)
            return _Scope(f"{scope.prefix}{node.name}.", public, scope.at_import, scope.decisions)
        elif isinstance(node, ast.match_case):
            refutable = not (isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None)
            scope.decisions[0] += refutable
        elif isinstance(node, ast.Import | ast.ImportFrom):
            (self.found.imports if scope.at_import else self.found.deferred).extend(_targets(node))
        return scope

    def _name(self, name: str, node: ast.Module | ast.ClassDef | _FunctionNode) -> None:
        """A public name; one that is defined in several branches counts once, and is documented if one of them is."""
        self.documented[name] = self.documented.get(name, False) or ast.get_docstring(node, clean=False) is not None

    def _function(self, node: _FunctionNode, scope: _Scope) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        self.all_functions.append(Function(scope.prefix[:-1], node.lineno, lines, scope.decisions[0] + 1))

    def _finish(self) -> None:
        found = self.found
        found.functions = len(self.all_functions)
        found.complexity = sum(function.complexity for function in self.all_functions)
        for function in self.all_functions:
            found.spread[sum(function.complexity > bound for bound in BINS)] += 1
        self.all_functions.sort(key=lambda function: (-function.complexity, function.line))
        found.most_complex = self.all_functions[:KEPT]
        found.imports = sorted(set(found.imports))
        found.deferred = sorted(set(found.deferred) - set(found.imports))
        bare = [name for name, documented in self.documented.items() if not documented]
        found.public, found.undocumented = len(self.documented), len(bare)
        found.undocumented_names = sorted(bare, key=lambda name: (name.count("."), name))[:KEPT]


def _never_at_import(test: ast.expr) -> bool:
    """``TYPE_CHECKING`` or ``__name__ == "__main__"``: false while another module imports this one."""
    if isinstance(test, ast.Compare):
        return isinstance(test.left, ast.Name) and test.left.id == "__name__"
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def _continues_another(node: _FunctionNode) -> bool:
    """An overload or a property's setter or deleter: documented, if at all, at the definition it belongs to."""
    for decorator in node.decorator_list:
        name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
        if name in ("overload", "setter", "deleter"):
            return True
    return False


def _targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    """What an import asks for: ``import a.b`` gives ``a.b``, ``from a import b`` gives ``a:b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = "." * node.level + (node.module or "")
    return [base if alias.name == "*" else f"{base}:{alias.name}" for alias in node.names]
