"""The results of functions as the bodies of answers (docs/writing-a-worker.md, "Results").

Owns what is sent for each kind of result: bytes, images and files as they are, and JSON for all else. Pillow
is never imported. Running a function is in functions.py, and the JSON of objects in
lib/fields/json_values.py.
"""

from __future__ import annotations

import io
import mimetypes
import os
import sys
import typing
from collections import abc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
from anyio.to_thread import run_sync as in_thread

from lib.fields.annotations import union_members
from lib.fields.json_values import RAW_BYTES, to_json

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
# Bytes of a file that are read at once.
FILE_CHUNK_BYTES = 256 * 1024
# Pillow's modes that its PNG writer takes.
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
# The annotations of generators, whose first argument is the type of the items.
_ITEMS = (abc.Iterator, abc.Iterable, abc.Generator, abc.AsyncIterator, abc.AsyncIterable, abc.AsyncGenerator)


class Body(NamedTuple):
    """A whole body and its media type."""

    content_type: str
    content: bytes


class FileBody:
    """An open file as a body of `size_bytes`, whatever is written to it meanwhile."""

    def __init__(self, content_type: str, size_bytes: int, file: anyio.AsyncFile[bytes]) -> None:
        self.content_type = content_type
        self.size_bytes = size_bytes
        self._file = file
        self._left = size_bytes

    async def next_chunk(self) -> bytes:
        """The next part; b"" at the end. Raises `ValueError` if the file has become shorter."""
        if not self._left:
            return b""
        chunk = await self._file.read(min(self._left, FILE_CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"the file lacks the last {self._left} of {self.size_bytes} bytes")
        self._left -= len(chunk)
        return chunk


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[FileBody, None]:
    """Open the file at `path` inside the block. Raises `OSError` if it can't be read."""
    kind = await in_thread(_type_of_file, path.name)
    async with await anyio.open_file(path, "rb") as file:
        yield FileBody(kind, os.fstat(file.wrapped.fileno()).st_size, file)


def is_quick(result: Any) -> bool:
    """Whether `body_of` needs no thread of its own for `result`."""
    return result is None or isinstance(result, (str, int, float, dict, list, tuple, bytes))


def is_binary(returned: Any) -> bool:
    """Whether the annotation of a function's result is, or has as a member or an item, a file or bytes.

    Such an answer can't follow the newlines of a heartbeat, which have begun JSON.
    """
    if typing.get_origin(returned) in _ITEMS:
        return is_binary(typing.get_args(returned)[0])
    images: Any = sys.modules.get("PIL.Image")
    kinds = (*RAW_BYTES, io.BytesIO, Path, *(() if images is None else (images.Image,)))
    members = union_members(returned)
    if len(members) > 1:
        return any(map(is_binary, members))
    return isinstance(returned, type) and issubclass(returned, kinds)


def body_of(result: Any) -> Body:
    """The body for a function's result: bytes and images as they are, anything else as `{"result": …}`.

    Raises `TypeError` or `ValueError` for what has no form in JSON.
    """
    if isinstance(result, RAW_BYTES):
        return Body(BYTES_TYPE, bytes(cast(bytes, result)))
    if isinstance(result, io.BytesIO):
        return Body(BYTES_TYPE, result.getvalue())
    images: Any = sys.modules.get("PIL.Image")
    if images is not None and isinstance(result, images.Image):
        return _image(result)
    return Body(JSON_TYPE, to_json({"result": result}))


def _image(image: Any) -> Body:
    """An image in the format of the file that it was opened from, or as PNG."""
    kind = image.format if image.format in ("PNG", "JPEG", "WEBP", "GIF") else "PNG"
    if kind == "PNG" and image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    written = io.BytesIO()
    image.save(written, kind)
    return Body(f"image/{kind.lower()}", written.getvalue())


def _type_of_file(name: str) -> str:
    kind, encoding = mimetypes.guess_type(name)
    return BYTES_TYPE if kind is None or encoding is not None else kind
