"""Messages that processes refused, as live events: they show who speaks out of turn. What a process says of them is believed no
further than that it says so."""

from __future__ import annotations

from typing import Any

from comity.model.ids import ProcessId
from comity.model.limits import NAME_MAX, REASON_MAX
from comity.model.wire_talk import Misfit


def told(item: Misfit, teller: ProcessId, at_ms: int) -> dict[str, Any]:
    """The event."""
    fields = {name: getattr(item, name)[:NAME_MAX] for name in item.__struct_fields__ if name != "reason"}
    return {"type": "message.refused", "at": at_ms, "told_by": teller, **fields, "reason": item.reason[:REASON_MAX]}
