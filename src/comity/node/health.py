"""Asks the agents of this node that define ``@agent.health`` how they are, every ``health_s``, and sets their status by it."""

from __future__ import annotations

import asyncio

import structlog

from comity.agent import Agent, Listener
from comity.config import Settings
from comity.core.health import Health
from comity.errors import ComityError
from comity.node.failing import said_by
from comity.node.performing import Performer, is_closing

AT_ONCE = 64
"""Probes under way: others wait their turn, so that thousands of agents are not asked in the same moment."""

_log = structlog.get_logger("comity.node")


class Checkups:
    """One asyncio task for each agent that defines how it is asked."""

    def __init__(self, performer: Performer, settings: Settings) -> None:
        self._performer = performer
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._by_agent: dict[str, tuple[Listener, asyncio.Task[None]]] = {}

    def look(self, agent: Agent) -> None:
        """It is hosted here, or changed: begin to ask it if it says how."""
        known = self._by_agent.get(agent.name)
        if agent.checkup is not (known[0] if known is not None else None):
            self.forget(agent)
            if agent.checkup is not None:
                work = self._loop.create_task(self._follow(agent, agent.checkup))
                self._by_agent[agent.name] = agent.checkup, work

    def forget(self, agent: Agent) -> None:
        known = self._by_agent.pop(agent.name, None)
        if known is not None:
            known[1].cancel()

    async def close(self) -> None:
        work = [task for _, task in self._by_agent.values()]
        self._by_agent.clear()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _follow(self, agent: Agent, checkup: Listener) -> None:
        settings = self._settings
        health = Health(settings.health_failures, settings.health_successes)
        probe: asyncio.Task[str] | None = None
        try:
            while True:
                due = self._loop.time() + settings.health_s
                async with self._room:
                    probe = probe or self._loop.create_task(self._ask(checkup))
                    await asyncio.wait([probe], timeout=settings.health_s)
                self._judge(agent, health, self._fault(probe))
                if probe.done() or checkup.signature.is_async:
                    probe.cancel()
                    probe = None  # a plain function that is still at it is asked no second time
                await asyncio.sleep(max(due - self._loop.time(), 0.0))
        finally:
            if probe is not None:
                probe.cancel()

    async def _ask(self, checkup: Listener) -> str:
        """What is wrong; "" if nothing is."""
        try:
            value = await self._performer.call(checkup.function, checkup.signature, (), None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever the user's function raises
            work = asyncio.current_task()
            if work is None or is_closing(error, work):
                raise
            return f"{type(error).__name__}: {said_by(error)}"
        return "it says so" if value is False else ""

    def _fault(self, probe: asyncio.Task[str]) -> str:
        if not probe.done():
            return f"no answer within {self._settings.health_s:g} s"
        return "it was called off" if probe.cancelled() else probe.result()

    def _judge(self, agent: Agent, health: Health, fault: str) -> None:
        if health.saw(fault):
            say = _log.info if health.is_well else _log.warning
            say("an agent is well again" if health.is_well else "an agent is unhealthy", agent=agent.id, reason=fault)
        status = health.status(agent.status)
        if status is not agent.status:
            try:
                agent.update(status=status)
            except ComityError as error:  # its record is as large as it may be
                _log.warning("an agent's status cannot be told", agent=agent.id, status=status, error=error.message)
