"""The fields of a declaration: which were given, and what is wrong with them.

Owns how `WorkerConfig` and its parts accept their arguments, so that a misspelt or a missing one is reported
together with everything else that is wrong, and how that ends the process: status 2, no traceback. The
checks of types are in lib/fields/annotations.py.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lib.errors import SettingsError, print_refusal
from lib.fields.annotations import fits, mismatch
from lib.runtime.exit_status import EXIT_SETTINGS

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Callable[[T], T]:
        return lambda cls: cls


class DeclarationRefused(SettingsError, SystemExit):
    """A declaration that can't work, with a line in `problems` for each reason.

    If nobody catches it, the process ends with status 2.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems)
        self.code = EXIT_SETTINGS


def refuse(problems: Sequence[str]) -> None:
    """Print `problems` to stderr and raise `DeclarationRefused`; do nothing if there are none."""
    if problems:
        refused = DeclarationRefused(problems)
        print_refusal(refused)  # Python prints nothing for a SystemExit
        raise refused


@dataclass_transform(field_specifiers=(field,))
class DeclaredConfig:
    """Base class of the declared configurations: each subclass is a dataclass, without a decorator.

    Nothing is raised at construction or assignment: `problems` reports what is wrong, for one message about
    the whole declaration. `given` holds the names of the fields that were given, not left to their defaults.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    given: set[str]
    _wrong_arguments: list[str]

    def __init_subclass__(cls) -> None:
        dataclass(init=False)(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = {f.name: f for f in fields(self)}
        positional = [f.name for f in known.values() if not f.kw_only]
        wrong: list[str] = []
        vars(self).update(
            {name: _default(f) for name, f in known.items()}, given=set(), _wrong_arguments=wrong
        )
        if len(args) > len(positional):
            wrong.append(f"{len(args)} positional arguments, at most {len(positional)} are accepted")
        for name, value in zip(positional, args, strict=False):
            setattr(self, name, value)
        for name, value in kwargs.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                wrong.append(f"no field {name!r}" + (f": did you mean {close[0]!r}?" if close else ""))
            elif name in self.given:
                wrong.append(f"{name} is given twice")
            else:
                setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.given.add(name)

    def problems(self) -> list[str]:
        """One line for each thing that is wrong with the arguments and with the types of the fields."""
        problems = list(self._wrong_arguments)
        for name, annotation in _types_of(type(self)).items():
            value = getattr(self, name)
            if value is MISSING:
                problems.append(f"{name} is missing")
            elif problem := mismatch(name, annotation, value):
                problems.append(problem)
        return problems

    def has(self, name: str) -> bool:
        """Whether the field holds a value of the right type other than None, so that it can be examined."""
        return getattr(self, name) is not None and self._fits(name)

    def valid(self, name: str) -> Any:
        """The field's value; its default if the value is missing or has a wrong type.

        This way the checks that follow also run on a declaration with problems, and all are reported at once.
        """
        return getattr(self, name) if self._fits(name) else _default(self.__dataclass_fields__[name])

    def _fits(self, name: str) -> bool:
        value = getattr(self, name)
        return value is not MISSING and fits(_types_of(type(self))[name], value)


def _default(declared: Field[Any]) -> Any:
    return declared.default if declared.default_factory is MISSING else declared.default_factory()


def _types_of(cls: type[DeclaredConfig]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}
