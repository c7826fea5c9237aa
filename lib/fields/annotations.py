"""Type annotations: whether a value is of one, and what a message calls it.

Owns the two type systems by which values are checked and described: `JSON` for what clients send, `PYTHON`
for what authors declare. Reading JSON into dataclasses is in json_fields.py; the fields of a declaration are
in lib/declare/config_fields.py.
"""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Literal

_COMMON_NAMES: Mapping[Any, str] = {str: "a string", int: "an integer", float: "a number", list: "a list"}


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or `annotation` alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


class TypeSystem(ABC):
    """The checks and descriptions that JSON and Python share. Booleans are not numbers in either."""

    names: ClassVar[Mapping[Any, str]]
    list_types: ClassVar[tuple[type[Any], ...]]

    def fits(self, annotation: Any, value: Any) -> bool:
        """Whether `value` is of the type `annotation`, with all items of a list."""
        return any(self._fits_one(member, value) for member in union_members(annotation))

    def describe(self, annotation: Any) -> str:
        """The type `annotation` in words: "an integer or null", "a list, each item a string"."""
        return " or ".join(self._describe_one(member) for member in union_members(annotation))

    def _fits_one(self, annotation: Any, value: Any) -> bool:
        origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin is Any:
            return True
        if origin is Literal:
            return any(value == choice and type(value) is type(choice) for choice in arguments)
        if origin in (int, float):
            return isinstance(value, (int, origin)) and not isinstance(value, bool)
        if origin is list:
            item = arguments[0] if arguments else Any
            return isinstance(value, self.list_types) and all(self.fits(item, v) for v in value)
        if origin in self.names:
            return isinstance(value, origin)
        return self._fits_other(origin, arguments, value)

    def _describe_one(self, annotation: Any) -> str:
        origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin is Literal:
            return "one of " + ", ".join(repr(choice) for choice in arguments)
        if origin is list and arguments and arguments[0] is not Any:
            return f"a list, each item {self.describe(arguments[0])}"
        return self.names.get(origin) or self._describe_other(annotation)

    @abstractmethod
    def _fits_other(self, origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
        """Whether `value` is of a type that only this type system has."""

    @abstractmethod
    def _describe_other(self, annotation: Any) -> str:
        """A type that only this type system has, in words."""


class _Json(TypeSystem):
    """JSON's types. A dataclass stands for an object; any other annotation accepts every value."""

    names: ClassVar = {**_COMMON_NAMES, bool: "true or false", dict: "an object", type(None): "null"}
    list_types = (list,)

    def _fits_other(self, origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, dict) if dataclasses.is_dataclass(origin) else True

    def _describe_other(self, annotation: Any) -> str:
        return "an object" if dataclasses.is_dataclass(annotation) else str(annotation)


class _Python(TypeSystem):
    """Python's types: any class, `type[…]` for a subclass, `Callable` for a function; a tuple is a list."""

    names: ClassVar = {
        **_COMMON_NAMES,
        bool: "True or False",
        dict: "a dict",
        type(None): "None",
        Callable: "a function",
        AbstractAsyncContextManager: "an async context manager",
    }
    list_types = (list, tuple)

    def mismatch(self, name: str, annotation: Any, value: Any) -> str | None:
        """The line for a field `name` whose `value` is not of the type `annotation`; None if it is."""
        if self.fits(annotation, value):
            return None
        return f"{name} must be {self.describe(annotation)}, not {reprlib.repr(value)}"

    def _fits_other(self, origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
        if origin is type:
            return isinstance(value, type) and issubclass(value, _class_of(arguments))
        return isinstance(value, origin)

    def _describe_other(self, annotation: Any) -> str:
        origin = typing.get_origin(annotation) or annotation
        if origin is type:
            base = _class_of(typing.get_args(annotation))
            return "a class" if base is object else f"a subclass of {base.__name__}"
        article = "an" if origin.__name__[0] in "AEIOU" else "a"
        return f"{article} {origin.__name__}"


def _class_of(arguments: tuple[Any, ...]) -> type[Any]:
    """The class `C` of an annotation `type[C]`; `object` for `type[Any]`."""
    cls = typing.get_origin(arguments[0]) or arguments[0]
    return object if cls is Any else cls


JSON = _Json()
PYTHON = _Python()
