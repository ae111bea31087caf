"""What is in bounds, and that values without a form in JSON are told from those that are null."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from comity.errors import BadInput, NotSerializable, TooLarge
from comity.model.capability import Requirements
from comity.model.codec import to_json
from comity.model.limits import (
    FAR_S,
    NUMBER_MAX,
    TEXT_MAX,
    WORD_MAX,
    check_amount,
    check_line,
    check_name,
    check_requirements,
    check_seconds,
    check_sound,
    check_text,
    check_timeout,
    check_whole,
    check_word,
)
from comity.model.task import TaskState, task_state

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_seconds, [0.001, 1, FAR_S], [0, -5, NAN, INF, 1e300, 10**400, True, "5", None]),
        (check_whole, [0, NUMBER_MAX], [-1, 10**20, 10**400, 1.0, True, "1", None, NAN]),
        (check_amount, [0, 0.5, NUMBER_MAX], [-0.1, NAN, INF, 1e300, True, "1", None]),
        (check_text, ["", "a\nb", "é", "x" * TEXT_MAX], ["x" * (TEXT_MAX + 1), "a\udcff", "\ud800" * 100, 5, None, b"a"]),
        (check_line, ["", "a b", "日本", "👩‍🚀"], ["a\nb", "\x1b[31m", "\x00", "\x9b", "\u202e", "a\udcff", "x" * 201]),
        (check_name, ["a", "a b"], ["", "\t"]),
        (check_word, ["gpu", "zone=a", "é", "x" * WORD_MAX], ["", " ", "a b", "a ", "a\u00a0b", "x" * (WORD_MAX + 1), 1]),
    ],
)
def test_what_is_in_bounds(check: Callable[[Any, str], Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check(value, "it") == value
    for value in bad:
        with pytest.raises(BadInput, match=r"^it ") as caught:
            check(value, "it")
        assert len(caught.value.message) < 250
        assert caught.value.message.isascii()


def test_too_long_a_text_is_too_large() -> None:
    with pytest.raises(TooLarge):
        check_text("x" * 10_000, "it")


def test_no_timeout_is_the_default_one() -> None:
    assert check_timeout(None) is None
    assert check_timeout(2) == 2.0
    with pytest.raises(BadInput, match="timeout"):
        check_timeout(0)


def test_requirements_that_cannot_be_asked() -> None:
    check_requirements(None)
    check_requirements(Requirements(gpu=1, version=">=1.2"))
    for needs in (Requirements(cpu=NAN), Requirements(labels={"a": "x" * 5000}), Requirements(version="one")):
        with pytest.raises(BadInput):
            check_requirements(needs)


def test_what_its_receiver_could_not_read_is_not_sound() -> None:
    assert check_sound(Requirements(tags=("a",)), "it") == Requirements(tags=("a",))
    unsound: list[dict[str, Any]] = [{"tags": (1,)}, {"labels": {"a": "\udcff"}}, {"cpu": "2"}, {"kind": object()}]
    for needs in (Requirements(**fields) for fields in unsound):
        with pytest.raises(BadInput, match=r"^it: "):
            check_sound(needs, "it")


def test_a_state_is_one_of_those_there_are() -> None:
    assert task_state("working") is TaskState.WORKING
    with pytest.raises(BadInput, match=r"'foo'; one of: submitted, waiting, .*rejected"):
        task_state("foo")


@dataclasses.dataclass
class Point:
    x: float | None
    more: Any = None


class Shape(msgspec.Struct):
    points: tuple[Any, ...]


@pytest.mark.parametrize(
    "value",
    [
        NAN, INF, [1, -INF], {"a": {"b": [None, NAN]}}, Point(NAN), Shape((1, (2, NAN))), {"a": Point(None, {"b": (INF,)})},
    ],
)  # fmt: skip
def test_what_is_no_number_is_not_null(value: Any) -> None:
    with pytest.raises(NotSerializable, match=r"(nan|inf) is not JSON"):
        to_json(value)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, b"null"), ([None, 1.5], b"[null,1.5]"), ("null, nan", b'"null, nan"'), (Point(None), b'{"x":null,"more":null}'),
        ({1: None, 1.5: "a"}, b'{"1":null,"1.5":"a"}'), ([None, msgspec.Raw(b'{"a":null}')], b'[null,{"a":null}]'),
        (Shape((None, {"a"})), b'{"points":[null,["a"]]}'),
    ],
)  # fmt: skip
def test_null_stays_null(value: Any, data: bytes) -> None:
    assert to_json(value) == data
