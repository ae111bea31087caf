"""When schedules are due."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comity.errors import BadInput
from comity.model.cron import Cron, parse


def due(cron: str, after: str, count: int = 1, zone: str = "UTC") -> list[str]:
    """The first due times after a local time, in local time."""
    at = int(datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)
    found = []
    for _ in range(count):
        ahead = parse(cron, zone).next(at)
        assert ahead is not None and ahead > at
        at = ahead
        found.append(datetime.fromtimestamp(at / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S"))
    return found


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("* * * * *", "2026-01-01 00:00:30", ["2026-01-01 00:01:00", "2026-01-01 00:02:00"]),
        ("*/15 * * * *", "2026-01-01 00:46", ["2026-01-01 01:00:00", "2026-01-01 01:15:00"]),
        ("5/20 * * * *", "2026-01-01 00:00", ["2026-01-01 00:05:00", "2026-01-01 00:25:00"]),
        ("30 9 * * mon-fri", "2026-01-02 10:00", ["2026-01-05 09:30:00", "2026-01-06 09:30:00"]),
        ("0 0 29 2 *", "2096-03-01 00:00", ["2104-02-29 00:00:00"]),
        ("0 0 13 * fri", "2026-02-13 00:00", ["2026-02-20 00:00:00", "2026-02-27 00:00:00"]),
        ("0 12 1 jan,jul *", "2026-01-01 12:00", ["2026-07-01 12:00:00", "2027-01-01 12:00:00"]),
        ("*/10 * * * * *", "2026-01-01 00:00:05", ["2026-01-01 00:00:10", "2026-01-01 00:00:20"]),
        ("@weekly", "2026-01-01 00:00", ["2026-01-04 00:00:00", "2026-01-11 00:00:00"]),
        ("0 0 * * 7", "2026-01-01 00:00", ["2026-01-04 00:00:00"]),
        ("0 8-18/5 * * *", "2026-01-01 09:00", ["2026-01-01 13:00:00", "2026-01-01 18:00:00", "2026-01-02 08:00:00"]),
    ],
)
def test_due_times(cron: str, after: str, expected: list[str]) -> None:
    assert due(cron, after, len(expected)) == expected


def test_a_time_that_clocks_skip_falls_on_the_end_of_the_gap() -> None:
    expected = ["2026-03-28 02:30:00", "2026-03-29 03:00:00", "2026-03-30 02:30:00"]
    assert due("30 2 * * *", "2026-03-27 12:00", 3, "Europe/Berlin") == expected
    assert due("30 2 * * sun", "2026-03-23 12:00", 2, "Europe/Berlin") == ["2026-03-29 03:00:00", "2026-04-05 02:30:00"]
    assert due("30 0 * * sun", "2018-10-29 12:00", 2, "America/Sao_Paulo") == ["2018-11-04 01:00:00", "2018-11-11 00:30:00"]
    assert due("*/30 * * * *", "2026-03-29 01:30", 2, "Europe/Berlin") == ["2026-03-29 03:00:00", "2026-03-29 03:30:00"]


def test_a_time_that_comes_twice_counts_once_unless_every_hour_counts() -> None:
    assert due("30 2 * * *", "2026-10-24 12:00", 2, "Europe/Berlin") == ["2026-10-25 02:30:00", "2026-10-26 02:30:00"]
    hours = due("0 * * * *", "2026-10-25 01:00", 3, "Europe/Berlin")
    assert hours == ["2026-10-25 02:00:00", "2026-10-25 02:00:00", "2026-10-25 03:00:00"]


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("* * * *", "5 fields"),
        ("60 * * * *", "minute '60'"),
        ("* 5-3 * * *", "hour '5-3'"),
        ("* * 0 * *", "day of month"),
        ("* * * foo *", "month 'foo'"),
        ("* * * * mon-", "day of week"),
        ("*/0 * * * *", "minute"),
        ("*-3 * * * *", "minute"),
        ("0 0 30 2 *", "never"),
        ("@often", "5 fields"),
    ],
)
def test_what_cannot_be_read_is_named(cron: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse(cron)


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../etc/passwd", "Europe"])
def test_an_unknown_time_zone_is_named(zone: str) -> None:
    with pytest.raises(BadInput, match="time zone"):
        parse("* * * * *", zone)


FIELD = st.one_of(st.just("*"), st.sampled_from(["*/7", "0", "3", "1-5", "2,4"]))


@given(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD), st.integers(0, 4_000_000_000))
def test_the_next_time_is_the_first_that_fits(fields: tuple[str, ...], seconds: int) -> None:
    """Against looking at every minute of a day."""
    fields = (*fields[:2], fields[2].replace("0", "1"), fields[3].replace("0", "1"), fields[4])
    cron = parse(" ".join(fields))
    found = cron.next(seconds * 1000)
    minutes = range(seconds // 60 + 1, seconds // 60 + 1441)
    fits = (minute * 60_000 for minute in minutes if _fits(cron, datetime.fromtimestamp(minute * 60, UTC)))
    first = next(fits, None)
    assert found == first if first is not None else found is not None and found > minutes[-1] * 60_000


def _fits(cron: Cron, at: datetime) -> bool:
    of_month, of_week = at.day in cron.days, at.isoweekday() % 7 in cron.weekdays
    on = (of_month or of_week) if cron.either_day else (of_month and of_week)
    return on and at.month in cron.months and at.hour in cron.hours and at.minute in cron.minutes
