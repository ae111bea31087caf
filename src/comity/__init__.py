"""Comity: many agents on many machines as one network. They find each other, talk, share out work, and survive failures."""

from comity.connect import connect
from comity.errors import ComityError, Refuse, TaskFailed
from comity.lazy import __getattr__ as __getattr__

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "Attempt",
    "Break",
    "Client",
    "ComityError",
    "Envelope",
    "FileRef",
    "Final",
    "Message",
    "Performative",
    "Refuse",
    "Requirements",
    "Retry",
    "Settings",
    "Strategy",
    "Task",
    "TaskFailed",
    "connect",
]
