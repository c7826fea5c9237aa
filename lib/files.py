"""Files in JSON requests: base64 or `data:` URIs, and their names.

Owns how such a file is written in a request. A file is read in two steps: `read_encoded` finds its name, type
and size without decoding; `EncodedFile.decoded` decodes, which takes time and belongs in a thread. Which
names, types and sizes are accepted is for the worker to say. Files by URL are in lib/fetch.py.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["BadFile", "EncodedFile", "read_encoded", "safe_basename"]

MAX_NAME_CHARACTERS = 100
# Maximum number of characters before the data in a data: URI.
MAX_URI_HEAD = 256

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.\- ]")
_DIRECTORY = re.compile(r".*[/\\]", re.DOTALL)


class BadFile(ValueError):
    """A file of a request is wrong. The message is for the client."""


@dataclass(frozen=True)
class EncodedFile:
    """A file of a request, still in base64 from `start` in `text`. An unknown name or type is ""."""

    filename: str
    content_type: str
    text: str
    start: int = 0

    @property
    def size_bytes(self) -> int:
        """The file's size, computed from its base64. White space in the base64 makes it larger."""
        padding = len(self.text) - len(self.text.rstrip("="))
        return max(0, (len(self.text) - self.start) * 3 // 4 - padding)

    def decoded(self) -> tuple[str, bytes, str]:
        """Name, content and type, as a form field. Raises `BadFile` for invalid base64."""
        try:
            content = base64.b64decode("".join(self.text[self.start :].split()), validate=True)
        except ValueError as e:  # binascii.Error, or a character that is not ASCII
            raise BadFile(f"is not base64: {e}") from e
        return self.filename, content, self.content_type


def read_encoded(value: Any) -> EncodedFile:
    """The file in `value`: base64, a `data:` URI, or an object with one of these as `data` and a `filename`.

    The name is as the client wrote it (`safe_basename`); the type is that of the URI, in lower case. Raises
    `BadFile`.
    """
    filename: Any = None
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        value, filename = members.get("data"), members.get("filename")
    if not isinstance(value, str):
        raise BadFile('must be base64, a data: URI, or {"data": one of these, "filename": a string}')
    uri = _DATA_URI.match(value, 0, MAX_URI_HEAD)
    if uri is None and value.startswith("data:"):
        raise BadFile("must be a data: URI in base64: data:TYPE;base64,...")
    if filename is not None and not isinstance(filename, str):
        raise BadFile("its filename must be a string")
    return EncodedFile(filename or "", uri[1].lower() if uri else "", value, uri.end() if uri else 0)


def safe_basename(name: str) -> str:
    """`name` without directories, control characters, quotes and leading dots; may be ""."""
    base = _UNSAFE.sub("_", _DIRECTORY.sub("", name))
    return base[-MAX_NAME_CHARACTERS:].strip(" ").lstrip(". ")
