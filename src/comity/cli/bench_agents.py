"""The agents that ``comity bench`` measures with."""

from __future__ import annotations

import os

from comity import Agent


def make(name: str) -> Agent:
    agent = Agent(name, concurrency=int(os.environ.get("COMITY_BENCH_SLOTS", "256")))

    @agent.capability(name="bench.echo")
    async def echo(text: str) -> int:
        """Answer with the length of what was sent."""
        return len(text)

    @agent.on("bench.ping")
    async def ping(body: str) -> str:
        return body

    return agent


agents = [make(f"bench-{i}") for i in range(int(os.environ.get("COMITY_BENCH_AGENTS", "4")))]
