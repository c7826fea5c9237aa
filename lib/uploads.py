"""Upload: a request's body other than JSON, on disk while the request is served.

Owns the payload class for such a body (docs/writing-a-worker.md, "Uploads, parameters in the URL, long
jobs"). Writing the body to disk is in lib/access/spool.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.fields.json_fields import JsonDataException
from lib.metrics import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Upload"]


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
        """Make the payload of `upload`. Raises `JsonDataException` (422). Runs on the event loop."""
        return cls(upload.path, upload.content_type, upload.size_bytes, upload.query)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        raise JsonDataException({"body": "must be sent as it is, with header authentication"})

    def generate_payload_upload(self) -> Upload | None:
        """The body for the model server, or None to send something else."""
        return self

    def count_workload(self) -> float:
        """The upload's workload; a subclass may derive one from `size_bytes`."""
        return DEFAULT_WORKLOAD
