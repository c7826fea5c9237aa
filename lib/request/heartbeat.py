"""The heartbeat: newlines while a client waits for a long job, so that no proxy cuts its connection.

Owns the answer that the first newline begins: its status is 200, and a later error goes into its body
(docs/protocol.md, "Heartbeat"). Owns also what is written between the items of a stream that pauses. It does
not pass other answers on: that is lib/model/relay.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from aiohttp import HttpVersion11, web

from lib.runtime.clock import Clock

T = TypeVar("T")

# What readers skip between two items of a stream, by its media type: an empty line, and a comment.
_BLANKS: Mapping[str, bytes] = {
    "application/x-ndjson": b"\n",
    "application/ndjson": b"\n",
    "application/jsonl": b"\n",
    "text/event-stream": b":\n\n",
}
# The ends of an item; in an event stream, those of an empty line.
_LINE_ENDS = (b"\n",)
_EVENT_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3
# Seconds by which a timer may be early, in the arithmetic of floating-point numbers.
_ROUNDING_S = 1e-6


class Heartbeat:
    """The heartbeat of one request: a newline every `interval_s` seconds until its answer begins.

    In a stream of items that `pass_items` names, it goes on where none was written for so long.
    """

    def __init__(self, request: web.Request, interval_s: float, clock: Clock) -> None:
        self._request = request
        self._interval_s = interval_s
        self._clock = clock
        self._stream: web.StreamResponse | None = None
        self._answered = self._connection_lost = False
        self._writing = asyncio.Lock()
        self._items: _Items | None = None
        self._last_s = 0.0

    @property
    def begun(self) -> bool:
        """Whether a newline, and with it status 200, was sent."""
        return self._stream is not None

    @property
    def waiting(self) -> bool:
        """Whether newlines were sent, and no answer has begun."""
        return self.begun and not self._answered

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, writing newlines meanwhile; return its result or raise its exception.

        Forwards every cancellation to `work`, and returns only after `work` has ended. A later cancellation
        has no effect: `work` may have written the whole answer, and its client leaves as it has read it.
        """
        task = asyncio.ensure_future(work)
        self._last_s = self._clock.monotonic()
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await self._wait_interval_or_end(task)
                if not task.done() and self._remaining_s <= _ROUNDING_S:
                    self._last_s = self._clock.monotonic()
                    if cancelled is None:
                        await self._newline()
            except asyncio.CancelledError as e:
                if not task.done():
                    cancelled = e
                    task.cancel()
        try:
            if cancelled is not None and (task.cancelled() or task.exception() is None):
                raise cancelled
            return task.result()
        finally:
            del task, cancelled  # a traceback has this frame: they would keep each other alive

    @property
    def _remaining_s(self) -> float:
        """Seconds until the next newline is due."""
        return self._last_s + self._interval_s - self._clock.monotonic()

    async def _wait_interval_or_end(self, task: asyncio.Future[Any]) -> None:
        """Return once an interval has passed since the last newline or item, or `task` is done.

        Uses no cancel scope: on Python 3.10, a scope whose time ends just as the client leaves would take the
        client's cancellation for its own.
        """
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(max(0.0, self._remaining_s), partial(passed.set_result, None))
        try:
            await asyncio.wait({task, passed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    async def answer(self, content_type: str) -> web.StreamResponse | None:
        """End the newlines; return the stream for the answer's body if one has begun, else None.

        Raises `RuntimeError` if newlines would corrupt a body of `content_type`; an error can still follow.
        """
        async with self._writing:  # wait for a newline that is being written
            if self._stream is not None and not _allows_leading_newlines(content_type):
                raise RuntimeError(f"keepalive_s has begun a JSON answer, but the answer is {content_type}")
            self._answered = True
            return self._stream

    def pass_items(self, response: web.StreamResponse, content_type: str) -> None:
        """Go on in `response`, whose chunks `write` writes, if readers of its content type skip blanks."""
        if content_type in _BLANKS and "Content-Length" not in response.headers:
            self._items = _Items(response, content_type)

    async def write(self, response: web.StreamResponse, chunk: bytes) -> None:
        """Write the next `chunk` of the answer `response`, not at the same time as a newline."""
        async with self._writing:
            await response.write(chunk)
            if self._items is not None:
                self._items.note(chunk)
                self._last_s = self._clock.monotonic()

    async def end_items(self) -> None:
        """Write nothing more: the answer ends."""
        async with self._writing:
            self._items = None

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Write `response` into the stream that newlines have begun: its body, or `{"error": …}` from 400 up.

        Raises `RuntimeError` if `response` can't follow newlines, and `ConnectionError`.
        """
        content = _content_of(response)
        failed = response.status >= 400
        if failed:
            content = _as_error(content or f"{response.status} {response.reason}".encode())
        stream = await self.answer(response.content_type if content and not failed else "")
        assert stream is not None
        await stream.write(content)
        await stream.write_eof()
        return stream

    def is_stream(self, response: web.StreamResponse) -> bool:
        """Whether `response` is the stream that the first newline has begun."""
        return response is self._stream

    def check(self, response: web.StreamResponse) -> None:
        """Check that `response` may send its headers. Raises `RuntimeError` if newlines have sent theirs."""
        if response is self._stream:
            return
        if self._stream is None:
            self._answered = True
            return
        # Both share the writer, which `response` has already set to its own body length.
        self._request.writer.length = None
        self._answered = self._answered or response.compression  # it can't be undone: no error can follow
        raise RuntimeError(
            "keepalive_s has begun the answer: return a web.Response, or leave keepalive_s unset"
        )

    async def _newline(self) -> None:
        async with self._writing:
            items = self._items
            if self._connection_lost or (self._answered and (items is None or not items.is_between)):
                return
            try:
                if items is not None:
                    await items.write_blank()
                    return
                if self._stream is None:
                    self._stream = _new_stream(self._request)
                    await self._stream.prepare(self._request)
                await self._stream.write(b"\n")
            except ConnectionError:
                self._connection_lost = True  # the work goes on unless the caller is cancelled
            finally:
                self._last_s = self._clock.monotonic()


class _Items:
    """The answer `response`, a stream of items, of which `note` is told each chunk."""

    def __init__(self, response: web.StreamResponse, content_type: str) -> None:
        self._response = response
        self._blank = _BLANKS[content_type]
        self._ends = _LINE_ENDS if self._blank == b"\n" else _EVENT_ENDS
        self._tail = b""

    @property
    def is_between(self) -> bool:
        """Whether no item has begun that has not ended."""
        return self._tail == b"" or self._tail.endswith(self._ends)

    def note(self, chunk: bytes) -> None:
        """Note that `chunk` was written."""
        self._tail = (self._tail + chunk[-_LONGEST_END:])[-_LONGEST_END:]

    async def write_blank(self) -> None:
        """Write what readers skip. Raises `ConnectionError`."""
        await self._response.write(self._blank)


def _new_stream(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "application/json"})
    if request.version < HttpVersion11:  # HTTP/1.0: closing the connection ends the answer
        stream.force_close()
    return stream


def _allows_leading_newlines(content_type: str) -> bool:
    """Whether readers of this content type ignore leading newlines."""
    main, _, subtype = content_type.partition("/")
    return content_type == "" or main == "text" or "json" in subtype


def _content_of(response: web.StreamResponse) -> bytes:
    """The body of `response`. Raises `RuntimeError` if it can't be written after newlines."""
    body = response.body if isinstance(response, web.Response) else response
    if not isinstance(body, (bytes, bytearray, type(None))) or "Content-Encoding" in response.headers:
        raise RuntimeError(
            "keepalive_s has begun a JSON answer, but this one is a file, a stream or compressed"
        )
    return bytes(body or b"")


def _as_error(body: bytes) -> bytes:
    """Wrap an error's body as `{"error": …}`, unless it is already of this form."""
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        content = body.decode(errors="replace")
    if isinstance(content, dict) and "error" in content:
        return body
    return json.dumps({"error": content}).encode()
