"""A payload's JSON text as it was received, and whether it still says what is to be sent.

Owns finding out whether a handler's code has changed a payload: one that it has not is forwarded as the bytes
that came, which costs less than writing it anew, and keeps numbers, spaces and the order of keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

Text = memoryview | bytes | bytearray

_MISSING = object()


class Verbatim:
    """The JSON `text` of `content`, a parsed object that code of a handler's author may change."""

    __slots__ = ("_copy", "text")

    def __init__(self, text: Text, content: dict[str, Any]) -> None:
        self.text = text
        self._copy = _copied(content)

    def says(self, message: Any) -> bool:
        """Whether `message` is what `text` says: the same values under the same keys, none of them replaced.

        False also for a message that is equal, but made of other values: 1, 1.0 and true are equal in Python.
        """
        try:
            return isinstance(message, dict) and _is_same_object(self._copy, cast("dict[str, Any]", message))
        except RecursionError:  # nested too deeply to be compared
            return False


def _copied(container: Any) -> Any:
    """A copy of an object or a list, and of those in it, but not of other values, which can't be changed."""
    copy = container.copy()
    keys: Iterable[Any] = copy if isinstance(container, dict) else range(len(copy))
    for key in keys:
        value = copy[key]
        kind = cast("type[object]", type(value))
        if kind is dict or kind is list:
            copy[key] = _copied(value)
    return copy


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
    kind = cast("type[object]", type(kept))
    if kind is dict:
        return isinstance(value, dict) and _is_same_object(kept, cast("dict[str, Any]", value))
    if kind is not list or type(value) is not list or len(kept) != len(cast("list[Any]", value)):
        return False
    return all(v is k or _is_same(k, v) for k, v in zip(kept, cast("list[Any]", value), strict=True))
