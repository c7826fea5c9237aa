"""Limits of values: the `msgspec.Meta` of an annotation, and what a value outside of them is told.

Owns the words for lengths, ranges, multiples, patterns and time zones. msgspec enforces the limits of the
types that it converts; those of other types, such as a list of objects, are checked here.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import msgspec

from lib.fields.schemas import Schema

_NAMES = ("gt", "ge", "lt", "le", "min_length", "max_length", "multiple_of", "pattern", "tz")
_RANGE: Mapping[str, str] = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
_IN_SCHEMAS: Mapping[str, str] = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "pattern": "pattern",
    **dict.fromkeys(("minLength", "minItems", "minProperties"), "min_length"),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), "max_length"),
}
# What the length of a value of these types counts; that of any other counts items.
_COUNTED: Mapping[type[Any], str] = {str: "character", bytes: "byte", bytearray: "byte", dict: "field"}


@dataclass(frozen=True)
class _Limit:
    """`sentence` completes "must …", `addition` follows a type's name; {counted} is what a length counts."""

    sentence: str
    addition: str
    holds: Callable[[Any], bool]


class Limits:
    """The limits `given`, by their names in `msgspec.Meta`; `text` is an author's text about the value."""

    def __init__(self, given: Mapping[str, Any], text: str = "") -> None:
        self._given = {name: limit for name, limit in given.items() if limit is not None}
        self._text = text
        self._limits = list(_limits(self._given))

    @classmethod
    def in_notes(cls, notes: Iterable[Any]) -> Limits:
        """The limits in an annotation's metadata."""
        given: dict[str, Any] = {}
        text = ""
        for note in notes:
            if isinstance(note, msgspec.Meta):
                limits = {name: getattr(note, name) for name in _NAMES}
                given |= {name: limit for name, limit in limits.items() if limit is not None}
                text = note.description or text
        return cls(given, text)

    @classmethod
    def in_schema(cls, schema: Mapping[str, Any]) -> Limits:
        """The limits in a JSON Schema."""
        return cls({ours: schema.get(name) for name, ours in _IN_SCHEMAS.items() if name in schema})

    def after(self, kind: type[Any]) -> str:
        """The limits of a `kind` of value in words that follow its type's name; "" without limits."""
        return " and ".join(each.addition.format(counted=_counted(kind)) for each in self._limits)

    def problem(self, value: Any) -> str | None:
        """The limits that `value`, which is of the right type, breaks; None if it is within them."""
        broken = [each.sentence for each in self._limits if not each.holds(value)]
        return (
            "must " + " and ".join(broken).format(counted=_counted(cast("type[Any]", type(value))))
            if broken
            else None
        )

    def schema(self, is_object: bool) -> Schema:
        """The part of a JSON Schema for the length of a list or an object, and the text about it."""
        names = ("minProperties", "maxProperties") if is_object else ("minItems", "maxItems")
        pairs = zip(names, ("min_length", "max_length"), strict=True)
        lengths = {name: self._given[limit] for name, limit in pairs if limit in self._given}
        return {**lengths, **({"description": self._text} if self._text else {})}


def _limits(given: Mapping[str, Any]) -> Iterator[_Limit]:
    if words := _range_words(given):
        yield _Limit(f"be {words}", words, partial(_is_in_range, given))
    least, most = given.get("min_length", 0), given.get("max_length", math.inf)
    if least or most < math.inf:
        number = (
            f"at least {least}" if most == math.inf else f"{least} to {most}" if least else f"at most {most}"
        )
        number = f"exactly {least}" if least == most else number
        unit = "{counted}" if (least if most == math.inf else most) == 1 else "{counted}s"
        begin = "from " if number[0].isdigit() else ""
        yield _Limit(f"have {begin}{number} {unit}", f"of {number} {unit}", partial(_has_length, least, most))
    if (divisor := given.get("multiple_of")) is not None:
        words = f"a multiple of {divisor}"
        yield _Limit(f"be {words}", words, partial(_is_multiple, divisor))
    if (pattern := given.get("pattern")) is not None:
        shown = repr(pattern).replace("{", "{{").replace("}", "}}")
        yield _Limit(f"match {shown}", f"that matches {shown}", partial(_matches, pattern))
    if (zoned := given.get("tz")) is not None:
        words = "a time zone" if zoned else "no time zone"
        yield _Limit(f"have {words}", f"with {words}", partial(_has_zone, zoned))


def _range_words(given: Mapping[str, Any]) -> str:
    if "ge" in given and "le" in given:
        return f"from {given['ge']} to {given['le']}"
    return " and ".join(f"{words} {given[name]}" for name, words in _RANGE.items() if name in given)


def _is_in_range(given: Mapping[str, Any], value: Any) -> bool:
    return not _is_number(value) or (
        ("gt" not in given or value > given["gt"])
        and ("ge" not in given or value >= given["ge"])
        and ("lt" not in given or value < given["lt"])
        and ("le" not in given or value <= given["le"])
    )


def _has_length(least: float, most: float, value: Any) -> bool:
    return not isinstance(value, Sized) or least <= len(value) <= most


def _is_multiple(divisor: float, value: Any) -> bool:
    return not _is_number(value) or value % divisor == 0


def _matches(pattern: str, value: Any) -> bool:
    return not isinstance(value, str) or re.search(pattern, value) is not None


def _has_zone(zoned: bool, value: Any) -> bool:
    is_time = isinstance(value, (datetime.datetime, datetime.time))
    return not is_time or (value.tzinfo is not None) is zoned


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, decimal.Decimal)) and not isinstance(value, bool)


def _counted(kind: type[Any]) -> str:
    """The unit of a length of a `kind` of value, in the singular."""
    return next((unit for base, unit in _COUNTED.items() if issubclass(kind, base)), "item")
