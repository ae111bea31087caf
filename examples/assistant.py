"""An assistant whose words come as they are made.

    comity run examples/assistant.py
    python examples/assistant.py "Who are you?"

Without a model at hand it makes its words up. Set OPENAI_BASE_URL (such as http://127.0.0.1:8080/v1), OPENAI_MODEL and, if it
wants one, OPENAI_API_KEY, and it asks any server that speaks OpenAI's chat completions.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.request import Request, urlopen

import comity
from comity import Agent, Attempt, Break, Final

URL = os.environ.get("OPENAI_BASE_URL", "")
MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini") if URL else "made up"
agent = Agent("assistant", labels={"model": MODEL})


@dataclass
class Answer:
    text: str
    words: int
    model: str


@agent.capability
async def answer(attempt: Attempt, question: str) -> AsyncIterator[str | Final[Answer]]:
    """Answer a question, word by word."""
    said: list[str] = []
    async with aclosing(asked(question) if URL else made_up(question)) as words:
        async for word in words:
            said.append(word)
            yield word
    yield Final(Answer("".join(said), len(said), MODEL))


async def made_up(question: str) -> AsyncGenerator[str, None]:
    """A model that needs no network, no key and no graphics card."""
    for word in f"You ask: {question} Nobody knows, but the words come one by one, and the whole of them is kept.".split(" "):
        await asyncio.sleep(0.02)
        yield word + " "


async def asked(question: str) -> AsyncGenerator[str, None]:
    """A real one: server-sent events, each with a few letters."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": question}]}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    request = Request(f"{URL}/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310 - the user's own server
    response = await asyncio.to_thread(urlopen, request, timeout=60)
    try:
        while line := await asyncio.to_thread(response.readline):
            kind, _, data = line.decode().partition(":")
            if kind != "data" or data.strip() == "[DONE]":
                continue
            for choice in json.loads(data)["choices"]:
                if word := choice["delta"].get("content"):
                    yield word
    finally:
        response.close()


async def main(question: str) -> None:
    async with comity.connect() as net, net.stream("answer", {"question": question}) as parts:
        async for part in parts:
            print("\n[once more]\n" if isinstance(part, Break) else part, end="", flush=True)
        whole = await parts.result(as_type=Answer)
        print(f"\n({whole.words} words by {whole.model})")


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Who are you?"))
