"""Parameters of a URL: strings, converted to the types of the fields that they are for.

Owns the conversion of text. Whether the result is of the field's type is checked in readers.py.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, cast

from lib.fields.annotations import LISTS, QUALIFIERS, named_type, union_members


class Parameters(dict[str, Any]):
    """Parameters of a URL: strings, and lists of strings for names that come more than once.

    `read_fields` converts each string to the type of its field.
    """


def converted(wanted: Any, text: Any) -> Any:
    """Convert `text`, a string or a list of strings, to the type `wanted`; unchanged where that fails."""
    options = list(_options(wanted))
    lists = [option for option in options if (typing.get_origin(option) or option) in LISTS]
    if lists and str not in options and not isinstance(text, list):
        text = [text]
    if isinstance(text, list):
        texts = cast("list[Any]", text)
        item_types = _item_types(lists[0], len(texts)) if lists else [str] * len(texts)
        return [converted(*pair) for pair in zip(item_types, texts, strict=True)]
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


def _options(wanted: Any) -> Iterator[Any]:
    """Yield the types that `wanted` stands for, without names and metadata around them."""
    origin, members = typing.get_origin(wanted), union_members(wanted)
    if len(members) > 1:
        for member in members:
            yield from _options(member)
    elif origin is Annotated or getattr(origin, "_name", None) in QUALIFIERS:
        yield from _options(typing.get_args(wanted)[0])
    elif (named := named_type(wanted)) is not None:
        yield from _options(named)
    else:
        yield wanted


def _item_types(wanted: Any, number: int) -> Sequence[Any]:
    """The types of so many items of the list type `wanted`; strings without one."""
    types = typing.get_args(wanted) or (str,)
    is_fixed = (typing.get_origin(wanted) or wanted) is tuple and types[-1] is not Ellipsis
    return types if is_fixed and len(types) == number else [types[0]] * number


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
