"""Files in JSON requests, as base64 or `data:` URIs.

Owns the limits of their sizes, and their names and types. A file is read in two steps: `read_files` checks
sizes, names and types without decoding, `EncodedFile.decoded` decodes, which takes time and belongs in a
thread.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lib.data_types import JsonDataException

MIB = 1024 * 1024
MAX_FILE_BYTES = 25 * MIB
MAX_REQUEST_BYTES = 64 * MIB
MAX_FILES = 16
MAX_NAME_CHARACTERS = 100
# Maximum number of characters before the data in a data: URI.
MAX_URI_HEAD = 256

# The accepted file name extensions and their media types. The first type is sent if the client names none.
Types = Mapping[str, tuple[str, ...]]
AUDIO: Types = {
    "flac": ("audio/flac", "audio/x-flac"),
    "m4a": ("audio/mp4", "audio/m4a", "audio/x-m4a"),
    "mp3": ("audio/mpeg", "audio/mp3"),
    "mp4": ("video/mp4", "audio/mp4"),
    "mpeg": ("audio/mpeg", "video/mpeg"),
    "mpga": ("audio/mpeg",),
    "oga": ("audio/ogg",),
    "ogg": ("audio/ogg", "application/ogg"),
    "wav": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "webm": ("audio/webm", "video/webm"),
}
IMAGES: Types = {
    "jpeg": ("image/jpeg", "image/jpg"),
    "jpg": ("image/jpeg", "image/jpg"),
    "png": ("image/png",),
    "webp": ("image/webp",),
}

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w-]+=[^;,]*)*;base64,", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.\- ]")
_DIRECTORY = re.compile(r".*[/\\]", re.DOTALL)


class BadFile(ValueError):
    """A file is wrong. The message is for the client."""


@dataclass(frozen=True)
class EncodedFile:
    """A file of a request, still in base64 from `start` in `text`. Its name, type and size are checked."""

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


def read_files(request: Mapping[str, Any], fields: Mapping[str, Types]) -> dict[str, list[EncodedFile]]:
    """The files in each of `fields` that `request` has. A field holds one file or a list of files.

    A file is base64, a `data:` URI, or an object with one of these as `data` and a `filename`. A file without
    a name of its own has the request's `filename`. A `data:` URI needs no name. Raises `JsonDataException`,
    which names every wrong field.
    """
    problems: dict[str, Any] = {}
    files: dict[str, list[EncodedFile]] = {}
    for field, types in fields.items():
        value = request.get(field)
        if value is None:
            continue
        try:
            files[field] = [
                _read_file(item, request.get("filename"), field, types)
                for item in (
                    cast("list[Any]", value)[: MAX_FILES + 1] if isinstance(value, list) else [value]
                )
            ]
        except BadFile as e:
            problems[field] = str(e)
    together = [file for several in files.values() for file in several]
    if len(together) > MAX_FILES:
        problems |= dict.fromkeys(files, f"a request has at most {MAX_FILES} files")
    elif sum(file.size_bytes for file in together) > MAX_REQUEST_BYTES:
        problems |= dict.fromkeys(files, f"a request's files have at most {MAX_REQUEST_BYTES} bytes together")
    if problems:
        raise JsonDataException(problems)
    return files


def safe_basename(name: str) -> str:
    """`name` without directories, control characters, quotes and leading dots; may be ""."""
    base = _UNSAFE.sub("_", _DIRECTORY.sub("", name))
    return base[-MAX_NAME_CHARACTERS:].strip(" ").lstrip(". ")


def _read_file(value: Any, filename: Any, field: str, types: Types) -> EncodedFile:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        value, filename = members.get("data"), members.get("filename")
    if not isinstance(value, str):
        raise BadFile('must be base64, a data: URI, or {"data": one of these, "filename": a string}')
    uri = _DATA_URI.match(value, 0, MAX_URI_HEAD)
    if uri is None and value.startswith("data:"):
        raise BadFile("must be a data: URI in base64: data:TYPE;base64,...")
    media_type = uri[1].lower() if uri else None
    name, content_type = _name_and_type(filename, media_type, field, types)
    file = EncodedFile(name, content_type, value, uri.end() if uri else 0)
    if file.size_bytes > MAX_FILE_BYTES:
        raise BadFile(f"has more than {MAX_FILE_BYTES} bytes")
    return file


def _name_and_type(filename: Any, media_type: str | None, field: str, types: Types) -> tuple[str, str]:
    """The name and media type for the model server. A data: URI without a name gets one from its type."""
    allowed = f"must be one of {', '.join(sorted(types))}"
    if filename is None and media_type is not None:
        ending = next((e for e, kinds in types.items() if media_type in kinds), None)
        if ending is None:
            raise BadFile(f"is {media_type}, but {allowed}")
        return f"{field}.{ending}", media_type
    if not isinstance(filename, str):
        raise BadFile("needs a filename, a string" if filename is None else "its filename must be a string")
    name = safe_basename(filename)
    stem, _, ending = name.rpartition(".")
    kinds = types.get(ending.lower())
    if kinds is None or not stem:
        raise BadFile(f"the extension of its filename {allowed}")
    if media_type is not None and not any(media_type in known for known in types.values()):
        raise BadFile(f"is {media_type}, but {allowed}")
    return name, media_type or kinds[0]
