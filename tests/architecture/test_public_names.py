"""What users may import from ``comity``: few names, each documented, and nothing done by importing them."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

from source import SRC, tree

import comity

PUBLIC = [
    "Agent", "Attempt", "Break", "Client", "ComityError", "Envelope", "FileRef", "Final", "Message", "Performative", "Refuse",
    "Requirements", "Retry", "Settings", "Strategy", "Task", "TaskFailed", "connect",
]  # fmt: skip
MOST = 20


def test_the_public_names_are_these() -> None:
    assert sorted(comity.__all__) == PUBLIC
    assert len(PUBLIC) <= MOST


def test_every_public_name_is_there_and_documented() -> None:
    for name in comity.__all__:
        found = getattr(comity, name)
        assert inspect.getdoc(found), f"{name} needs a docstring: what it is, what it raises"
        assert not inspect.ismodule(found), f"{name} is a module; export what is in it"


def test_the_package_itself_holds_no_code() -> None:
    allowed = (ast.Import, ast.ImportFrom)
    for node in tree(SRC / "comity" / "__init__.py").body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        assert docstring or names or isinstance(node, allowed), f"line {node.lineno}: move it into a module of its own"


def test_importing_it_starts_nothing_and_loads_no_gateway() -> None:
    """No event loop, thread or socket; and none of the heavy libraries that only some commands need."""
    code = (
        "import sys, threading, comity\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'typer', 'rich', 'prometheus_client', 'pydantic', 'cryptography', 'comity.sim', 'comity.controller'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_public_signatures_are_typed() -> None:
    for name in comity.__all__:
        found = getattr(comity, name)
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            untyped = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
            assert not untyped, f"{name}: every parameter needs a type"
            assert signature.return_annotation is not inspect.Signature.empty, f"{name}: say what it returns"
