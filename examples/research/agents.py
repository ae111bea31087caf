"""A researcher whose work is five slow steps, each of which would cost time and money to repeat."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from comity import Agent, Attempt

researcher = Agent("researcher", tags={"research"})


@dataclass
class Source:
    title: str
    words: int


@dataclass
class Report:
    text: str
    approved_by: str


@researcher.capability(retries=20)
async def research(attempt: Attempt, topic: str, slow_s: float = 2.0) -> Report:
    """Research a topic, and publish what was found once somebody approves."""
    questions = await attempt.step("plan", plan, topic, slow_s)
    sources = await attempt.step("search", search, questions, slow_s)
    notes = await attempt.step("read", read, sources, slow_s)
    claims = await attempt.step("compare", compare, notes, slow_s)
    text = await attempt.step("write", write, topic, claims, slow_s)
    editor = await attempt.wait_for("approval", ask={"text": text}, timeout=86_400)
    return Report(text, editor)


# The sleeps stand for calls of a language model.


async def plan(topic: str, slow_s: float) -> list[str]:
    await asyncio.sleep(slow_s)
    return [f"What are {topic}?", f"Who needs {topic}?"]


async def search(questions: list[str], slow_s: float) -> list[Source]:
    await asyncio.sleep(slow_s)
    return [Source(f"An answer to: {question}", 900 + 100 * number) for number, question in enumerate(questions)]


async def read(sources: list[Source], slow_s: float) -> list[str]:
    await asyncio.sleep(slow_s)
    return [f"{source.title} ({source.words} words)" for source in sources]


async def compare(notes: list[str], slow_s: float) -> list[str]:
    await asyncio.sleep(slow_s)
    return sorted(notes)


async def write(topic: str, claims: list[str], slow_s: float) -> str:
    await asyncio.sleep(slow_s)
    return f"On {topic}: {len(claims)} claims, all of them sourced."
