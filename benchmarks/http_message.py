"""Finds the end of an HTTP/1.1 message, for the load generator and the model server of the benchmarks.

Owns no connection (http_client.py, fast_model.py). Messages have to come one after the other: bytes after
the end of a message are counted as part of it.
"""

from __future__ import annotations

# The beginning of a body, which is kept. What a request asks for is in it.
KEPT_BYTES = 4096
_HEAD_END = b"\r\n\r\n"
# The end of a chunked body. JSON and server-sent events contain no carriage return.
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class HttpMessage:
    """One request or answer, as its bytes arrive.

    A message without `Content-Length` and without a chunked body has no body (RFC 9112, section 6.3); an
    answer that ends with its connection isn't supported.
    """

    def __init__(self) -> None:
        self.head = b""
        self.body_start = b""
        self.body_bytes = 0
        self._has_head = False
        self._length: int | None = None
        self._tail = b""

    @property
    def status(self) -> int:
        """The status of an answer whose head is complete."""
        return int(self.head[9:12])

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        return b"\r\nconnection: close" in self.head

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; return whether the message is complete."""
        if not self._has_head:
            self.head += data
            end = self.head.find(_HEAD_END)
            if end < 0:
                return False
            data = self.head[end + len(_HEAD_END) :]
            self._read_head(end)
        self.body_bytes += len(data)
        if len(self.body_start) < KEPT_BYTES:
            self.body_start += data[: KEPT_BYTES - len(self.body_start)]
        if self._length is not None:
            return self.body_bytes >= self._length
        self._tail = (self._tail + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
        return self._tail == _LAST_CHUNK

    def _read_head(self, end: int) -> None:
        self.head = self.head[:end].lower()
        self._has_head = True
        if b"\r\ntransfer-encoding: chunked" in self.head:
            self._tail = b"\r\n"  # an empty chunked body has no line before its last chunk but the head's
            return
        at = self.head.find(b"\r\ncontent-length:")
        self._length = int(self.head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


def unchunked(data: bytes) -> bytes:
    """The body in `data`, a complete chunked body. Raises `ValueError` for anything else."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].split(b";", 1)[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
