"""Why a node hands an assignment back unseen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from comity.agent import Agent
from comity.model.capability import AgentStatus
from comity.model.wire import Run

if TYPE_CHECKING:
    from comity.node.node import Node


def why_not(node: Node, run: Run, agent: Agent | None) -> str:
    """"" if there is no reason."""
    if run.term < node.lease.term:
        return f"term {run.term} is over"
    if run.incarnation != node.incarnation:
        return f"node {node.node} was started anew"
    if node.is_draining:
        return f"node {node.node} is draining"
    if not node.lease.may_begin(asyncio.get_running_loop().time()):
        return f"node {node.node} holds no lease"
    if agent is None:
        return f"node {node.node} hosts no agent {run.agent}"
    if agent.status is not AgentStatus.ACTIVE:
        return f"{run.agent} is {agent.status}"
    return ""
