"""JSON of Python's objects: dataclasses, models, arrays, dates, enumerations and the like.

Owns which objects have a form in JSON. numpy, torch and pydantic are never imported: what has their methods
is converted by these.
"""

from __future__ import annotations

import dataclasses
import enum
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

    Raises `TypeError` for what has no form in JSON.
    """
    if value is None or (
        isinstance(value, (str, int, float, dict, list)) and not isinstance(value, enum.Enum)
    ):
        return cast(Any, value)
    return _json_form(value)


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


def _is_sequence(value: Any) -> bool:
    return isinstance(value, abc.Sequence) and not isinstance(value, (str, *RAW_BYTES))


# Like `json.dumps`, for messages to a model server. Raises what `to_json` raises, but not for NaN.
json_text = json.JSONEncoder(default=_json_form).encode
