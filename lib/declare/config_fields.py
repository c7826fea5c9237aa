"""The fields of a declaration: which were given, and all that is wrong with them.

Owns how `WorkerConfig` and its parts take their arguments, so that a misspelt or a missing one is told
together with all else that is wrong, and how that ends the process: status 2, no traceback.
"""

from __future__ import annotations

import difflib
import math
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lib.errors import SettingsError
from lib.fields.annotations import PYTHON

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[T], T]:
        return lambda cls: cls


EXIT_STATUS = 2


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
            elif mismatch := PYTHON.mismatch(name, wanted, value):
                problems.append(mismatch)
        return problems

    def has(self, name: str) -> bool:
        """Whether the field holds something, and of the right type: then it can be looked at further."""
        value = getattr(self, name)
        return value is not None and value is not MISSING and PYTHON.fits(_types_of(type(self))[name], value)

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


def _default(declared: Field[Any]) -> Any:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _types_of(cls: type[Declared]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}
