"""Parameters of a URL: strings, converted to the types of the fields that they are for.

Owns the conversion of text. Whether the result is of the field's type is checked in readers.py.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, cast

from lib.fields.annotations import union_members


class Parameters(dict[str, Any]):
    """Parameters of a URL: strings, and lists of strings for names that come more than once.

    `read_fields` converts each string to the type of its field.
    """


def converted(wanted: Any, text: Any) -> Any:
    """Convert `text`, a string or a list of strings, to the type `wanted`; unchanged where that fails."""
    options = union_members(wanted)
    lists = [option for option in options if (typing.get_origin(option) or option) is list]
    if lists and str not in options and not isinstance(text, list):
        text = [text]
    if isinstance(text, list):
        item_type = (typing.get_args(lists[0]) or (str,))[0] if lists else str
        return [converted(item_type, item) for item in cast("list[Any]", text)]
    for choice in _choices(options):
        if converted(type(choice), text) == choice:
            return choice
    if str in options:
        return text
    for kind, read in _READERS:
        if kind in options:
            with suppress(ValueError, KeyError):
                return read(text)
    return text


def _choices(options: Sequence[Any]) -> Iterator[Any]:
    """Yield the values of literals and enumerations among `options`."""
    for option in options:
        if typing.get_origin(option) is Literal:
            yield from typing.get_args(option)
        elif isinstance(option, type) and issubclass(option, enum.Enum):
            yield from (member.value for member in option)


def _boolean(text: str) -> bool:
    """Read "true", "false", "1" or "0" in any case: Python's clients write "True". Raises `KeyError`."""
    return {"true": True, "false": False, "1": True, "0": False}[text.lower()]


_READERS: Sequence[tuple[type[Any], Callable[[str], Any]]] = (
    (bool, _boolean),
    (int, int),
    (float, float),
)
