"""A payload's JSON text as it was received, and whether it still says what is to be sent.

Owns finding out whether a handler's code has changed a payload: one that it has not is forwarded as the bytes
that came, which costs less than writing it anew, and keeps numbers, spaces and the order of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

Text = memoryview | bytes | bytearray

_MISSING = object()
_type_of: Callable[[object], type[object]] = type
# Texts are searched in pieces of this size: a view has to be copied to be searched.
_PIECE_BYTES = 64 * 1024


class Verbatim:
    """The JSON `text` of a parsed object that code of a handler's author may change."""

    __slots__ = ("_copy", "text")

    def __init__(self, text: Text, copy: dict[str, Any]) -> None:
        self.text = text
        self._copy = copy

    @classmethod
    def of(cls, text: Text, content: dict[str, Any]) -> Verbatim | None:
        """Keep `text`, which was parsed as `content`; None if an object in it has a key twice, or may have.

        JSON parsers differ in which value of such a key they take. It is twice in the text, but once in
        `content`, which then has fewer strings.
        """
        try:
            copy, strings = _copied(content)
        except RecursionError:  # nested too deeply
            return None
        quotes = _quotes_in(text) if isinstance(text, bytes) else _quotes_of_strings(text)
        return cls(text, copy) if quotes == 2 * strings else None

    def says(self, message: Any) -> bool:
        """Whether `message` is what `text` says: the same values under the same keys, none of them replaced.

        False also for a message that is equal, but made of other values: 1, 1.0 and true are equal in Python.
        """
        try:
            return issubclass(_type_of(message), dict) and _is_same_object(self._copy, message)
        except RecursionError:  # nested too deeply to be compared
            return False


def _copied(container: dict[Any, Any] | list[Any]) -> tuple[Any, int]:
    """A copy of an object or a list, and of those in it, but not of other values, which can't be changed.

    The second is the number of strings in it, keys included.
    """
    copy: Any = container.copy()
    items: Iterable[tuple[Any, Any]]
    if isinstance(container, dict):
        strings, items = len(copy), container.items()
    else:
        strings, items = 0, enumerate(container)
    for key, value in items:
        kind = _type_of(value)
        if kind is str:
            strings += 1
        elif kind is dict or kind is list:
            copy[key], inner = _copied(value)
            strings += inner
    return copy, strings


def _quotes_of_strings(text: Text) -> int | None:
    """Count the quotes around strings in the JSON `text`; None if they can't be told from those inside."""
    quotes = start = 0
    while start < len(text):
        end = start + _PIECE_BYTES
        while end < len(text) and text[end - 1] == _BACKSLASH:  # it may belong to what follows
            end += 1
            if end > start + 2 * _PIECE_BYTES:
                return None
        part = _quotes_in(bytes(text[start:end]))
        if part is None:
            return None
        quotes, start = quotes + part, end
    return quotes


_BACKSLASH = ord("\\")


def _quotes_in(text: bytes) -> int | None:
    """Count the quotes around strings in a part of a JSON text."""
    quotes = text.count(b'"')
    if b"\\" in text:
        if b'\\\\"' in text:  # an escaped backslash may come before the end of a string
            return None
        quotes -= text.count(b'\\"')
    return quotes


def _is_same_object(copy: dict[str, Any], content: dict[str, Any]) -> bool:
    if len(copy) != len(content):
        return False
    get = content.get
    for key, kept in copy.items():
        value = get(key, _MISSING)
        if value is not kept and not _is_same(kept, value):
            return False
    return True


def _is_same(kept: Any, value: Any) -> bool:
    """Whether `value` is the same as `kept`, which is not the same Python object."""
    kind = _type_of(kept)
    if kind is dict:
        return isinstance(value, dict) and _is_same_object(kept, cast("dict[str, Any]", value))
    if kind is not list or type(value) is not list or len(kept) != len(cast("list[Any]", value)):
        return False
    return all(v is k or _is_same(k, v) for k, v in zip(kept, cast("list[Any]", value), strict=True))
