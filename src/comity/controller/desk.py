"""What those who take mail in and those who deliver it work with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from comity.bus.outbox import Outbox
from comity.controller.receivers import Receivers
from comity.core.tasks import Tasks
from comity.model.task import Command


class Desk(NamedTuple):
    """Of one term. ``now_ms`` is the leader's clock; ``propose`` takes commands."""

    state: Tasks
    outbox: Outbox
    receivers: Receivers
    now_ms: Callable[[], int]
    propose: Callable[[Command], None]
