"""Clients for the load generator: protocols that write ready-made requests, and find the end of an answer.

Owns connections and latencies. The requests are made in signed_requests.py, the jobs carried out in
generator.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import anyio

from benchmarks.http_message import HttpMessage, unchunked

# Seconds between two probes.
PROBE_PAUSE_S = 0.002
# Connections that are opened at once: fewer than wait to be accepted in any subject.
CONNECTED_AT_ONCE = 50
# Seconds to answer what was sent when no more is sent.
ANSWER_LIMIT_S = 30.0


class Connection(asyncio.Protocol):
    """One connection, with one request after the other.

    `on_answer` is called with each complete answer, `on_lost` when the connection is lost, and `on_body` when
    the first byte of a body arrives. With `keeps_body`, the latest answer's body is in `body`.
    """

    def __init__(
        self,
        on_answer: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
        on_body: Callable[[], None] | None = None,
        keeps_body: bool = False,
    ) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._on_body = on_body
        self._parts: list[bytes] | None = [] if keeps_body else None
        self.answer = HttpMessage()
        self.busy = False
        self.latency_s = 0.0

    @property
    def body(self) -> bytes:
        """The chunked body of the latest answer. Raises `ValueError` if it is not chunked."""
        return unchunked(b"".join(self._parts or ()).split(b"\r\n\r\n", 1)[1])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's has another base class

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        if self._parts is not None:
            self._parts.append(data)
        complete = self.answer.feed(data)
        if self._on_body is not None and self.answer.body_bytes:
            on_body, self._on_body = self._on_body, None
            on_body()
        if complete:
            self.latency_s = time.perf_counter() - self._sent_s
            self.busy = False
            self._on_answer(self)

    def request(self, data: bytes) -> None:
        """Send a request; the last one's answer must be complete."""
        self.answer = HttpMessage()
        if self._parts is not None:
            self._parts.clear()
        self.busy = True
        self._sent_s = time.perf_counter()
        self._transport.write(data)

    def close(self) -> None:
        self._transport.abort()


async def connect(port: int, factory: Callable[[], Connection]) -> Connection:
    """A connection to `port` on the loopback address."""
    _, connection = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", port)
    return connection


class ClosedLoop:
    """Keeps requests in flight, one on each connection, until they are used up or `limit_s` is over.

    With `events`, each answer has to be a stream of that number of events and a final one. `error` is "" as
    long as all answers have the status `expected`.
    """

    def __init__(
        self, port: int, requests: Sequence[bytes], limit_s: float, expected: int = 200, events: int = 0
    ) -> None:
        self.latencies_s: list[float] = []
        self.error = ""
        self._port = port
        self._requests: Iterator[bytes] = iter(requests)
        self._limit_s = limit_s
        self._expected = expected
        self._events = events
        self._connections: list[Connection] = []
        self._reconnecting: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._ends_s = 0.0
        self._done = asyncio.Event()

    async def connect(self, count: int) -> None:
        """Open `count` connections."""
        while left := count - len(self._connections):
            several = (connect(self._port, self._new) for _ in range(min(left, CONNECTED_AT_ONCE)))
            self._connections += await asyncio.gather(*several)

    async def run(self) -> None:
        """Send the requests and wait for their answers."""
        self._ends_s = time.perf_counter() + self._limit_s
        for connection in list(self._connections):
            self._next(connection)
        with anyio.move_on_after(self._limit_s + ANSWER_LIMIT_S) as waiting:
            await self._done.wait()
        if waiting.cancelled_caught:
            self.error = self.error or f"requests were not answered within {ANSWER_LIMIT_S:g} s"
        if not self.error and self._events:
            self.error = self._wrong_streams()

    def close(self) -> None:
        for task in self._reconnecting:
            task.cancel()
        for connection in self._connections:
            connection.close()

    def _new(self) -> Connection:
        return Connection(self._answered, self._lost, keeps_body=bool(self._events))

    def _next(self, connection: Connection) -> None:
        """Send the next request, if there is one and time is left."""
        if not self.error and time.perf_counter() < self._ends_s:
            request = next(self._requests, None)
            if request is not None:
                self._in_flight += 1
                connection.request(request)
                return
        if self._in_flight == 0:
            self._done.set()

    def _answered(self, connection: Connection) -> None:
        self._in_flight -= 1
        self.latencies_s.append(connection.latency_s)
        answer = connection.answer
        if answer.status != self._expected:
            start = answer.body_start[:200].decode(errors="replace")
            self.error = self.error or f"answered {answer.status} instead of {self._expected}: {start}"
        if answer.closes and not self.error:
            self._replace(connection)
        else:
            self._next(connection)

    def _lost(self, connection: Connection) -> None:
        if connection.busy:
            self.error = self.error or "a connection was closed before its answer was complete"
            self._done.set()

    def _replace(self, connection: Connection) -> None:
        self._connections.remove(connection)
        connection.close()
        task = asyncio.get_running_loop().create_task(self._reconnect())
        self._reconnecting.add(task)
        task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self) -> None:
        self._in_flight += 1  # so that the loop isn't over meanwhile
        try:
            connection = await connect(self._port, self._new)
        except OSError as e:
            self.error = f"a new connection was refused: {e}"
            self._done.set()
            return
        self._in_flight -= 1
        self._connections.append(connection)
        self._next(connection)

    def _wrong_streams(self) -> str:
        """An error for streams that lack events or have too many, or ""."""
        found = Counter(c.body.count(b"data: ") - 1 for c in self._connections if c.answer.body_bytes)
        wrong = {events: streams for events, streams in found.items() if events != self._events}
        return f"streams with a wrong number of events: {wrong}" if wrong else ""


class Prober:
    """Sends a small request again and again until the end of its block, and notes the longest wait."""

    def __init__(self, port: int, request: bytes) -> None:
        self.longest_s = 0.0
        self.error = ""
        self._port = port
        self._request = request
        self._stopping = False
        self._done = asyncio.Event()

    async def __aenter__(self) -> Prober:
        self._connection = await connect(self._port, lambda: Connection(self._answered, self._lost))
        self._send()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Wait for the answer that is under way: it may be the one that waits longest."""
        self._stopping = True
        with anyio.move_on_after(ANSWER_LIMIT_S) as waiting:
            await self._done.wait()
        if waiting.cancelled_caught:
            self.error = f"a small request was not answered within {ANSWER_LIMIT_S:g} s"
        self._connection.close()

    def _send(self) -> None:
        if self._stopping:
            self._done.set()
        else:
            self._connection.request(self._request)

    def _answered(self, connection: Connection) -> None:
        self.longest_s = max(self.longest_s, connection.latency_s)
        if connection.answer.status != 200:
            self.error = f"a small request was answered {connection.answer.status}"
            self._done.set()
        else:
            asyncio.get_running_loop().call_later(PROBE_PAUSE_S, self._send)

    def _lost(self, connection: Connection) -> None:
        if not self._done.is_set():
            self.error = "the connection of the small requests was closed"
            self._done.set()


class HeldStreams:
    """Streams that are opened and then left alone. `begun` is the number that have sent their first event."""

    def __init__(self, port: int, requests: Sequence[bytes], limit_s: float) -> None:
        self.begun = 0
        self.error = ""
        self._port = port
        self._requests = requests
        self._limit_s = limit_s
        self._connections: list[Connection] = []
        self._progress = asyncio.Event()

    async def open(self, patience_s: float) -> None:
        """Open all, until each has begun, or none has for `patience_s` seconds, or `limit_s` is over."""
        with anyio.move_on_after(self._limit_s):
            for start in range(0, len(self._requests), CONNECTED_AT_ONCE):
                several = self._requests[start : start + CONNECTED_AT_ONCE]
                await asyncio.gather(*(self._open(request) for request in several))
            while self.begun < len(self._requests):
                self._progress.clear()
                with anyio.move_on_after(patience_s) as waiting:
                    await self._progress.wait()
                if waiting.cancelled_caught:
                    return

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    async def _open(self, request: bytes) -> None:
        connection = await connect(self._port, lambda: Connection(self._ended, self._ended, self._began))
        self._connections.append(connection)
        connection.request(request)

    def _began(self) -> None:
        self.begun += 1
        self._progress.set()

    def _ended(self, connection: Connection) -> None:
        self.error = self.error or "a stream that was to be held has ended"
