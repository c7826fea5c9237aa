"""Where an HTTP message ends, wherever it is cut."""

from __future__ import annotations

import pytest

from benchmarks.http_message import HttpMessage, unchunked

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n"
SIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 11\r\nConnection: close\r\n\r\nhello world"
EMPTY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"


@pytest.mark.parametrize("message", [CHUNKED, SIZED, EMPTY])
def test_a_message_ends_with_its_last_byte(message: bytes) -> None:
    for cut in range(1, len(message)):
        reader = HttpMessage()
        assert not reader.feed(message[:cut])
        assert reader.feed(message[cut:])


def test_a_message_byte_by_byte() -> None:
    reader = HttpMessage()
    assert [reader.feed(SIZED[i : i + 1]) for i in range(len(SIZED))] == [False] * (len(SIZED) - 1) + [True]
    assert (reader.status, reader.body_bytes, reader.body_start) == (401, 11, b"hello world")
    assert reader.closes


def test_a_request_without_a_body() -> None:
    assert HttpMessage().feed(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")


def test_the_body_of_chunks() -> None:
    assert unchunked(CHUNKED.split(b"\r\n\r\n", 1)[1]) == b"hello world"
    with pytest.raises(ValueError, match="subsection not found"):
        unchunked(b"5\r\nhello\r\n")
