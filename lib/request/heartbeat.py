"""Newlines while a client waits for a long job, so that no proxy cuts its connection (authoring.md §1).

Owns the answer that a first newline has begun: from then on its status is 200, and what becomes of the job is
told in its body. How answers are passed on otherwise is in answers.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from aiohttp import HttpVersion11, web

from lib.runtime.clock import Clock

T = TypeVar("T")


class Heartbeat:
    """The newlines of one request, one each `interval_s` seconds until its answer begins."""

    def __init__(self, request: web.Request, interval_s: float, clock: Clock) -> None:
        self._request = request
        self._interval_s = interval_s
        self._clock = clock
        self._stream: web.StreamResponse | None = None
        self._answered = self._unheard = False
        self._writing = asyncio.Lock()

    @property
    def begun(self) -> bool:
        """Whether a newline, and with it the status line, is out."""
        return self._stream is not None

    @property
    def waiting(self) -> bool:
        """Whether newlines are all that is out."""
        return self.begun and not self._answered

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives or raises; it is cancelled as often as its caller, and is over when this is."""
        task = asyncio.ensure_future(work)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await self._interval_or_end_of(task)
                if not task.done() and cancelled is None:
                    await self._newline()
            except asyncio.CancelledError as e:
                cancelled = e
                task.cancel()
        if cancelled is not None and (task.cancelled() or task.exception() is None):
            raise cancelled
        return task.result()

    async def _interval_or_end_of(self, task: asyncio.Future[Any]) -> None:
        """Return once an interval has passed, or `task` is done.

        Not by a scope: on Python 3.10 one that ends as the client leaves takes that for its own doing.
        """
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(self._interval_s, partial(passed.set_result, None))
        try:
            await asyncio.wait({task, passed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    async def answer(self, content_type: str) -> web.StreamResponse | None:
        """No newline follows. The stream for the answer's body, if one has begun, or None.

        Raises `RuntimeError` for a `content_type` that newlines spoil: that can still be told.
        """
        async with self._writing:  # a newline under way comes first
            if self._stream is not None and not _may_follow(content_type):
                raise RuntimeError(f"keepalive_s has begun a JSON answer, but the answer is {content_type}")
            self._answered = True
            return self._stream

    async def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Tell `response` in the body that newlines have begun: its body, or `{"error": …}` from 400 up.

        Raises `RuntimeError` for a response that can't be told so, `ConnectionError`.
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
        """Whether `response` is the one that the first newline has begun."""
        return response is self._stream

    def check(self, response: web.StreamResponse) -> None:
        """`response` is about to begin the answer. Raises `RuntimeError` when one has begun."""
        if response is self._stream:
            return
        if self._stream is None:
            self._answered = True
            return
        # Both share the writer, and `response` has told it how its own body is written.
        self._request.writer.length = None
        self._answered = self._answered or response.compression  # that can't be taken back: nothing is told
        raise RuntimeError("keepalive_s has begun the answer: return a web.Response, or don't set it")

    async def _newline(self) -> None:
        async with self._writing:
            if self._answered or self._unheard:
                return
            try:
                if self._stream is None:
                    self._stream = _begun_stream(self._request)
                    await self._stream.prepare(self._request)
                await self._stream.write(b"\n")
            except ConnectionError:
                self._unheard = True  # what becomes of the job is decided by whoever cancels it, or not


def _begun_stream(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(headers={"Content-Type": "application/json"})
    if request.version < HttpVersion11:  # the connection's end is the answer's
        stream.force_close()
    return stream


def _may_follow(content_type: str) -> bool:
    """Whether leading newlines mean nothing to who reads an answer of this type."""
    main, _, subtype = content_type.partition("/")
    return content_type == "" or main == "text" or "json" in subtype


def _content_of(response: web.StreamResponse) -> bytes:
    """The body of a whole answer. Raises `RuntimeError` for one that can't be written after newlines."""
    body = response.body if isinstance(response, web.Response) else response
    if not isinstance(body, (bytes, bytearray, type(None))) or "Content-Encoding" in response.headers:
        raise RuntimeError("keepalive_s has begun a JSON answer, but this is a file, a stream or compressed")
    return bytes(body or b"")


def _as_error(body: bytes) -> bytes:
    """A failure's body as `{"error": …}`; one that is so already is left as it is."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        told = body.decode(errors="replace")
    if isinstance(told, dict) and "error" in told:
        return body
    return json.dumps({"error": told}).encode()
