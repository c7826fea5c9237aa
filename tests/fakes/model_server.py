"""The fake model server, on raw sockets: the path of a request selects the behaviour.

Tests read what arrived (`requests`, `connections`), hold answers back (`hold`, `release`) and count the calls
that the worker cancelled (`cancelled`).
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from tests.guard import GUARD_S

CHUNKED = b"Transfer-Encoding: chunked\r\n"
SSE = b"Content-Type: text/event-stream\r\nX-Model: tiny\r\nCache-Control: no-cache\r\n"


@dataclass
class Received:
    """A received request; `connection` is the number of its connection, from 1."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k.lower() == name.lower()), None)

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class MaliciousModel:
    """The server: its settings and what it recorded. `health_status` is the status of `/health`.

    With an `api_key`, a request without it gets 401.
    """

    requests: list[Received] = field(default_factory=list["Received"])
    connections: int = 0
    open_connections: int = 0
    cancelled: int = 0
    health_status: int = 200
    health_checks: int = 0
    health_stalls: bool = False
    health_held: bool = False
    fail_status: int | None = None
    api_key: str = ""
    speed_s: float = 0.0
    working: int = 0
    most_working: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _steps: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set["asyncio.Task[None]"])
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def release(self) -> None:
        """Let all held answers go on, and hold none from now on."""
        self._released.set()

    def hold(self) -> None:
        self._released.clear()

    def step(self) -> None:
        """Let a held stream send one more chunk."""
        self._steps.release()

    async def until(self, condition: Callable[[], bool], limit_s: float = GUARD_S) -> None:
        """Return once `condition` holds; it is checked at each event here."""
        with anyio.fail_after(limit_s):
            async with self._changed:
                await self._changed.wait_for(condition)

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: asyncio.StreamReaderProtocol(Reader(limit=2**20), self._connected),
            "127.0.0.1",
            self.port,
            backlog=1024,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        try:
            while (request := await _read(reader, number)) is not None:
                if request.path == "/health":
                    self.health_checks += 1
                else:
                    self.requests.append(request)
                await self._note()
                if not await self._watched(request, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()
            await self._note()

    async def _watched(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer unless the worker closes the connection first; return whether it may be reused."""
        answer = asyncio.ensure_future(self._answer(request, writer))
        assert isinstance(reader, Reader)
        hung_up = asyncio.ensure_future(reader.ended.wait())
        self.working += 1
        self.most_working = max(self.most_working, self.working)
        try:
            await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                self.cancelled += 1
                return False
            return answer.result()
        finally:
            self.working -= 1
            for task in (answer, hung_up):
                task.cancel()
            await asyncio.gather(answer, hung_up, return_exceptions=True)

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        name = request.path.split("?")[0].strip("/").split("/")[-1]
        behaviour: Callable[[Received, asyncio.StreamWriter], Awaitable[bool]] = getattr(
            self, f"_do_{name}", self._do_missing
        )
        if self.api_key and request.header("Authorization") != f"Bearer {self.api_key}":
            await _whole(writer, 401, b'{"error": "no key"}')
            return True
        if self.fail_status is not None and name != "health":
            await _whole(writer, self.fail_status, b'{"error": "broken GPU"}')
            return True
        return await behaviour(request, writer)

    # The behaviour of each path

    async def _do_missing(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 404, b'{"error": "no such path"}')
        return True

    async def _do_health(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        if self.health_stalls:
            await asyncio.Event().wait()
        if self.health_held:
            await self._released.wait()
        await _whole(writer, self.health_status, b"ok")
        return True

    async def _do_echo(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """The request itself, as JSON."""
        if self.speed_s:
            await asyncio.sleep(self.speed_s)
        seen = {"method": request.method, "path": request.path, "headers": dict(request.headers)}
        body = {**seen, "body": request.body.decode("utf-8", "replace")}
        await _whole(writer, 200, json.dumps(body).encode(), extra=b"X-Model: tiny\r\nSet-Cookie: a=b\r\n")
        return True

    async def _do_held(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Nothing until `release`."""
        await self._released.wait()
        await _whole(writer, 200, b'{"done": true}')
        return True

    async def _do_stream(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Server-sent events, one for each `step`; `[DONE]` after `release`."""
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"\r\n")
        for number in range(1000):
            step = asyncio.ensure_future(self._steps.acquire())
            go = asyncio.ensure_future(self._released.wait())
            try:
                await asyncio.wait({step, go}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                go.cancel()
                step.cancel()
            if self._released.is_set():
                break
            await _write(writer, _chunk(b"data: token %d\n\n" % number))
        await _write(writer, _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        return True

    async def _do_flood(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """An endless stream, as fast as it is read."""
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"\r\n")
        while True:
            await _write(writer, _chunk(b"x" * 65536))
            self.flooded_bytes += 65536

    flooded_bytes: int = 0

    async def _do_bytewise(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A whole answer, one byte at a time."""
        for byte in _head(200, b'{"slow": true}') + b'{"slow": true}':
            await _write(writer, bytes([byte]))
            await asyncio.sleep(0)
        return True

    async def _do_gzip(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A compressed answer, even if not accepted."""
        await _whole(writer, 200, gzip.compress(b'{"packed": true}'), extra=b"Content-Encoding: gzip\r\n")
        return True

    async def _do_brotli(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 200, b"\x8b\x03\x80{}\x03", extra=b"Content-Encoding: br\r\n")
        return True

    async def _do_gzip_stream(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        packed = gzip.compress(b"data: packed\n\n" * 1000)
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"Content-Encoding: gzip\r\n\r\n")
        await _write(writer, b"".join(_chunk(packed[i : i + 7]) for i in range(0, len(packed), 7)))
        await _write(writer, b"0\r\n\r\n")
        return True

    async def _do_binary(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        body = bytes(range(256)) * 4096
        await _whole(writer, 200, body, kind=b"audio/wav", extra=b"Content-Disposition: attachment\r\n")
        return True

    async def _do_accepted(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 202, b'{"accepted": true}')
        return True

    async def _do_empty(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _write(writer, b"HTTP/1.1 204 No Content\r\nX-Model: tiny\r\n\r\n")
        return True

    async def _do_redirect(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 307, b"{}", extra=b"Location: http://127.0.0.1:1/elsewhere\r\n")
        return True

    async def _do_error500(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 500, b"<h1>CUDA out of memory</h1>", kind=b"text/html")
        return True

    async def _do_error422(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 422, b'{"detail": "no such parameter"}')
        return True

    async def _do_error401(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 401, b'{"error": "no key"}')
        return True

    async def _do_error429(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await _whole(writer, 429, b'{"error": "busy"}')
        return True

    async def _do_garbage(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Bytes that are not HTTP."""
        await _write(writer, b"\x00\x01 not HTTP\r\n\r\n")
        return False

    async def _do_interim(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Interim answers without an end, and no other."""
        while True:
            await _write(writer, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100)

    async def _do_control(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """An answer with a control character in a header."""
        await _whole(writer, 200, b"{}", extra=b"X-Model: a\x01b\r\n")
        return True

    async def _do_unasked(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """An answer, and a second one for which nobody has asked."""
        one = b'{"asked": true}'
        two = b'{"asked": false}'
        await _write(writer, _head(200, one) + one + _head(200, two) + two)
        return True

    async def _do_hop(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """Hop-by-hop headers, one of them named by `Connection`."""
        extra = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 1\r\n"
        await _whole(writer, 200, b"{}", extra=extra)
        return True

    async def _do_close(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """The connection is closed before a status line."""
        return False

    async def _do_half_head(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """The connection is closed within the head."""
        await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Ty")
        return False

    async def _do_once(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A keep-alive answer; then the connection is closed without `Connection: close`."""
        await _whole(writer, 200, b"{}")
        return False

    async def _do_stale(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A reused connection is closed when a request comes in; a new one answers."""
        if sum(r.connection == request.connection for r in self.requests) > 1:
            return False
        await _whole(writer, 200, json.dumps({"connection": request.connection}).encode())
        return True

    async def _do_cut_stream(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A stream that is closed without its last chunk."""
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"\r\n" + _chunk(b"data: token\n\n"))
        return False

    async def _do_reset_stream(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A stream that is reset."""
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"\r\n" + _chunk(b"data: token\n\n"))
        await self._released.wait()
        writer.transport.abort()
        return False

    async def _do_cut_whole(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A whole answer that is shorter than it says."""
        await _write(writer, _head(200, b" " * 100) + b"{")
        return False

    async def _do_cut_large(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A large answer of known length that is closed in its middle."""
        await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000)
        return False

    async def _do_silent_stream(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        """A stream that goes silent without closing."""
        await _write(writer, b"HTTP/1.1 200 OK\r\n" + SSE + CHUNKED + b"\r\n" + _chunk(b"data: token\n\n"))
        await asyncio.Event().wait()
        return False


class Reader(asyncio.StreamReader):
    """A stream reader that sets an event when the other side has closed the connection."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit=limit)
        self.ended = asyncio.Event()

    def feed_eof(self) -> None:
        self.ended.set()
        super().feed_eof()

    def set_exception(self, exc: Exception) -> None:
        self.ended.set()
        super().set_exception(exc)


@asynccontextmanager
async def malicious_model() -> AsyncGenerator[MaliciousModel, None]:
    """Run a fake model server on a free port."""
    model = MaliciousModel()
    await model.start()
    try:
        yield model
    finally:
        await model.stop()


async def _read(reader: asyncio.StreamReader, connection: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines[1:] if line)]
    received = Received(method, path, headers, b"", connection)
    if length := received.header("Content-Length"):
        received.body = await reader.readexactly(int(length))
    elif received.header("Transfer-Encoding"):
        received.body = await _read_chunked(reader)
    return received


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _whole(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    kind: bytes = b"application/json",
    extra: bytes = b"",
) -> None:
    await _write(writer, _head(status, body, kind, extra) + body)


def _head(status: int, body: bytes, kind: bytes = b"application/json", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Status\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n" % (
        status,
        kind,
        len(body),
        extra,
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
