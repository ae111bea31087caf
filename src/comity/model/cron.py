"""Cron expressions: when a schedule is due next.

    minute hour day-of-month month day-of-week, or a field for seconds before them; or @hourly @daily @weekly @monthly @yearly

A field is ``*``, numbers, names (``jan``, ``mon``), ranges ``a-b``, steps ``*/n``, ``a-b/n``, ``a/n``, and lists of these. As in
Vixie's cron, a day matches either day field if both are restricted. Where clocks are changed: a time that is skipped falls on
the end of the gap; one that comes twice counts once if the hour is given, and twice if it is ``*``.

Written out here, for this is all there is to it. (CronSim, which is well kept, has the same rules.)
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from comity.errors import BadInput

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
TEXT_MAX = 200
COUNTED = 100
YEARS = 9
"""How far ahead a due time is looked for: a leap day may be eight years away."""
_DAY, _HOUR, _MINUTE, _SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


class Cron(NamedTuple):
    """A parsed expression. ``any_hour``: the hour is not restricted; ``either_day``: both day fields are."""

    seconds: frozenset[int]
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_hour: bool
    either_day: bool
    zone: tzinfo

    def next(self, after_ms: int) -> int | None:
        """The first due time after ``after_ms`` (UTC, milliseconds); None if there is none in the next nine years."""
        at = datetime.fromtimestamp(after_ms // 1000, UTC) + _SECOND
        limit = at + YEARS * 366 * _DAY
        while at < limit:
            local = at.astimezone(self.zone)
            if not self._on(local):
                ahead = self._midnight(local, at)
            elif local.hour not in self.hours or (local.fold and not self.any_hour):
                ahead = at + _HOUR - timedelta(minutes=local.minute, seconds=local.second)
            elif local.minute not in self.minutes:
                ahead = at + _MINUTE - timedelta(seconds=local.second)
            elif local.second not in self.seconds:
                ahead = at + _SECOND
            else:
                return int(at.timestamp()) * 1000
            if self._skipped(ahead):
                return int(ahead.timestamp()) * 1000
            at = ahead
        return None

    def latest(self, after_ms: int, upto_ms: int) -> tuple[int, int] | None:
        """The last due time after ``after_ms`` that is not after ``upto_ms``, and how many were due before it (counted to 100);
        None if there is none."""
        found = self.next(after_ms)
        if found is None or found > upto_ms:
            return None
        for missed in range(COUNTED):
            ahead = self.next(found)
            if ahead is None or ahead > upto_ms:
                return found, missed
            found = ahead
        span_ms = 1000
        while (ahead := self.next(upto_ms - span_ms)) is None or ahead > upto_ms:  # it ends, at the latest, at ``found``
            span_ms *= 4
        while ahead is not None and ahead <= upto_ms:
            found, ahead = ahead, self.next(ahead)
        return found, COUNTED

    def _on(self, local: datetime) -> bool:
        """Whether the day matches."""
        if local.month not in self.months:
            return False
        of_month, of_week = local.day in self.days, local.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week

    def _midnight(self, local: datetime, at: datetime) -> datetime:
        """The beginning of the next local day, or month if this one does not match."""
        day = local.replace(tzinfo=None, fold=0, hour=0, minute=0, second=0)
        day = day + _DAY if local.month in self.months else (day.replace(day=28) + 4 * _DAY).replace(day=1)
        return max(day.replace(tzinfo=self.zone).astimezone(UTC), at + _SECOND)

    def _skipped(self, ahead: datetime) -> bool:
        """Whether a due time falls into the gap that local clocks leave out just before ``ahead``, if there is one. Times that
        recur every hour do not miss one."""
        if self.any_hour:
            return False
        before, after = (ahead - _SECOND).astimezone(self.zone), ahead.astimezone(self.zone)
        gap = (after.utcoffset() or timedelta()) - (before.utcoffset() or timedelta())
        if gap <= timedelta():
            return False
        left_out = after.replace(tzinfo=None) - gap
        while left_out < after.replace(tzinfo=None):
            if left_out.hour in self.hours and left_out.minute in self.minutes and self._on(left_out):
                return True
            left_out += _MINUTE
        return False


@lru_cache(maxsize=1024)
def parse(text: str, zone: str = "UTC") -> Cron:
    """The expression, in a time zone such as ``Europe/Berlin``. Raises BadInput, naming the field; also if it is never due."""
    words = _NICKNAMES.get(text.strip().lower(), text).lower().split()
    if len(text) > TEXT_MAX or len(words) not in (5, 6):
        known = ", ".join(_NICKNAMES)
        raise BadInput(f"a schedule has 5 fields (6 with seconds) or is one of {known}, not {text[:80]!r}", cron=text[:80])
    if len(words) == 5:
        words.insert(0, "0")
    seconds, minutes, hours, days, months, weekdays = [
        _values(word, *field) for word, field in zip(words, _FIELDS, strict=True)
    ]
    weekdays = frozenset(day % 7 for day in weekdays)
    free_day, free_weekday = words[3].startswith("*"), words[5].startswith("*")
    either_day = not free_day and not free_weekday
    found = Cron(seconds, minutes, hours, days, months, weekdays, words[2] == "*", either_day, _zone(zone))
    if found.next(0) is None:
        raise BadInput(f"{text!r} never comes", cron=text)
    return found


def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)  # which is in every Python, as others may not be
    except (ValueError, OSError, KeyError):
        raise BadInput(f"no time zone is called {name[:80]!r} here; one is Europe/Berlin", zone=name[:80]) from None


def _values(word: str, field: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in word.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        try:
            start = low if first == "*" else _number(first, names)
            end = high if first == "*" or (slash and not dash) else _number(last, names) if dash else start
            every = _number(step, {}) if slash else 1
        except ValueError:
            raise BadInput(f"{field} {part!r} is not a number, name, range or step", field=field) from None
        if not low <= start <= end <= high or every < 1 or (first == "*" and dash):
            raise BadInput(f"{field} {part!r} must lie within {low} to {high}, from low to high", field=field)
        found.update(range(start, end + 1, every))
    return frozenset(found)


def _number(text: str, names: dict[str, int]) -> int:
    if text in names:
        return names[text]
    if not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)
