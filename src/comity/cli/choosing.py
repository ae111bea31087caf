"""Which one is meant: ids may be cut short, as long as only one begins so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def meant(given: str, ids: Iterable[str], what: str) -> str | None:
    """The id that is ``given``, or the only one that begins with it; None if none does. Raises BadInput."""
    from comity.errors import BadInput

    found = [id_ for id_ in ids if id_.startswith(given)]
    if given in found or len(found) == 1:
        return given if given in found else found[0]
    if found:
        raise BadInput(f"{len(found)} {what} begin with {given!r}, such as {found[0]} and {found[1]}", id=given)
    return None


async def find_task(net: Any, given: str) -> str:
    """The task's whole id. Raises BadInput, UnknownTask."""
    from comity.errors import UnknownTask
    from comity.model.ids import TASK_ID_LENGTH, check_task_id

    if len(given) >= TASK_ID_LENGTH:
        return check_task_id(given)
    found = meant(given, [task["id"] for task in await net.tasks(limit=1000)], "tasks")
    if found is None:
        raise UnknownTask(f"none of the last 1,000 tasks begins with {given!r}", id=given)
    return found
