"""How each member is, as it says itself: asked one by one, so that it is seen who is gone."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

from comity.errors import ComityError
from comity.raft import wire
from comity.raft.contact import GREETING_S, Contact


class Seen(NamedTuple):
    """``status``: see ``Member.status``; None if the member, ``id`` if that is known, could not be asked: ``fault`` says why."""

    id: str
    address: str
    status: dict[str, Any] | None
    fault: str = ""


async def survey(addresses: Sequence[str], cluster: str, tls: ssl.SSLContext | None) -> list[Seen]:
    """Those at ``addresses``, and all others that take part as the newest of them knows. Raises BadSettings."""
    found = list(await asyncio.gather(*(_ask(address, cluster, tls) for address in addresses)))
    said = [seen.status for seen in found if seen.status is not None]
    if not said:
        return found
    newest = max(said, key=lambda status: (status["term"], status["role"] == "leader", status["applied"]))
    ids = {address: id for id, address in newest["addresses"].items()}
    there = {seen.id for seen in found}
    others = [address for address, id in ids.items() if id not in there and address not in addresses]
    found += await asyncio.gather(*(_ask(address, cluster, tls) for address in others))
    return [seen._replace(id=seen.id or ids.get(seen.address, "")) for seen in found]


async def _ask(address: str, cluster: str, tls: ssl.SSLContext | None) -> Seen:
    contact: Contact | None = None
    try:
        contact = await Contact.make(address, cluster, tls)
        async with asyncio.timeout(GREETING_S):
            status = await contact.ask(wire.Status(1))
        return Seen(contact.welcome.id, address, status)
    except TimeoutError:
        return Seen("", address, None, f"{address} does not answer")
    except ComityError as error:
        said = error.message if address in error.message else f"{address}: {error.message}"
        return Seen("", address, None, said)
    finally:
        if contact is not None:
            contact.close()
