"""A port with both carriers, without a worker: the same behaviours as direct requests and as aiohttp routes.

`/direct/NAME` is carried by the front, `/http/NAME` by aiohttp's server. `echo` answers with the body, `held`
waits for `release`, `early` answers 413 without reading the body, `flood` streams as fast as it is read,
and `begun` streams one chunk and waits. `/http/socket` is a WebSocket that echoes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import h11
from aiohttp import web

from lib.errors import WorkerError, refusals_as_json
from lib.front.front import Front
from lib.http.counted import counted_on
from lib.request.incoming import DirectRequest
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock

PART = b"x" * 65536
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class FrontServer:
    """The server and what happened: `begun` and `ended` have the paths of requests, `cancelled` those cut."""

    clock: ManualClock = field(default_factory=ManualClock)
    port: int = 0
    begun: list[str] = field(default_factory=list[str])
    ended: list[str] = field(default_factory=list[str])
    cancelled: list[str] = field(default_factory=list[str])
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    flooded_bytes: int = 0
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _front: Front | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def front(self) -> Front:
        assert self._front is not None
        return self._front

    async def open(self, stall_limit_s: float, **limits: Any) -> Front:
        """Make the front, and get it ready to serve."""
        self._front = Front(self.app(), self.direct(), self.clock, stall_limit_s, **limits)
        await self._front.open()
        return self._front

    def release(self) -> None:
        """Let the requests that are held go on, and hold none from now on."""
        self._released.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; it is checked at each beginning and end of a request."""
        with anyio.fail_after(GUARD_S):
            async with self._changed:
                await self._changed.wait_for(lambda: bool(condition()))

    async def _note(self, where: list[str], path: str) -> None:
        where.append(path)
        async with self._changed:
            self._changed.notify_all()

    async def _noted(self, path: str, work: Awaitable[None]) -> None:
        await self._note(self.begun, path)
        try:
            await work
        except asyncio.CancelledError:
            self.cancelled.append(path)
            raise
        finally:
            await self._note(self.ended, path)

    # Carried by the front

    def direct(self) -> dict[str, Callable[[DirectRequest], Awaitable[object]]]:
        behaviours = (self._echo, self._held, self._early, self._flood, self._begun)
        return {f"/direct/{b.__name__[1:]}": self._serving(b) for b in behaviours}

    def _serving(
        self, behaviour: Callable[[DirectRequest], Awaitable[None]]
    ) -> Callable[[DirectRequest], Awaitable[object]]:
        async def serve(request: DirectRequest) -> object:
            await self._noted(request.path, behaviour(request))
            return None

        return serve

    async def _echo(self, request: DirectRequest) -> None:
        body = b""
        try:
            while part := await request.content.readany():
                body += part
        except WorkerError as e:
            _answer(request, e.status, b'{"error": ""}')
        except ConnectionError:
            return
        else:
            _answer(request, 200, body)

    async def _held(self, request: DirectRequest) -> None:
        request.connection.note_verified()
        await self._released.wait()
        await self._echo(request)

    async def _early(self, request: DirectRequest) -> None:
        _answer(request, 413, b'{"error": ""}')

    async def _flood(self, request: DirectRequest) -> None:
        connection = request.connection
        connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.write(b"%x\r\n%s\r\n" % (len(PART), PART))
            self.flooded_bytes += len(PART)
            await connection.drained()
            await asyncio.sleep(0)

    async def _begun(self, request: DirectRequest) -> None:
        request.connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await self._released.wait()
        request.connection.write(b"0\r\n\r\n")

    # Carried by aiohttp's server

    def app(self) -> web.Application:
        app = web.Application(middlewares=[refusals_as_json])
        for name, handler in {
            "echo": self._http_echo,
            "held": self._http_held,
            "early": self._http_early,
            "flood": self._http_flood,
            "begun": self._http_begun,
            "socket": self._http_socket,
        }.items():
            app.router.add_route("*", f"/http/{name}", self._handling(handler))
            # For those that the front doesn't carry, of HTTP/1.0.
            app.router.add_post(f"/direct/{name}", self._handling(handler))
        return app

    def _handling(
        self, behaviour: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            answers: list[web.StreamResponse] = []

            async def work() -> None:
                answers.append(await behaviour(request))

            await self._noted(request.path, work())
            return answers[0]

        return handle

    async def _http_echo(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read())

    async def _http_held(self, request: web.Request) -> web.StreamResponse:
        connection = counted_on(request.transport)
        assert connection is not None
        connection.note_verified()
        await self._released.wait()
        return await self._http_echo(request)

    async def _http_early(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": ""}, status=413)

    async def _http_flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PART)
            self.flooded_bytes += len(PART)
            await asyncio.sleep(0)

    async def _http_begun(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await self._released.wait()
        return response

    async def _http_socket(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"{message.data}!")
        return socket


def _answer(request: DirectRequest, status: int, body: bytes) -> None:
    close = b"" if request.connection.keep_alive else b"Connection: close\r\n"
    request.connection.write(
        b"HTTP/1.1 %d Status\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
        % (status, close, len(body), body)
    )


@asynccontextmanager
async def front_server(stall_limit_s: float = 60.0, **limits: Any) -> AsyncGenerator[FrontServer, None]:
    """Run a server; `limits` are arguments of `Front`. Errors that reach the event loop fail the test."""
    server = FrontServer()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: server.errors.append(context))
    front = await server.open(stall_limit_s, **limits)
    listening = await loop.create_server(front, "127.0.0.1", 0, backlog=1024)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.release()
        listening.close()
        with anyio.fail_after(GUARD_S):
            await front.close()
        loop.set_exception_handler(None)
    assert server.errors == []


@dataclass(frozen=True)
class WholeAnswer:
    """An answer that a strict reader has read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes


def answers_in(data: bytes, method: str = "POST", is_closed: bool = False) -> tuple[list[WholeAnswer], bytes]:
    """The answers to requests with `method` in `data`, and what follows the last, without interim answers.

    `is_closed`: the connection was closed after `data`. Raises `h11.RemoteProtocolError` for what is no HTTP.
    """
    answers: list[WholeAnswer] = []
    while data:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "w")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(data)
        answer = _next_answer(reader, is_closed)
        if answer is None:
            return answers, b"" if data == INTERIM else data
        answers.append(answer)
        data = bytes(reader.trailing_data[0])
    return answers, b""


def _next_answer(reader: h11.Connection, is_closed: bool) -> WholeAnswer | None:
    """The answer in what `reader` has received; None if it has not its end."""
    status, headers, body = 0, dict[str, str](), b""
    while True:
        event = reader.next_event()
        if event is h11.NEED_DATA:
            if not is_closed or not _takes_end(reader, headers):
                return None
            reader.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            return WholeAnswer(status, headers, body)


def _takes_end(reader: h11.Connection, headers: dict[str, str]) -> bool:
    """Whether the connection's end would be the end of the answer."""
    is_framed = "content-length" in headers or "transfer-encoding" in headers
    return reader.their_state is h11.SEND_BODY and not is_framed
