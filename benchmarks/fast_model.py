"""A model server that uses very little CPU time, so that benchmarks measure the proxy in front of it.

usage: python -m benchmarks.fast_model LOG EVENTS

It answers a POST with 1 KiB of JSON. To a path that contains `stream` it answers with EVENTS server-sent
events, as fast as the client reads them. It writes its ready line to LOG, listens on a free port, and prints
the port.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

READY_LINE = "model is ready"
_BODY = json.dumps({"text": "x" * 1000}).encode()
_JSON = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices": [{"index": 0, "text": " token", "finish_reason": null}]}\n\n'
_CHUNK = b"%x\r\n" % len(_EVENT) + _EVENT + b"\r\n"


class FastModel(asyncio.Protocol):
    """One connection, with one request after the other, each with a `Content-Length`."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if b"stream" in head.split(b"\r\n", 1)[0]:
                asyncio.get_running_loop().create_task(self._stream())
            else:
                self._transport.write(_JSON)

    async def _stream(self) -> None:
        self._transport.write(_HEAD)
        for _ in range(self._events):
            self._transport.write(_CHUNK)
            await asyncio.sleep(0)
        self._transport.write(b"0\r\n\r\n")


async def main(events: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FastModel(events), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(
        READY_LINE + "\n"
    )  # the worker also waits until the port accepts connections
    asyncio.run(main(int(sys.argv[2])))
