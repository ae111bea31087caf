"""Tests on a loop of their own: on virtual time a minute takes none, and nothing is late because the machine is busy."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from comity.sim.loop import VirtualLoop

Test = Callable[..., Coroutine[Any, Any, None]]
Play = Callable[[Test, dict[str, Any]], Coroutine[Any, Any, None]]


def on_loop(loop_class: type[asyncio.AbstractEventLoop], play: Play, *gives: str) -> Callable[[Test], Callable[..., None]]:
    """A decorator: ``play`` an async test on such a loop. What it ``gives`` the test by itself is no fixture."""

    def decorate(test: Test) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**given: Any) -> None:
            loop = loop_class()
            faults: list[dict[str, Any]] = []
            loop.set_exception_handler(lambda _loop, context: faults.append(context))
            try:
                loop.run_until_complete(play(test, given))
                assert not faults
            finally:
                if isinstance(loop, VirtualLoop):
                    loop.bury()
                loop.close()

        signature = inspect.signature(test)
        left = [parameter for name, parameter in signature.parameters.items() if name not in gives]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate
