"""Bugs to plant in conversations."""

from __future__ import annotations

from typing import Any

import pytest
from planting import plant

from comity.client.auction import Auction
from comity.client.dialog import Leg
from comity.core.conversations import Conversation, Seen
from comity.errors import ComityError

TEST = "tests/simulation/test_negotiations.py::test_every_negotiation_ends_whatever_dies"


@plant(test=TEST)
def a_deadline_never_comes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Conversation, "next_deadline", lambda self: None)


@plant(test=TEST)
def a_lost_agent_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leg, "fail", lambda self, error: None)


@plant(test=TEST)
def a_copy_counts_as_a_message(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "is_copy", lambda self, id: False)


@plant(test=TEST)
def whoever_speaks_next_has_won(patch: pytest.MonkeyPatch) -> None:
    async def result(self: Auction, winner: Leg) -> Any:
        while True:
            _, _, body, error = await self._dialog.heard()
            if isinstance(error, ComityError):
                raise error
            return body

    patch.setattr(Auction, "_result", result)
