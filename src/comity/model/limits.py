"""What is in bounds: for the client and the agent, which say at once what is wrong, and for the controller, which trusts nobody.

Each check gives the value, or raises BadInput (TooLarge) naming it.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, TypeVar

import msgspec

from comity.errors import BadInput, TooLarge
from comity.model.capability import Requirements, parse_range

T = TypeVar("T")

FAR_S = 10 * 366 * 86_400.0
"""No time-out or deadline lies further off."""
NUMBER_MAX = 1_000_000_000
INDEX_MAX = 2**62
NAME_MAX = 200
TEXT_MAX = 500
REASON_MAX = 2000
WORD_MAX = 100
LINE_MAX = 2000

REQUIREMENTS_MAX = 4096
RECORD_MAX = 128 * 1024
SCHEMA_MAX = 256 * 1024
"""Bytes, as they are sent."""

# What would command a terminal, break a line, turn the text around, or cannot be written as UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_encode = msgspec.msgpack.Encoder().encode


def check_seconds(value: Any, what: str) -> float:
    """A length of time."""
    if not _is_number(value) or not 0 < value <= FAR_S:
        raise BadInput(f"{what} must be a number of seconds above 0 and at most {FAR_S:.0f}, not {_brief(value)}", option=what)
    return float(value)


def check_timeout(value: Any) -> float | None:
    """How long somebody will wait; None is for him who has a default."""
    return None if value is None else check_seconds(value, "timeout")


def check_whole(value: Any, what: str, least: int = 0, most: int = NUMBER_MAX) -> int:
    if type(value) is not int or not least <= value <= most:
        raise BadInput(f"{what} must be a whole number from {least} to {most}, not {_brief(value)}", option=what)
    return value


def check_amount(value: Any, what: str) -> float:
    if not _is_number(value) or not 0 <= value <= NUMBER_MAX:
        raise BadInput(f"{what} must be a number from 0 to {NUMBER_MAX}, not {_brief(value)}", option=what)
    return float(value)


def check_text(value: Any, what: str, most: int = TEXT_MAX) -> str:
    """A text that can be sent."""
    if not isinstance(value, str):
        raise BadInput(f"{what} must be a text, not {_brief(value)}", option=what)
    if len(value) > most:
        raise TooLarge(f"{what} has {len(value)} characters; at most {most}", option=what, limit=most)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{what} is not UTF-8: {_brief(value)}", option=what) from None
    return value


def check_line(value: Any, what: str, most: int = NAME_MAX) -> str:
    """A text that can be shown in one line, and commands no terminal."""
    text = check_text(value, what, most)
    if _UNFIT.search(text):
        raise BadInput(f"{what} has control characters: {_brief(text)}", option=what)
    return text


def check_name(value: Any, what: str) -> str:
    """A line of 1 to ``NAME_MAX`` characters."""
    if not check_line(value, what):
        raise BadInput(f"{what} has a name of 1 to {NAME_MAX} characters")
    return str(value)


def check_word(value: Any, what: str, most: int = WORD_MAX) -> str:
    """A line without spaces, not empty."""
    text = check_line(value, what, most)
    if text.split() != [text]:
        raise BadInput(f"{what} must be one word, not {_brief(text)}", option=what)
    return text


def check_sound(value: T, what: str) -> T:
    """As whoever receives it will read it."""
    try:
        return msgspec.msgpack.decode(_encode(value), type=type(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadInput(f"{what}: {error}", option=what) from error


def check_requirements(needs: Requirements | None) -> None:
    """What can be asked of an agent."""
    if needs is None:
        return
    if not all(isfinite(amount) for amount in (needs.cpu, needs.memory_mb, needs.gpu)):
        raise BadInput("required amounts must be numbers")
    if len(_encode(needs)) > REQUIREMENTS_MAX:
        raise TooLarge(f"requirements take more than {REQUIREMENTS_MAX} bytes", limit=REQUIREMENTS_MAX)
    if needs.version:
        parse_range(needs.version)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _brief(value: Any) -> str:
    if isinstance(value, str):
        text = ascii(value[:61])
        return text if len(text) <= 63 else text[:62] + "..."
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**18):
        return str(value)
    return "so large a number" if isinstance(value, int) else f"a {type(value).__name__}"
