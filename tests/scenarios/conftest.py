"""``pytest tests/scenarios --rewrite`` writes the traces anew; look at the difference before keeping it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the traces of scenario files anew")
