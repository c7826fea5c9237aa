"""Paths, queries and forms of requests to the model server.

Owns how a handler's message becomes a URL or a form. caller.py makes JSON bodies, and sends requests.
"""

from __future__ import annotations

import enum
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

import aiohttp

from lib.errors import Invalid
from lib.fields.json_values import json_text, simplified
from lib.request.wildcard import REST, is_rest, is_wildcard

# aiohttp warns about larger bodies that are given as bytes, and streams them if they are given as a file.
LARGE_BODY_BYTES = 1024 * 1024
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def placeholders(endpoint: str) -> list[str]:
    """The names in braces in `endpoint`, in the order in which they occur."""
    return _PLACEHOLDER.findall(endpoint)


def fill_path(endpoint: str, values: Mapping[str, Any], *, has_rest: bool = False) -> str:
    """Return `endpoint` with each `{name}` replaced by the percent-encoded value of that name in `values`.

    With `has_rest`, a `/{path}` at the end of `endpoint` takes a path with slashes, as in a wildcard. Raises
    `Invalid` (422) for a value that is missing, None or empty, and for one with a path segment "." or "..",
    which would lead to another endpoint, or that is in no wildcard.
    """
    rest = REST if has_rest and is_wildcard(endpoint) else None
    texts = {name: "" if values.get(name) is None else _text(values[name]) for name in placeholders(endpoint)}
    problems = {name: "missing parameter" for name, text in texts.items() if not text}
    for name, text in texts.items():
        if {".", ".."} & set(text.split("/")):
            problems[name] = "can't be part of a path"
    if rest is not None and rest not in problems and not is_rest(texts[rest]):
        problems[rest] = "can't be the rest of a path"
    if problems:
        raise Invalid({"payload": problems})
    return _PLACEHOLDER.sub(
        lambda found: quote(texts[found[1]], safe="/" if found[1] == rest else ""), endpoint
    )


def filled_endpoint(endpoint: str, message: Any) -> tuple[str, Any]:
    """Return `endpoint` with its placeholders filled in from `message`, and the message without them.

    Raises `Invalid` (422), as `fill_path` does.
    """
    names = placeholders(endpoint)
    fields = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
    filled = fill_path(endpoint, fields)
    rest = {name: value for name, value in fields.items() if name not in names}
    return filled, rest if isinstance(message, dict) else message


def with_query(target: str | None, fields: Mapping[str, Any]) -> str | None:
    """Add the `text_fields` of `fields` to the query of `target`."""
    pairs = text_fields(fields)
    return with_raw_query(target, urlencode(pairs)) if pairs else target


def text_fields(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fields as texts, as for a query: lists as repeated fields, objects as JSON, None left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in fields.items():
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        pairs += [(name, _text(item)) for item in items if item is not None]
    return pairs


def text_form(fields: Mapping[str, Any]) -> aiohttp.FormData:
    """Return the `text_fields` of `fields` as multipart/form-data, to which files can be added."""
    form = aiohttp.FormData(default_to_multipart=True)
    for name, text in text_fields(fields):
        form.add_field(name, text)
    return form


def with_raw_query(target: str | None, query: str) -> str | None:
    """Add `query`, one or more parameters in the form of a URL, to the query of `target`."""
    if target is None:
        return None
    return f"{target}{'&' if '?' in target else '?'}{query}"


def make_form(fields: Mapping[str, Any]) -> aiohttp.FormData:
    """Return `fields` as multipart/form-data, by the rules of `ApiPayload.generate_payload_multipart`.

    Its files on disk are opened, and closed when the form has been sent. Raises `TypeError` for bare bytes.
    """
    check_form(fields)
    form = aiohttp.FormData(default_to_multipart=True)
    for name, item in _items(fields):
        _add_field(form, name, item)
    return form


def check_form(fields: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a field that is bare bytes."""
    for name, item in _items(fields):
        if isinstance(item, (bytes, bytearray, memoryview)):
            raise TypeError(f"form field {name!r} is bare bytes: give (filename, bytes, content_type)")


def _items(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields, with those of a list repeated."""
    for name, value in fields.items():
        for item in cast("list[Any]", value) if isinstance(value, list) else [value]:
            yield name, item


def _add_field(form: aiohttp.FormData, name: str, item: Any) -> None:
    if item is None:
        return
    if isinstance(item, tuple):
        filename, content, content_type = cast("tuple[str, bytes | Path, str]", item)
        if isinstance(content, Path):
            body: Any = content.open("rb")  # aiohttp reads it in a thread, and closes it
        else:
            body = io.BytesIO(content) if len(content) > LARGE_BODY_BYTES else content
        form.add_field(name, body, filename=filename, content_type=content_type)
    elif isinstance(item, (dict, list)):
        form.add_field(name, json_text(item), content_type="application/json")
    elif isinstance(item, bool):
        form.add_field(name, "true" if item else "false")
    else:
        form.add_field(name, str(item.value if isinstance(item, enum.Enum) else item))


def _text(value: Any) -> str:
    value = simplified(value)
    return value if isinstance(value, str) else json_text(value)
