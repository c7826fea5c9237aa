"""The fields of a declaration: which were given, and all that is wrong with them.

Owns how `WorkerConfig` and its parts take their arguments, so that a misspelt or a missing one is told
together with all else that is wrong, and how that ends the process: status 2, no traceback.
"""

from __future__ import annotations

import difflib
import math
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from lib.errors import SettingsError

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[T], T]:
        return lambda cls: cls


EXIT_STATUS = 2

_NAMES: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "True or False",
    list: "a list",
    dict: "a dict",
    type(None): "None",
    Callable: "a function",
    AbstractAsyncContextManager: "an async context manager",
}


class DeclarationRefused(SettingsError, SystemExit):
    """A declaration that can't work, a line for each of its `problems`. Uncaught, the exit status is 2."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.code = EXIT_STATUS


def refuse(problems: Sequence[str]) -> None:
    """Tell what is wrong and raise `DeclarationRefused`; nothing happens when nothing is."""
    if problems:
        refused = DeclarationRefused(problems)
        print(refused, file=sys.stderr)  # noqa: T201 - Python ends without a word on a SystemExit
        raise refused


@dataclass_transform(field_specifiers=(field,))
class Declared:
    """Base of the declared configurations: each subclass is a dataclass, without a decorator.

    Nothing is raised at construction or assignment: `check` tells what is wrong, for one message about
    the whole declaration. `given` has the names of the fields that were given, not left to their defaults.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    given: set[str]
    _misused: list[str]

    def __init_subclass__(cls) -> None:
        dataclass(init=False)(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = {f.name: f for f in fields(self)}
        positional = [f.name for f in known.values() if not f.kw_only]
        misused: list[str] = []
        vars(self).update({name: _default(f) for name, f in known.items()}, given=set(), _misused=misused)
        if len(args) > len(positional):
            misused.append(f"{len(args)} positional arguments, at most {len(positional)} are taken")
        for name, value in zip(positional, args, strict=False):
            setattr(self, name, value)
        for name, value in kwargs.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                misused.append(f"no field {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
            elif name in self.given:
                misused.append(f"{name} is given twice")
            else:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.given.add(name)

    def check(self) -> list[str]:
        """Everything that is wrong with the arguments and with the types of the fields, a line each."""
        problems = list(self._misused)
        for name, wanted in _types_of(type(self)).items():
            value = getattr(self, name)
            if value is MISSING:
                problems.append(f"{name} is missing")
            elif not fits(wanted, value):
                problems.append(f"{name} must be {describe(wanted)}, not {reprlib.repr(value)}")
        return problems

    def has(self, name: str) -> bool:
        """Whether the field holds something, and of the right type: then it can be looked at further."""
        value = getattr(self, name)
        return value is not None and value is not MISSING and fits(_types_of(type(self))[name], value)

    def too_small(self, minimum: float, *names: str) -> Iterable[str]:
        """A line for each of the fields `names` that is less than `minimum`."""
        for name in filter(self.has, names):
            if (value := getattr(self, name)) < minimum:
                yield f"{name} is {value}, less than {minimum}"

    def no_duration(self, *names: str) -> Iterable[str]:
        """A line for each of the fields `names` that is no number of seconds."""
        for name in filter(self.has, names):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                yield f"{name} is {value}, not a finite number of seconds ≥ 0"


def fits(wanted: Any, value: Any) -> bool:
    """Whether `value` is of the annotated type `wanted`, the items of a list included."""
    origin, args = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if origin is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(option, value) for option in args)
    if origin is typing.Literal:
        return value in args
    if origin is type:
        return isinstance(value, type) and issubclass(value, _class_in(args))
    if origin in (int, float):
        return isinstance(value, (int, origin)) and not isinstance(value, bool)
    if origin is list:
        items = cast("Sequence[Any]", value)
        return isinstance(value, (list, tuple)) and all(fits(args[0], item) for item in items)
    return isinstance(value, origin)


def describe(wanted: Any) -> str:
    """What a value of the annotated type `wanted` is, in words."""
    origin, args = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in args)
    if origin is type:
        of = _class_in(args)
        return "a class" if of is object else f"a subclass of {of.__name__}"
    if origin is list and args:
        return f"a list, each item {describe(args[0])}"
    if origin in _NAMES:
        return _NAMES[origin]
    article = "an" if origin.__name__[0] in "AEIOU" else "a"
    return f"{article} {origin.__name__}"


def _class_in(args: tuple[Any, ...]) -> type[Any]:
    """Of which class `type[…]` wants a subclass."""
    of = typing.get_origin(args[0]) or args[0]
    return object if of is Any else of


def _default(declared: Field[Any]) -> Any:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _types_of(cls: type[Declared]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}
