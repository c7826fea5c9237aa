"""JSON of Python's objects: dataclasses, models, arrays, dates, enumerations and the like.

Owns which objects have a form in JSON. numpy, torch and pydantic are never imported: what has their methods
is converted by these.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
from collections import abc
from typing import Any, cast

import msgspec

RAW_BYTES = (bytes, bytearray, memoryview)


def to_json(value: Any) -> bytes:
    """Encode `value` as JSON. Raises `TypeError` or `ValueError` for what has no form in JSON, also NaN."""
    try:
        return json.dumps(value, allow_nan=False, default=_json_form).encode()
    except RecursionError as e:
        raise ValueError("it is nested too deeply") from e


def name_of_type(value: Any) -> str:
    """The type of `value`, with its module unless that is Python's own."""
    kind = cast("type[Any]", type(value))
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def simplified(value: Any) -> Any:
    """Return an object that JSON doesn't know as a value that it knows; any other `value` as it is.

    The result is for a model server, as that of `json_text`. Raises `TypeError` for what has no form in JSON.
    """
    if value is None or (
        isinstance(value, (str, int, float, dict, list)) and not isinstance(value, enum.Enum)
    ):
        return cast(Any, value)
    return _message_form(value)


def _json_form(value: Any) -> Any:
    """The next simpler form of `value`, which `json` doesn't know. Raises `TypeError` if there is none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, type):
        if callable(dump := getattr(value, "model_dump", None)):  # pydantic's models
            return dump(mode="json")
        if callable(to_list := getattr(value, "tolist", None)):  # arrays, tensors and their scalars
            return to_list()
    if isinstance(value, abc.Mapping):
        return dict(cast("abc.Mapping[Any, Any]", value))
    if isinstance(value, (abc.Set, abc.MappingView)) or _is_sequence(value):
        return list(cast("abc.Iterable[Any]", value))
    try:
        return msgspec.to_builtins(value)  # dates and times, UUIDs, decimals, enumerations, bytes
    except TypeError as e:
        raise TypeError(f"{name_of_type(value)} has no form in JSON") from e


def _message_form(value: Any) -> Any:
    """The next simpler form of a client's value for a model server. Raises `TypeError` if there is none.

    Fields of pydantic's types have the names that the client gave them (aliases), and secrets are readable.
    """
    dump = getattr(value, "model_dump", None)
    if dump is None and (serializer := getattr(value, "__pydantic_serializer__", None)) is not None:
        dump = functools.partial(serializer.to_python, value)  # of pydantic's dataclasses
    if callable(dump) and not isinstance(value, type):
        return _with_secrets(dump(mode="json", by_alias=True), dump(by_alias=True))
    if callable(reveal := getattr(value, "get_secret_value", None)):
        return _revealed(reveal())
    return _json_form(value)


def _with_secrets(shown: Any, held: Any) -> Any:
    """Put the secrets in `held`, pydantic's values as Python has them, into `shown`, the same as JSON.

    A part that a serializer of the author's makes shorter or longer in JSON stays as it is.
    """
    if callable(reveal := getattr(held, "get_secret_value", None)):
        return _revealed(reveal())
    if isinstance(shown, dict) and isinstance(held, dict):
        parts, values = cast("dict[str, Any]", shown), list(cast("dict[Any, Any]", held).values())
        return dict(zip(parts, _each_with_secrets(list(parts.values()), values), strict=True))
    if isinstance(shown, list) and isinstance(held, (list, tuple, abc.Set)):
        return _each_with_secrets(cast("list[Any]", shown), cast("abc.Collection[Any]", held))
    return cast(Any, shown)


def _each_with_secrets(shown: list[Any], held: abc.Collection[Any]) -> list[Any]:
    if len(shown) != len(held):
        return shown
    return [_with_secrets(item, value) for item, value in zip(shown, held, strict=True)]


def _revealed(secret: Any) -> Any:
    return secret.decode() if isinstance(secret, bytes) else secret


def _is_sequence(value: Any) -> bool:
    return isinstance(value, abc.Sequence) and not isinstance(value, (str, *RAW_BYTES))


# Like `json.dumps`, for messages to a model server. Raises what `to_json` raises, but not for NaN.
json_text = json.JSONEncoder(default=_message_form).encode
