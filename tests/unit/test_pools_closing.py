"""A node that is left by ``os._exit`` (a plain function hangs in a thread) leaves nothing of its process pool behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, os
from pooled import compute
from comity.node.failing import Failure
from comity.node.pools import Pools

async def main():
    pools = Pools()
    kept = []
    for kind in {kinds!r}:
        try:
            await pools.in_process(compute, b'{{"kind": "' + kind + b'"}}', (), lambda: None)
        except Failure as error:
            kept.append(error)
    await pools.close()
    return pools, kept

if __name__ == "__main__":
    kept = asyncio.run(main())
    os._exit(len(kept[1]))
"""


def run(folder: Path, *kinds: bytes) -> tuple[int, str]:
    script = folder / "leaving.py"
    script.write_text(SCRIPT.format(kinds=kinds))
    env = {"PYTHONPATH": str(Path(__file__).parent), "PATH": ""}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_a_used_pool_is_closed(tmp_path: Path) -> None:
    assert run(tmp_path, b"pid", b"pid") == (0, "")


def test_a_pool_whose_process_died_is_closed_too(tmp_path: Path) -> None:
    assert run(tmp_path, b"pid", b"die", b"pid", b"die") == (2, "")
