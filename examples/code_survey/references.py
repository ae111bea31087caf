"""Who imports whom inside one tree of Python files: most imported modules, and cycles. Plain functions, no agents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from code_survey.analysis import is_test


@dataclass(slots=True)
class Imports:
    """The imports of one file, as ``FileSurvey`` holds them."""

    path: str
    imports: list[str]
    deferred: list[str]


@dataclass(slots=True)
class Imported:
    """How many files of the tree import the file at ``path``: ``by_code`` ordinary ones and ``by_tests`` tests."""

    path: str
    module: str
    by_code: int = 0
    by_tests: int = 0


@dataclass(slots=True)
class CrossReference:
    """``imported``: every file that another one imports, most imported first. ``cycles``: groups of modules that cannot
    be imported without each other, tests apart, largest first. ``links``: pairs of files, the first importing the second.
    """

    imported: list[Imported] = field(default_factory=list)
    cycles: list[list[str]] = field(default_factory=list)
    links: int = 0


def cross_reference(files: Sequence[Imports]) -> CrossReference:
    """Resolve all imports to files of the tree; names from outside are left out."""
    tree = _Tree(files)
    counts = {file.path: Imported(file.path, tree.names[file.path]) for file in files}
    at_import: dict[str, list[str]] = {}
    links = 0
    for file in sorted(files, key=lambda file: file.path):
        at_import[file.path] = tree.resolve(file.path, file.imports)
        for target in {**dict.fromkeys(at_import[file.path]), **dict.fromkeys(tree.resolve(file.path, file.deferred))}:
            links += 1
            if is_test(file.path):
                counts[target].by_tests += 1
            else:
                counts[target].by_code += 1
    imported = [count for count in counts.values() if count.by_code or count.by_tests]
    imported.sort(key=lambda count: (-count.by_code, -count.by_tests, count.path))
    code = {path: [to for to in needed if not is_test(to)] for path, needed in at_import.items() if not is_test(path)}
    cycles = [sorted(tree.names[path] for path in group) for group in _strong_components(code) if len(group) > 1]
    cycles.sort(key=lambda group: (-len(group), group))
    return CrossReference(imported, cycles, links)


def module_names(paths: Sequence[str]) -> dict[str, str]:
    """Dotted module name of each file: its folders count as far up as they hold an ``__init__.py``."""
    present = set(paths)
    names = {}
    for path in paths:
        pure = PurePosixPath(path)
        parts = [] if pure.name == "__init__.py" else [pure.stem]
        folder = pure.parent
        while f"{folder}/__init__.py" in present:
            parts.append(folder.name)
            folder = folder.parent
        names[path] = ".".join(reversed(parts)) or pure.stem
    return names


class _Tree:
    """The files by module name (of several with one name, the one nearest the root), and what each package imports."""

    def __init__(self, files: Sequence[Imports]) -> None:
        self.names = module_names([file.path for file in files])
        self.files: dict[str, str] = {}
        for file in sorted(files, key=lambda file: (file.path.count("/"), file.path)):
            self.files.setdefault(self.names[file.path], file.path)
        self.bound = {file.path: self._bound(file) for file in files}

    def _bound(self, file: Imports) -> set[str]:
        """Names the file gets with ``from x import name``, x being another module than itself."""
        here = self.names[file.path].split(".")
        pairs = [target.partition(":") for target in file.imports]
        return {name for base, _, name in pairs if name and self._absolute(file.path, base) != here}

    def resolve(self, path: str, targets: Sequence[str]) -> list[str]:
        """Files that ``targets`` name, seen from ``path``: for each the longest known prefix; never the file itself.

        ``a:b`` is the module ``a.b``, unless package ``a`` itself imports some ``b`` from elsewhere: then it is that.
        """
        found: dict[str, None] = {}
        for target in targets:
            base, _, name = target.partition(":")
            parts = self._absolute(path, base)
            package = self.files.get(".".join(parts), "")
            own = package != path and name in self.bound.get(package, ())
            if name and not own:
                parts.append(name)
            while parts and ".".join(parts) not in self.files:
                parts.pop()
            if parts and self.files[".".join(parts)] != path:
                found[self.files[".".join(parts)]] = None
        return list(found)

    def _absolute(self, path: str, base: str) -> list[str]:
        name = base.lstrip(".")
        level = len(base) - len(name)
        parts = name.split(".") if name else []
        if not level:
            return parts
        here = self.names[path].split(".")
        up = level - 1 if path.endswith("__init__.py") else level
        return [*here[: max(len(here) - up, 0)], *parts]


def _strong_components(graph: dict[str, list[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan, "Depth-First Search and Linear Graph Algorithms", 1972), not recursive."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_nodes: list[str] = []
    is_open: set[str] = set()
    components = []
    for root, first in graph.items():
        if root in order:
            continue
        path = [(root, iter(first))]
        order[root] = lowest[root] = len(order)
        open_nodes.append(root)
        is_open.add(root)
        while path:
            node, successors = path[-1]
            for successor in successors:
                if successor not in order:
                    order[successor] = lowest[successor] = len(order)
                    open_nodes.append(successor)
                    is_open.add(successor)
                    path.append((successor, iter(graph[successor])))
                    break
                if successor in is_open:
                    lowest[node] = min(lowest[node], order[successor])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == order[node]:
                    cut = open_nodes.index(node)
                    components.append(open_nodes[cut:])
                    is_open.difference_update(open_nodes[cut:])
                    del open_nodes[cut:]
    return components
