"""Requests to the model server: their path, their query and their forms.

Owns how a handler's message becomes a URL or a form. JSON is made, and all of it sent, in caller.py.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, urlencode

import aiohttp

from lib.errors import Invalid

# aiohttp writes larger bodies in chunks, and warns about those that it gets as one piece of bytes.
LARGE_BODY_BYTES = 1024 * 1024
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(endpoint: str) -> list[str]:
    """The names in braces in `endpoint`, in their order."""
    return _PLACEHOLDER.findall(endpoint)


def fill_path(endpoint: str, values: Mapping[str, Any]) -> str:
    """`endpoint` with each `{name}` replaced by the percent-encoded value of that name in `values`.

    Raises `Invalid` (422) for a value that is missing, None or empty, and for one with "." or ".." as a part
    of a path, which would lead to another endpoint.
    """
    texts = {name: "" if values.get(name) is None else _text(values[name]) for name in placeholders(endpoint)}
    problems = {name: "missing parameter" for name, text in texts.items() if not text}
    for name, text in texts.items():
        if {".", ".."} & set(text.split("/")):
            problems[name] = "can't be part of a path"
    if problems:
        raise Invalid({"payload": problems})
    return _PLACEHOLDER.sub(lambda found: quote(texts[found[1]], safe=""), endpoint)


def with_query(target: str | None, fields: Mapping[str, Any]) -> str | None:
    """`target` with `fields` in its query: a list is repeated, None is left out, an object is JSON."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        pairs += [(name, _text(item)) for item in items if item is not None]
    if target is None or not pairs:
        return target
    return f"{target}{'&' if '?' in target else '?'}{urlencode(pairs)}"


def make_form(fields: Mapping[str, Any]) -> aiohttp.FormData:
    """`fields` as multipart/form-data, by the rules of `ApiPayload.generate_payload_multipart`.

    Raises `TypeError` for bare bytes.
    """
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        for item in cast("list[Any]", value) if isinstance(value, list) else [value]:
            _add_field(form, name, item)
    return form


def _add_field(form: aiohttp.FormData, name: str, item: Any) -> None:
    if item is None:
        return
    if isinstance(item, tuple):
        filename, content, content_type = cast("tuple[str, bytes, str]", item)
        large = len(content) > LARGE_BODY_BYTES
        form.add_field(
            name, io.BytesIO(content) if large else content, filename=filename, content_type=content_type
        )
    elif isinstance(item, (bytes, bytearray, memoryview)):
        raise TypeError(f"form field {name!r} is bare bytes: give (filename, bytes, content_type)")
    elif isinstance(item, (dict, list)):
        form.add_field(name, json.dumps(item), content_type="application/json")
    elif isinstance(item, bool):
        form.add_field(name, "true" if item else "false")
    else:
        form.add_field(name, str(item))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
