"""A model server that uses very little CPU time, so that benchmarks measure the subject in front of it.

usage: python -m benchmarks.fast_model LOG

A request's `model` names the answer: `plain`, 1 KiB of JSON; `stream/EVENTS/GAP_MS`, server-sent events, one
every GAP_MS milliseconds; `held`, a stream whose first event is its last until the client closes;
`large/BYTES`, JSON with one string of that size. It writes its ready line to LOG, listens on a free port, and
prints the port.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import cast

from benchmarks.http_message import HttpMessage
from benchmarks.processes import run_fast

READY_LINE = "model is ready"
_MODEL = re.compile(rb'"model": ?"([a-z]+)(?:/(\d+))?(?:/(\d+))?"')
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices": [{"index": 0, "text": " token", "finish_reason": null}]}\n\n'
_LAST_EVENT = b"data: [DONE]\n\n"
_END = b"0\r\n\r\n"
# Connections that wait to be accepted. The system may allow fewer.
_BACKLOG = 4096


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(event), event)


_CHUNK = _chunk(_EVENT)


_BLOCK = b"x" * (1024 * 1024)


@lru_cache
def _json(text_bytes: int) -> Sequence[bytes]:
    """A whole answer in parts, whose JSON has one string of `text_bytes` bytes.

    A large one is the same block many times, so that it takes no time to make.
    """
    start, end = b'{"text": "', b'"}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    head %= len(start) + text_bytes + len(end)
    blocks, rest = divmod(text_bytes, len(_BLOCK))
    if not blocks:
        return [head + start + _BLOCK[:rest] + end]
    return [head + start, *[_BLOCK] * blocks, _BLOCK[:rest] + end]


class PacedStream:
    """A stream of `events` events and a last one, `gap_s` seconds apart.

    Each is timed from the start of the stream, so that delays don't add up.
    """

    def __init__(self, transport: asyncio.WriteTransport, events: int, gap_s: float) -> None:
        self._transport = transport
        self._events = events
        self._gap_s = gap_s
        self._sent = 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        transport.write(_STREAM_HEAD)
        self._send()

    def pause(self) -> None:
        """Send nothing until `resume`: the client reads too slowly."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if self._timer is None:
            self._send()

    def stop(self) -> None:
        """Send nothing more."""
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()

    def _send(self) -> None:
        self._timer = None
        if self._paused or self._sent > self._events:
            return
        if self._sent == self._events:
            self._sent += 1
            self._transport.write(_chunk(_LAST_EVENT) + _END)
            return
        self._transport.write(_CHUNK)
        self._sent += 1
        self._timer = self._loop.call_at(self._began_s + self._sent * self._gap_s, self._send)


class FastModel(asyncio.Protocol):
    """One connection, with one request after the other."""

    def __init__(self) -> None:
        self._request = HttpMessage()
        self._stream: PacedStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's has another base class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.stop()

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.pause()

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resume()

    def data_received(self, data: bytes) -> None:
        if self._request.feed(data):
            request, self._request = self._request, HttpMessage()
            self._answer(request)

    def _answer(self, request: HttpMessage) -> None:
        found = _MODEL.search(request.body_start)
        kind, first, second = found.groups(b"0") if found else (b"plain", b"0", b"0")
        if kind == b"stream":
            self._stream = PacedStream(self._transport, int(first), int(second) / 1e3)
        elif kind == b"held":
            self._transport.write(_STREAM_HEAD + _CHUNK)
        elif kind == b"large":
            self._transport.writelines(_json(int(first)))
        else:
            self._transport.writelines(_json(1000))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(FastModel, "127.0.0.1", 0, backlog=_BACKLOG)
    # Written now: a worker takes the model server as loaded only if its port accepts connections.
    await asyncio.to_thread(Path(sys.argv[1]).write_text, READY_LINE + "\n")
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    run_fast(main)
