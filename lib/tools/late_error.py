"""The error in the body of an answer that a heartbeat has begun (docs/protocol.md, "Heartbeat").

Owns the rule by which such an answer, whose status is 200, counts as failed. `pyworker request` and
`pyworker load-test` both go by it.
"""

from __future__ import annotations

import json
from typing import Any, cast

# Bytes of a body that are kept. A worker passes 64 KiB of a model server's error on, as JSON at most six
# times as long.
MAX_ERROR_BYTES = 512 * 1024


class LateErrorWatch:
    """Looks for the error in a body that arrives in chunks: newlines, then one JSON object with `error`."""

    def __init__(self) -> None:
        self._begins_with_newline: bool | None = None
        self._kept = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next chunk of the body."""
        if self._begins_with_newline is None and chunk:
            self._begins_with_newline = chunk.startswith(b"\n")
        if self._begins_with_newline and len(self._kept) <= MAX_ERROR_BYTES:
            self._kept += chunk if self._kept else chunk.lstrip(b"\n")

    def error(self) -> Any:
        """The value of `error` once the whole body has been added; None for a body that is no error."""
        if not self._kept.startswith(b"{") or len(self._kept) > MAX_ERROR_BYTES:
            return None
        try:
            content: Any = json.loads(self._kept)
        except (ValueError, RecursionError):
            return None
        return cast("dict[str, Any]", content).get("error")
