"""Upload: a request's body other than JSON, on disk while the request is served.

Owns the payload class for such a body (docs/writing-a-worker.md, "Uploads, parameters in the URL, long
jobs"). Writing the body to disk is in lib/access/spool.py, reading a form in lib/forms.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.fields.json_fields import JsonDataException, Parameters
from lib.metrics import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Upload"]

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
