"""``comity submit --stream``: parts of a stream as they come."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

from comity.cli.command import Cli
from comity.cli.looks import plain

if TYPE_CHECKING:
    from comity.client.parts import Parts


async def printed(cli: Cli, parts: Parts, timeout: float | None) -> None:
    """Print a stream: for a person text as text, for a program a line for each part, and the result."""
    from comity import Break
    from comity.errors import TimedOut

    is_open = False
    try:
        async with asyncio.timeout(timeout), parts:
            async for part in parts:
                if cli.output.as_json:
                    cli.output.line({"break": asdict(part)} if isinstance(part, Break) else {"part": part})
                elif isinstance(part, Break):
                    about = f"at least {part.missed} parts are missing" if part.missed else f"begun anew: attempt {part.attempt}"
                    cli.output.note(f"\n[{about}]" if is_open else f"[{about}]")
                    is_open = False
                else:
                    is_open = isinstance(part, str)
                    _write("\n".join(map(plain, part.split("\n")))) if isinstance(part, str) else cli.output.show(part)
            result = await parts.result()
    except TimeoutError:
        raise TimedOut(f"the stream has not ended within {timeout:g} s, and was canceled") from None
    finally:
        if is_open:
            _write("\n")
    if cli.output.as_json:
        cli.output.line({"result": result})


def _write(text: str) -> None:
    print(text, end="", flush=True)
