"""Upload: a request's body other than JSON, on disk while the request is served; and the parts of a form.

Owns the payload class for such a body (docs/writing-a-worker.md, "Uploads, parameters in the URL, long
jobs"). Writing the body to disk is in lib/access/spool.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError
from multidict import MultiDict

from lib.fields.json_fields import JsonDataException, Parameters
from lib.metrics import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Form", "FormFile", "Upload", "read_form"]

# Parts of one form; more are refused.
MAX_PARTS = 1000

# The answer to JSON where only a file is accepted; to an empty body, that it is empty is said before.
TAKES_A_FILE = (
    "this route takes a file: send it as the body with its media type, or in a form (multipart/form-data), "
    "with auth_data in the header X-Vast-Auth"
)


@dataclass
class Upload:
    """An unchanged body: a form with files, an image, sound. It can be used as a payload class.

    `path` is a file that is deleted with the request; `content_type` is the client's header, with a form's
    boundary; `size_bytes` is the size after decompression; `query` has the values of each name in the URL's
    query.

    Another payload class accepts such bodies if it has a `from_upload`, and sends one on unchanged if its
    `generate_payload_upload` returns it.
    """

    path: Path
    content_type: str
    size_bytes: int
    query: dict[str, list[str]]

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        """Make the payload of `upload`, on the event loop. `JsonDataException` and `ValueError` mean 422."""
        return cls(upload.path, upload.content_type, upload.size_bytes, upload.query)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        is_without_body = isinstance(json_msg, Parameters)
        raise JsonDataException({"body": f"is empty: {TAKES_A_FILE}" if is_without_body else TAKES_A_FILE})

    def generate_payload_upload(self) -> Upload | None:
        """The body for the model server, or None to send something else."""
        return self

    def count_workload(self) -> float:
        """The upload's workload; a subclass may derive one from `size_bytes`."""
        return DEFAULT_WORKLOAD


@dataclass(frozen=True)
class FormFile:
    """A file of a form. `filename` and `content_type` are the client's; "" without one."""

    filename: str
    content_type: str
    content: bytes


@dataclass(frozen=True)
class Form:
    """The parts of a form by name: `fields` are text, `files` have a file name.

    `get` of each gives the first part of a name, `getall` all of them.
    """

    fields: MultiDict[str] = field(default_factory=MultiDict[str])
    files: MultiDict[FormFile] = field(default_factory=MultiDict[FormFile])


def read_form(upload: Upload, max_bytes: int = 64 * 1024 * 1024) -> Form:
    """Read a form (multipart/form-data) into memory, of which it takes twice its size.

    It blocks: an async function calls it in a thread. Raises `JsonDataException` (422) for a body that is no
    form, for one of more than `max_bytes`, and for more than 1,000 parts.
    """
    if upload.content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise _bad_form("must be a form (multipart/form-data)")
    if upload.size_bytes > max_bytes:
        raise _bad_form(f"must have at most {max_bytes} bytes")
    return asyncio.run(_form_in(upload))


async def _form_in(upload: Upload) -> Form:
    try:
        return await _read_parts(upload)
    # What aiohttp raises for what is no form.
    except (ValueError, LookupError, AssertionError, RuntimeError, HttpProcessingError) as e:
        raise _bad_form("is not a valid form") from e


async def _read_parts(upload: Upload) -> Form:
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    content.feed_data(upload.path.read_bytes())
    content.feed_eof()
    form, number = Form(), 0
    reader = MultipartReader({"Content-Type": upload.content_type}, content)
    while (part := await reader.next()) is not None:
        number += 1
        if number > MAX_PARTS:
            raise _bad_form(f"must have at most {MAX_PARTS} parts")
        if not isinstance(part, BodyPartReader) or part.name is None:
            raise ValueError("a part is no field")
        data = bytes(await part.read())
        if part.filename is None:
            form.fields.add(part.name, data.decode())
        else:
            form.files.add(part.name, FormFile(part.filename, part.headers.get("Content-Type", ""), data))
    return form


def _bad_form(problem: str) -> JsonDataException:
    return JsonDataException({"body": problem})
