"""The fields of an uploaded form (multipart/form-data, RFC 7578), read from the disk.

Owns the parsing of a form. `form_parts` leaves the contents on the disk until they are read or copied, so
that a form of a gigabyte takes little memory; `read_form` reads them all. All calls read files: for a large
form they belong in a thread.
"""

from __future__ import annotations

import email.policy
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage, Message
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import IO

from multidict import MultiDict

from lib.fields.json_fields import JsonDataException
from lib.files import BadFile
from lib.uploads import Upload

__all__ = ["FORM", "Form", "FormFile", "FormPart", "form_parts", "leading_fields", "read_form"]

FORM = "multipart/form-data"
CHUNK_BYTES = 1024 * 1024
MAX_PARTS = 100
MAX_HEAD_BYTES = 16 * 1024
MAX_BOUNDARY_BYTES = 70  # RFC 2046, section 5.1.1


@dataclass(frozen=True)
class FormPart:
    """A field of a form. Its content are the `size_bytes` bytes from `start` in the file at `path`.

    `filename` and `content_type` are as the client wrote them, "" where they are missing.
    """

    name: str
    filename: str
    content_type: str
    path: Path
    start: int
    size_bytes: int

    def read(self) -> bytes:
        """The content."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size_bytes)

    def copy_to(self, target: IO[bytes]) -> None:
        """Append the content to `target`, in chunks."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            rest = self.size_bytes
            while rest and (chunk := file.read(min(rest, CHUNK_BYTES))):
                target.write(chunk)
                rest -= len(chunk)


@dataclass(frozen=True)
class FormFile:
    """A file of a form. `filename` and `content_type` are the client's; the type is "" without one."""

    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True)
class Form:
    """The contents of a form by name: `fields` are text, `files` have a file name.

    `get` of each gives the first of a name, `getall` all of them.
    """

    fields: MultiDict[str] = field(default_factory=MultiDict[str])
    files: MultiDict[FormFile] = field(default_factory=MultiDict[FormFile])


def read_form(upload: Upload, max_bytes: int = 64 * 1024 * 1024) -> Form:
    """Read a form of at most `max_bytes` into memory.

    Raises `JsonDataException` (422) for a larger one, for what `form_parts` refuses, and for a field that is
    not UTF-8.
    """
    if upload.size_bytes > max_bytes:
        raise JsonDataException({"body": f"must have at most {max_bytes} bytes"})
    form = Form()
    try:
        for part in form_parts(upload):
            content = part.read()
            if part.filename:
                form.files.add(part.name, FormFile(part.filename, part.content_type, content))
            else:
                form.fields.add(part.name, content.decode())
    except UnicodeDecodeError as e:
        raise JsonDataException({"body": "has a field that is not UTF-8"}) from e
    except BadFile as e:
        raise JsonDataException({"body": str(e)}) from e
    return form


def form_parts(upload: Upload) -> list[FormPart]:
    """The fields of the form `upload`, in its order.

    Raises `BadFile` if it is not a well-formed form, or if it has more than 100 fields.
    """
    with upload.path.open("rb") as file:
        return list(_parts(upload, file))


def leading_fields(upload: Upload, max_bytes: int) -> dict[str, bytes]:
    """The contents of the fields before the first file in the form `upload`, by their names.

    It reads at most `max_bytes` of the form, and may be called on the event loop if these are few. Raises
    `BadFile`, also if no field ends within `max_bytes`.
    """
    with upload.path.open("rb") as file:
        beginning = file.read(max_bytes)
    fields: dict[str, bytes] = {}
    try:
        for part in _parts(upload, io.BytesIO(beginning)):
            if part.filename:
                break
            fields[part.name] = beginning[part.start : part.start + part.size_bytes]
    except BadFile as e:
        if len(beginning) < max_bytes:
            raise
        if not fields:
            raise BadFile(f"must begin with a field that has less than {max_bytes} bytes") from e
    return fields


def _parts(upload: Upload, file: IO[bytes]) -> Iterator[FormPart]:
    head = Message()
    head["Content-Type"] = upload.content_type
    boundary = head.get_boundary("")
    if head.get_content_type() != FORM or not 0 < len(boundary) <= MAX_BOUNDARY_BYTES:
        raise BadFile(f"must be {FORM} with a boundary")
    scanner = _Scanner(file, b"\r\n--" + boundary.encode("latin-1", "replace"))
    scanner.skip_to_first()
    for _ in range(MAX_PARTS):
        if not scanner.begins_part():
            return
        head_bytes = scanner.head()
        start = scanner.position
        name, filename, content_type = _fields_of(head_bytes)
        yield FormPart(name, filename, content_type, upload.path, start, scanner.skip_content() - start)
    raise BadFile(f"has more than {MAX_PARTS} fields")


def _fields_of(head: bytes) -> tuple[str, str, str]:
    parsed = BytesHeaderParser(_class=EmailMessage, policy=email.policy.HTTP).parsebytes(head)
    name = parsed.get_param("name", header="Content-Disposition")
    if not name:
        raise BadFile("has a field without a name")
    kind = parsed.get_content_type() if parsed["Content-Type"] is not None else ""
    return str(name), str(parsed.get_filename("")), kind


class _Scanner:
    """Finds delimiters in a file. `position` is that of the next byte to read."""

    def __init__(self, file: IO[bytes], delimiter: bytes) -> None:
        self._file = file
        self._delimiter = delimiter
        self.position = 0

    def skip_to_first(self) -> None:
        """Skip the preamble and the first delimiter, which may be at the very beginning."""
        first = self._delimiter[2:]
        if self._file.read(len(first)) == first:
            self.position = len(first)
            return
        self.skip_content()

    def begins_part(self) -> bool:
        """Skip the rest of a delimiter's line. False if it was the last delimiter."""
        line = self._line()
        if line.startswith(b"--"):
            return False
        if line.strip(b" \t\r\n"):
            raise BadFile("has a malformed boundary")
        return True

    def head(self) -> bytes:
        """The lines up to the empty one."""
        lines: list[bytes] = []
        while (line := self._line()) not in (b"\r\n", b"\n"):
            lines.append(line)
            if sum(map(len, lines)) > MAX_HEAD_BYTES:
                raise BadFile("has a field whose head is too long")
        return b"".join(lines)

    def skip_content(self) -> int:
        """Skip everything up to the end of the next delimiter; return the delimiter's position."""
        self._file.seek(self.position)
        kept, kept_at = b"", self.position
        while chunk := self._file.read(CHUNK_BYTES):
            kept += chunk
            found = kept.find(self._delimiter)
            if found >= 0:
                self.position = kept_at + found + len(self._delimiter)
                return kept_at + found
            rest = kept[-(len(self._delimiter) - 1) :]
            kept_at += len(kept) - len(rest)
            kept = rest
        raise BadFile("ends before its last boundary")

    def _line(self) -> bytes:
        self._file.seek(self.position)
        line = self._file.readline(MAX_HEAD_BYTES)
        if not line.endswith(b"\n") and not line.startswith(b"--"):
            raise BadFile("ends before its last boundary")
        self.position += len(line)
        return line
