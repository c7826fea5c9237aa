"""JSON objects into dataclasses, with every wrong field named at once.

Owns `JsonDataException`, the `Parameters` of a URL, and the reading of dataclass fields. Only simple types
are checked: str, int, float, bool, list, dict, None, literals, unions of them and nested dataclasses; a
field of any other type accepts every value. The checks and their words are in annotations.py.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar, cast

from lib.fields.annotations import JSON, union_members

T = TypeVar("T")


class JsonDataException(Exception):
    """A request with wrong fields: `message` maps each of them to its problem, nested like the request.

    The client gets `message` as the body of a 422 (docs/protocol.md, "Answers").
    """

    def __init__(self, json_msg: Mapping[str, Any]) -> None:
        super().__init__(json_msg)
        self.message = dict(json_msg)


def read_dataclass(cls: type[T], message: Mapping[str, Any]) -> T:
    """Make an instance of the dataclass `cls` from `message`. Raises `JsonDataException`."""
    return cls(**read_fields(cls, message))


def read_fields(cls: type[Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """The values in `message` for the fields of the dataclass `cls`; unknown keys are ignored.

    Raises `JsonDataException`: for each wrong field "missing parameter" or the type that it must have.
    """
    values: dict[str, Any] = {}
    problems: dict[str, Any] = {}
    from_url = isinstance(message, Parameters)
    for name, wanted, required, exact in _fields_of(cls):
        if name not in message:
            if required:
                problems[name] = "missing parameter"
            continue
        given = message[name]
        if type(given) in exact and not from_url:
            values[name] = given
            continue
        try:
            values[name] = _read(wanted, _converted(wanted, given) if from_url else given)
        except JsonDataException as e:
            problems[name] = e.message
        except TypeError as e:
            problems[name] = str(e)
    if problems:
        raise JsonDataException(problems)
    return values


class Parameters(dict[str, Any]):
    """Parameters of a URL: strings, and lists of strings for names that come more than once.

    `read_fields` converts each string to the type of its field.
    """


def _converted(wanted: Any, text: Any) -> Any:
    """Convert `text`, a string or a list of strings, to the type `wanted`; unchanged where that fails."""
    options = union_members(wanted)
    lists = [option for option in options if (typing.get_origin(option) or option) is list]
    if lists and not isinstance(text, list):
        text = [text]
    if isinstance(text, list):
        item_type = (typing.get_args(lists[0]) or (str,))[0] if lists else str
        return [_converted(item_type, item) for item in cast("list[Any]", text)]
    choices = [
        c for option in options if typing.get_origin(option) is Literal for c in typing.get_args(option)
    ]
    for choice in choices:
        if _converted(type(choice), text) == choice:
            return choice
    if str in options:
        return text
    for kind, read in _READERS:
        if kind in options:
            with suppress(ValueError, KeyError):
                return read(text)
    return text


def _boolean(text: str) -> bool:
    """Read "true", "false", "1" or "0" in any case: Python's clients write "True". Raises `KeyError`."""
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


_PLAIN = (str, int, float, bool, type(None))
_READERS: Sequence[tuple[type[Any], Callable[[str], Any]]] = (
    (bool, _boolean),
    (int, int),
    (float, float),
)


class _Field(NamedTuple):
    """One field of a dataclass. A value whose type is among `exact` is of the type `wanted`, unlooked at."""

    name: str
    wanted: Any
    required: bool
    exact: frozenset[Any]


@lru_cache(maxsize=256)
def _fields_of(cls: type[Any]) -> tuple[_Field, ...]:
    """The fields that the constructor of `cls` takes."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass: define its from_json_msg")
    hints = typing.get_type_hints(cls)
    return tuple(
        _Field(
            field.name,
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            _exact_types(hints[field.name]),
        )
        for field in dataclasses.fields(cls)
        if field.init
    )


def _exact_types(wanted: Any) -> frozenset[Any]:
    """The types whose values are of the type `wanted` without a look into them."""
    members = union_members(wanted)
    exact = {member for member in members if member in _PLAIN}
    has_dataclass = any(dataclasses.is_dataclass(member) for member in members)
    if not has_dataclass and any((typing.get_origin(member) or member) is dict for member in members):
        exact.add(dict)
    return frozenset(exact)


def _read(wanted: Any, value: Any) -> Any:
    """Return `value`, made a dataclass where `wanted` is one. Raises `TypeError` naming the expected type."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, dict):
        own = getattr(wanted, "from_json_msg", None)
        return own(value) if own else read_dataclass(wanted, cast("dict[str, Any]", value))
    for option in union_members(wanted):
        if option is not wanted and dataclasses.is_dataclass(option) and isinstance(value, dict):
            return _read(option, value)
    if not JSON.fits(wanted, value):
        raise TypeError(f"must be {JSON.describe(wanted)}")
    return value
