"""The memory of verified bodies: limited for all of them together (docs/protocol.md, "Bodies").

Owns how much a body counts, from its verification to the end of its request. Bodies of strangers, and small
ones, count elsewhere or not at all: a small body costs its request nothing here.
"""

from __future__ import annotations

from lib.access.envelope import PARSED_WHOLE_BYTES
from lib.access.scanner import MAX_VALUES
from lib.errors import NoMemory
from lib.http.shares import Shares
from lib.request.incoming import IncomingRequest, body_memory_of

# A body is held as text and, once parsed, as strings of about its size: of up to four times that, if they
# have characters beyond U+FFFF.
COPIES = 2
# What a JSON value takes at most besides its text: a million of them 200 MiB.
VALUE_BYTES = 200
# Of the memory that the worker may use, the part for bodies where no setting says it: 1 / DEFAULT_PART.
DEFAULT_PART = 4


class BodyMemory:
    """The memory for all verified bodies: `limit_bytes`, or what one JSON body of `max_bytes` needs, if more.

    `shares` has what is held of it.
    """

    def __init__(self, limit_bytes: int, max_bytes: int) -> None:
        most_values = min(max_bytes, MAX_VALUES)
        self.shares = Shares(max(limit_bytes, _needed_bytes(max_bytes, most_values)))

    def keep(self, request: IncomingRequest, size_bytes: int, values: int = 0) -> None:
        """Count a body of `size_bytes`, with so many JSON `values`, until `request` ends.

        A further call counts only what is more. Bodies that are parsed as they come, up to
        `PARSED_WHOLE_BYTES`, don't count. Raises `NoMemory` (503) if there is no room.
        """
        if size_bytes <= PARSED_WHOLE_BYTES:
            return
        reserved = body_memory_of(request, self.shares)
        if not reserved.take(max(0, _needed_bytes(size_bytes, values) - reserved.size_bytes)):
            raise NoMemory()


def _needed_bytes(size_bytes: int, values: int) -> int:
    return COPIES * size_bytes + VALUE_BYTES * values
