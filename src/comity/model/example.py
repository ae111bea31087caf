"""A value that a JSON Schema allows, to show what a call looks like: what the schema gives as an example or default, else the
smallest value of the kind. Patterns and conditions are not solved, so check it before it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

DEEP = 8
"""Definitions within definitions; then only what can end is taken."""
_FORMATS = {
    "date-time": "2026-01-31T12:00:00Z", "date": "2026-01-31", "time": "12:00:00Z", "duration": "PT1M",
    "uuid": "123e4567-e89b-12d3-a456-426614174000", "email": "name@example.org", "uri": "https://example.org",
    "decimal": "1.5", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
}  # fmt: skip


def example(schema: dict[str, Any]) -> Any:
    """An example input or output; of an object only what is required."""
    return _Maker(schema.get("$defs", {})).make(schema, "text", 0)


class _Maker:
    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def make(self, schema: Any, name: str, depth: int) -> Any:
        """``name`` is what a text shall be called that may be anything."""
        if not isinstance(schema, dict) or not schema:
            return name
        for given in ("examples", "enum"):
            if isinstance(schema.get(given), list) and schema[given]:
                return schema[given][0]
        for given in ("const", "default"):
            if given in schema:
                return schema[given]
        if "$ref" in schema:
            known = self._definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
            return self.make(known, name, depth + 1) if depth < DEEP else None
        for combined in ("anyOf", "oneOf"):
            if schema.get(combined):
                return self.make(self._choice(schema[combined], depth), name, depth + 1)
        if schema.get("allOf"):
            return self._all_of(schema["allOf"], name, depth)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        make = self._kinds().get(str(kind))
        return make(schema, name, depth) if make is not None else name

    def _kinds(self) -> dict[str, Callable[[dict[str, Any], str, int], Any]]:
        return {
            "object": self._object, "array": self._array, "string": _text, "null": lambda *_: None,
            "boolean": lambda *_: True, "integer": lambda schema, *_: math.ceil(_number(schema, 1)),
            "number": lambda schema, *_: _number(schema, 1.5),
        }  # fmt: skip

    def _choice(self, options: list[Any], depth: int) -> Any:
        """The first; deep inside one that ends, if there is one."""
        ends = [option for option in options if isinstance(option, dict) and option.get("type") == "null"]
        return ends[0] if ends and depth > DEEP // 2 else options[0]

    def _all_of(self, parts: list[Any], name: str, depth: int) -> Any:
        made = [self.make(part, name, depth + 1) for part in parts]
        if all(isinstance(value, dict) for value in made):
            return {key: value for part in made for key, value in part.items()}
        return made[0]

    def _object(self, schema: dict[str, Any], name: str, depth: int) -> Any:
        properties = schema.get("properties", {})
        return {key: self.make(properties.get(key, {}), key, depth + 1) for key in schema.get("required", ())}

    def _array(self, schema: dict[str, Any], name: str, depth: int) -> Any:
        fixed = [self.make(part, name, depth + 1) for part in schema.get("prefixItems", ())]
        items = schema.get("items")
        least = schema.get("minItems", 0) if fixed or depth > DEEP // 2 else max(schema.get("minItems", 0), 1)
        if not isinstance(items, dict) or schema.get("maxItems", least) < least:
            return fixed
        return [*fixed, *(self.make(items, name, depth + 1) for _ in range(least - len(fixed)))]


def _text(schema: dict[str, Any], name: str, depth: int) -> str:
    if schema.get("contentEncoding") == "base64":
        return "YWJj"
    text = _FORMATS.get(schema.get("format", ""), name)
    return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength", len(text) + 1000)]


def _number(schema: dict[str, Any], usual: float) -> float:
    """The usual one, or the one nearest to it that is allowed."""
    low: float = schema.get("minimum", schema.get("exclusiveMinimum", -math.inf))
    high: float = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
    if "exclusiveMinimum" in schema and usual <= low:
        usual = (low + high) / 2 if high < low + 2 else low + 1
    if "exclusiveMaximum" in schema and usual >= high:
        usual = (low + high) / 2 if low > high - 2 else high - 1
    number = min(max(usual, low), high)
    step: float = schema.get("multipleOf", 0.0)
    return math.ceil(number / step) * step if step else number
