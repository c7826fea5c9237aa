"""The chunked transfer coding (RFC 9112, section 7.1): where a body ends, and what is in it.

Owns finding the end of a chunked body in bytes that arrive in parts of any size, so that they can be passed
on as they came. It is strict: what one reader may take for the end of a message, and another may not, is an
error.
"""

from __future__ import annotations

import re

# Longest line with a chunk's size and its extensions, which nobody uses.
MAX_LINE_BYTES = 256
# Most bytes of trailer fields after the last chunk.
MAX_TRAILER_BYTES = 8 * 1024
# 15 digits: a size that fits into 64 bits, as it must in other readers of the same bytes.
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?\r\n")
_TRAILER_LINE = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*)?\r\n")
# What such lines may begin with: nobody waits for the rest of a line that is wrong.
_SIZE_BEGIN = re.compile(rb"[0-9a-fA-F]{1,15}(?:\r|[ \t]*(?:;[\t -~\x80-\xff]*\r?)?)")
_TRAILER_BEGIN = re.compile(rb"\r|[!#$%&'*+.^_`|~0-9A-Za-z-]+(?::[\t -~\x80-\xff]*\r?)?")


class BadChunk(ValueError):
    """The body is not in the chunked coding. The message names the part that is wrong, and no bytes of it."""


class ChunkScanner:
    """Follows one chunked body. `is_done` is true once its end was seen."""

    __slots__ = ("_left", "_line", "_trailer_bytes", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        # Bytes of the current chunk that are to come, with the line end behind its data; 0 before a line.
        self._left = 0
        self._line = b""
        self._trailer_bytes = -1  # before the last chunk

    def scan(self, data: bytes, pieces: list[bytes]) -> int:
        """Follow the next part of the body; append the data in it to `pieces`.

        Returns how many bytes of `data` belong to the body: fewer than all only if `is_done`. Raises
        `BadChunk`.
        """
        if self.is_done:
            return 0
        position, size = 0, len(data)
        while position < size:
            left = self._left
            if left:
                end = position + left
                if end <= size:
                    self._left = 0
                    if left > 2:
                        pieces.append(data[position : end - 2])
                        is_ended = data[end - 2] == 13 and data[end - 1] == 10
                    else:
                        is_ended = data[position:end] == b"\r\n"[2 - left :]
                    if not is_ended:
                        raise BadChunk("a chunk is longer than its size")
                    position = end
                    continue
                return self._scan_part(data, position, pieces)
            position = self._scan_line(data, position)
            if self.is_done:
                return position
        return size

    def _scan_part(self, data: bytes, position: int, pieces: list[bytes]) -> int:
        """Take the rest of `data`, in which the current chunk doesn't end."""
        size = len(data)
        self._left -= size - position
        if self._left == 1 and data[-1] != 13:
            raise BadChunk("a chunk is longer than its size")
        end = size - 1 if self._left == 1 else size
        if end > position:
            pieces.append(data[position:end])
        return size

    def _scan_line(self, data: bytes, position: int) -> int:
        """Read the line at `position`, of which a beginning may be kept; return the position behind it."""
        is_trailer = self._trailer_bytes >= 0
        if self._line:
            end = data.find(b"\n", position) + 1
            line = self._line + (data[position:end] if end else data[position:])
            found = (_TRAILER_LINE if is_trailer else _SIZE_LINE).fullmatch(line) if end else None
        else:
            line = b""
            found = (_TRAILER_LINE if is_trailer else _SIZE_LINE).match(data, position)
            end = found.end() if found else data.find(b"\n", position) + 1
        if found is None:
            self._line = line = line or data[position:]
            if end or not (_TRAILER_BEGIN if is_trailer else _SIZE_BEGIN).fullmatch(line):
                raise BadChunk(
                    "a trailer field is malformed" if is_trailer else "a chunk's size is malformed"
                )
            if len(self._line) > (MAX_TRAILER_BYTES if is_trailer else MAX_LINE_BYTES):
                raise BadChunk("a line between chunks is too long")
            return len(data)
        length = len(line) or end - position
        self._line = b""
        if is_trailer:
            self._end_trailer_line(length)
        elif length > MAX_LINE_BYTES:
            raise BadChunk("a line between chunks is too long")
        elif data_bytes := int(found[1], 16):
            self._left = data_bytes + 2
        else:
            self._trailer_bytes = 0
        return end

    def _end_trailer_line(self, length: int) -> None:
        self._trailer_bytes += length
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise BadChunk("the trailer fields are too long")
        self.is_done = length == 2
