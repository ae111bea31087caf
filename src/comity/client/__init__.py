"""Face: what callers use. It works against the doors alone; ``comity.connect`` opens them."""

from comity.client.client import Client
from comity.client.task import Task
from comity.client.terms import TaskOptions

__all__ = ["Client", "Task", "TaskOptions"]
