"""The files in JSON requests to OpenAI's routes: which of them are accepted.

Owns the limits of their sizes, and their names and types. They are read by lib/files.py, and decoded when the
request is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from lib.data_types import JsonDataException
from lib.files import BadFile, EncodedFile, read_encoded, safe_basename

MIB = 1024 * 1024
MAX_FILE_BYTES = 25 * MIB
MAX_REQUEST_BYTES = 64 * MIB
MAX_FILES = 16

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


def _read_file(value: Any, filename: Any, field: str, types: Types) -> EncodedFile:
    file = read_encoded(value)
    # An object's file has only its own name.
    own: Any = (file.filename or None) if isinstance(value, dict) else filename
    name, content_type = _name_and_type(own, file.content_type or None, field, types)
    file = replace(file, filename=name, content_type=content_type)
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
