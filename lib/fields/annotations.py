"""Type annotations of what authors declare: whether a value is of one, and what a message calls it.

Owns Python's types in messages. What clients send is read in readers.py; the fields of a declaration are in
lib/declare/config_fields.py.
"""

from __future__ import annotations

import reprlib
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, cast

_NAMES: Mapping[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    list: "a list",
    bool: "True or False",
    dict: "a dict",
    type(None): "None",
    Callable: "a function",
    AbstractAsyncContextManager: "an async context manager",
}


# The types that are lists in JSON, each with the type that a value gets.
LISTS: Mapping[Any, Any] = {
    list: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Iterable: list,
    abc.Collection: list,
    set: set,
    abc.Set: set,
    abc.MutableSet: set,
    frozenset: frozenset,
    tuple: tuple,
}
# `Required[…]` and the like around the annotation of a TypedDict's field. Python 3.10 has none of its own.
QUALIFIERS = frozenset({"Required", "NotRequired", "ReadOnly"})


def named_type(annotation: Any) -> Any:
    """The type behind a name: of a `NewType`, or of an alias by a `type` statement; None for any other."""
    if (supertype := getattr(annotation, "__supertype__", None)) is not None:
        return supertype
    value = getattr(annotation, "__value__", None)
    if value is None:
        return None
    arguments = typing.get_args(annotation)
    return value[arguments] if arguments and getattr(value, "__parameters__", ()) else value


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or `annotation` alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def fits(annotation: Any, value: Any) -> bool:
    """Whether `value` is of the type `annotation`, with all items of a list. Booleans are not numbers."""
    return any(_fits_one(member, value) for member in union_members(annotation))


def describe(annotation: Any) -> str:
    """The type `annotation` in words: "an integer or None", "a list, each item a string"."""
    return " or ".join(_describe_one(member) for member in union_members(annotation))


def mismatch(name: str, annotation: Any, value: Any) -> str | None:
    """The line for a field `name` whose `value` is not of the type `annotation`; None if it is."""
    if fits(annotation, value):
        return None
    return f"{name} must be {describe(annotation)}, not {reprlib.repr(value)}"


def _fits_one(annotation: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if origin is list:
        item = arguments[0] if arguments else Any
        return isinstance(value, (list, tuple)) and all(fits(item, v) for v in cast("list[Any]", value))
    if origin is type:
        return isinstance(value, type) and issubclass(value, _class_of(arguments))
    return isinstance(value, origin)


def _describe_one(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is list and arguments and arguments[0] is not Any:
        return f"a list, each item {describe(arguments[0])}"
    if origin in _NAMES:
        return _NAMES[origin]
    if origin is type:
        base = _class_of(arguments)
        return "a class" if base is object else f"a subclass of {base.__name__}"
    article = "an" if origin.__name__[0] in "AEIOU" else "a"
    return f"{article} {origin.__name__}"


def _class_of(arguments: tuple[Any, ...]) -> type[Any]:
    """The class `C` of an annotation `type[C]`; `object` for `type[Any]`."""
    cls = typing.get_origin(arguments[0]) or arguments[0]
    return object if cls is Any else cls
