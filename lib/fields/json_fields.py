"""JSON objects into dataclasses, with every wrong field named at once.

Owns `JsonDataException`, the `Parameters` of a URL, and the reading of dataclass fields. Only simple types
are checked: str, int, float, bool, list, dict, None, literals, unions of them and nested dataclasses; any
other annotation takes the value as it is.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")

_NAMES: Mapping[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class JsonDataException(Exception):
    """A message that can't be read: `message` maps each wrong field to what is wrong with it."""

    def __init__(self, json_msg: Mapping[str, Any]) -> None:
        super().__init__(json_msg)
        self.message = dict(json_msg)


def read_dataclass(cls: type[T], message: Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls` out of `message`. Raises `JsonDataException`."""
    return cls(**read_fields(cls, message))


def read_fields(cls: type[Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """The values in `message` for the fields of the dataclass `cls`; unknown keys are ignored.

    Raises `JsonDataException`: "missing parameter", or which type a field wants.
    """
    values: dict[str, Any] = {}
    problems: dict[str, Any] = {}
    from_url = isinstance(message, Parameters)
    for name, wanted, required in _fields_of(cls):
        if name not in message:
            if required:
                problems[name] = "missing parameter"
            continue
        try:
            given = message[name]
            values[name] = _read(wanted, _stands_for(wanted, given) if from_url else given)
        except JsonDataException as e:
            problems[name] = e.message
        except TypeError as e:
            problems[name] = str(e)
    if problems:
        raise JsonDataException(problems)
    return values


class Parameters(dict[str, Any]):
    """Parameters of a URL: texts, and lists of them for names that come more than once.

    A field that wants something else than a text takes what the text stands for.
    """


def _stands_for(wanted: Any, text: Any) -> Any:
    """`text` as what a field of the type `wanted` takes, or as it is where it can't be that."""
    options = _options(wanted)
    lists = [option for option in options if (typing.get_origin(option) or option) is list]
    if lists and not isinstance(text, list):
        text = [text]
    if isinstance(text, list):
        of = (typing.get_args(lists[0]) or (str,))[0] if lists else str
        return [_stands_for(of, item) for item in cast("list[Any]", text)]
    choices = [
        c for option in options if typing.get_origin(option) is Literal for c in typing.get_args(option)
    ]
    for choice in choices:
        if _stands_for(type(choice), text) == choice:
            return choice
    if str in options:
        return text
    for kind, read in _READERS:
        if kind in options:
            with suppress(ValueError, KeyError):
                return read(text)
    return text


def _boolean(text: str) -> bool:
    """Raises `KeyError`. Python's clients write "True", others "true" or "1"."""
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


_READERS: Sequence[tuple[type[Any], Callable[[str], Any]]] = (
    (bool, _boolean),
    (int, int),
    (float, float),
)


@lru_cache(maxsize=256)
def _fields_of(cls: type[Any]) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether it is required, of each field that `cls` takes at construction."""
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass: define its from_json_msg")
    hints = typing.get_type_hints(cls)
    return tuple(
        (
            field.name,
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
        if field.init
    )


def _read(wanted: Any, value: Any) -> Any:
    """`value` as the type `wanted`. Raises `TypeError` saying what is wanted."""
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, dict):
        own = getattr(wanted, "from_json_msg", None)
        return own(value) if own else read_dataclass(wanted, cast("dict[str, Any]", value))
    options = _options(wanted)
    for option in options:
        if option is not wanted and dataclasses.is_dataclass(option) and isinstance(value, dict):
            return _read(option, value)
    if not any(_fits(option, value) for option in options):
        raise TypeError("must be " + " or ".join(_name(option) for option in options))
    return value


def _options(wanted: Any) -> tuple[Any, ...]:
    """The members of a union, or `wanted` alone."""
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return typing.get_args(wanted)
    return (wanted,)


def _fits(wanted: Any, value: Any) -> bool:
    origin = typing.get_origin(wanted) or wanted
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(wanted))
    if origin in (int, float) and isinstance(value, bool):
        return False
    if origin is float:
        return isinstance(value, (int, float))
    if origin is list and isinstance(value, list):
        of = (typing.get_args(wanted) or (Any,))[0]
        return all(any(_fits(option, item) for option in _options(of)) for item in cast("list[Any]", value))
    if origin in _NAMES:
        return isinstance(value, origin)
    return isinstance(value, dict) if dataclasses.is_dataclass(origin) else True


def _name(wanted: Any) -> str:
    origin = typing.get_origin(wanted) or wanted
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(wanted))
    if origin is list and typing.get_args(wanted):
        return "a list, each item " + " or ".join(_name(o) for o in _options(typing.get_args(wanted)[0]))
    return "an object" if dataclasses.is_dataclass(origin) else _NAMES.get(origin, str(wanted))
