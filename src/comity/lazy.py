"""The public names that are imported only when somebody uses them (PEP 562), so that ``import comity`` costs little."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "Agent": "comity.agent",
    "Attempt": "comity.handles",
    "Break": "comity.model.parts",
    "Client": "comity.client",
    "Envelope": "comity.model.envelope",
    "FileRef": "comity.model.files",
    "Final": "comity.model.parts",
    "Message": "comity.message",
    "Performative": "comity.model.envelope",
    "Requirements": "comity.model.capability",
    "Retry": "comity.model.capability",
    "Settings": "comity.config",
    "Strategy": "comity.model.capability",
    "Task": "comity.client",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'comity' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
