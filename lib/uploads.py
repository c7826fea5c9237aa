"""Upload: a request's body that is not JSON, on disk while the request is served (protocol.md §2, Bodies).

Owns what an author sees of such a body. How it gets there is lib/access/spool.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.fields.json_fields import JsonDataException

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Upload"]


@dataclass
class Upload:
    """A body as it came: a form with files, an image, sound. It serves as a payload class as it is.

    `path` is a file that goes with the request; `content_type` is the client's header, with a form's
    boundary; `size_bytes` is without any compression; `query` is the URL's, each name with its values.

    A payload class of one's own takes such bodies by a `from_upload` of its own, and sends one on unchanged
    by giving it from `generate_payload_upload`.
    """

    path: Path
    content_type: str
    size_bytes: int
    query: dict[str, list[str]]

    @classmethod
    def from_upload(cls, upload: Upload) -> Self:
        """The payload made of `upload`; raises `JsonDataException` (422). Runs on the event loop."""
        return cls(upload.path, upload.content_type, upload.size_bytes, upload.query)

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        raise JsonDataException({"body": "must be sent as it is, with header authentication"})

    def generate_payload_upload(self) -> Upload | None:
        """The body that the model server is sent, or None where it is sent something else."""
        return self

    def count_workload(self) -> float:
        """How much work this is, in the author's own unit; a subclass may go by `size_bytes`."""
        return 100.0
