"""Newlines and the answer that they begin, where no socket is slow or lost at the right moment."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.test_utils import make_mocked_request

from lib.request.heartbeat import Heartbeat
from tests.manual_clock import ManualClock

INTERVAL_S = 5.0


class Writer(AbstractStreamWriter):
    """A connection that takes what is written once `taken` is set, unless it is `lost`."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.taken, self.lost = anyio.Event(), False
        self.writing = anyio.Event()
        self.taken.set()
        self.length = None

    async def write(self, chunk: Any) -> None:
        if self.lost:
            raise ConnectionResetError
        self.writing.set()
        await self.taken.wait()
        self.written.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        self.written.append(b"end")

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        pass

    def enable_chunking(self) -> None:
        pass

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self.written.append(status_line.encode())


class Scene:
    def __init__(self) -> None:
        self.writer, self.clock = Writer(), ManualClock()
        app = web.Application()
        app.on_response_prepare.append(self.check)
        app.freeze()
        self.request = make_mocked_request("POST", "/", writer=self.writer, app=app)
        self.keepalive = Heartbeat(self.request, INTERVAL_S, self.clock)
        self.go = asyncio.Event()

    async def check(self, request: web.Request, response: web.StreamResponse) -> None:
        """As `note_head` does."""
        self.keepalive.check(response)

    async def work(self) -> str:
        await self.go.wait()
        return "done"

    async def pass_time(self) -> None:
        await self.clock.wait_for_timers()
        self.clock.advance(INTERVAL_S)
        await anyio.wait_all_tasks_blocked()


BEGUN = [b"HTTP/1.1 200 OK", b"\n"]


async def test_what_the_work_gives_or_raises() -> None:
    scene = Scene()
    scene.go.set()
    assert await scene.keepalive.during(scene.work()) == "done"

    async def fails() -> None:
        raise ConnectionResetError("of its own")

    with pytest.raises(ConnectionResetError, match="of its own"):
        await scene.keepalive.during(fails())
    assert (scene.writer.written, scene.clock.pending) == ([], 0)
    assert (scene.keepalive.begun, scene.keepalive.waiting) == (False, False)


async def test_an_answer_waits_for_the_newline_under_way_and_is_followed_by_none() -> None:
    scene = Scene()
    scene.writer.taken = anyio.Event()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    await scene.pass_time()
    assert (scene.writer.written, scene.keepalive.waiting) == (BEGUN[:1], True)
    answer = asyncio.create_task(scene.keepalive.answer("application/json"))
    await anyio.wait_all_tasks_blocked()
    assert not answer.done()
    scene.writer.taken.set()
    assert await answer is not None
    assert scene.writer.written == BEGUN
    await scene.pass_time()
    assert (scene.writer.written, scene.keepalive.waiting) == (BEGUN, False)
    scene.go.set()
    assert await during == "done"


async def test_an_answer_before_the_first_newline_has_no_stream() -> None:
    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    assert await scene.keepalive.answer("audio/wav") is None
    await scene.pass_time()
    assert scene.writer.written == []
    scene.go.set()
    assert await during == "done"


async def test_a_connection_that_is_lost_is_written_to_once_and_is_no_end_of_the_work() -> None:
    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    await scene.pass_time()
    scene.writer.lost = True
    await scene.pass_time()
    scene.writer.lost = False
    await scene.pass_time()
    assert scene.writer.written == BEGUN
    scene.go.set()
    assert await during == "done"


async def test_a_client_that_leaves_as_a_newline_is_due_still_cancels_the_work() -> None:
    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    await scene.clock.wait_for_timers()
    scene.clock.advance(INTERVAL_S)
    during.cancel()  # in the same turn of the event loop
    await anyio.wait_all_tasks_blocked()
    assert during.cancelled()


async def test_a_second_cancel_reaches_the_work_too() -> None:
    cancels: list[str] = []

    async def reluctant() -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancels.append("cancel")
        raise asyncio.CancelledError

    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(reluctant()))
    await scene.pass_time()
    during.cancel()
    await scene.pass_time()
    assert (cancels, during.done(), scene.writer.written) == (["cancel"], False, BEGUN)
    during.cancel()
    with pytest.raises(asyncio.CancelledError):
        await during
    assert (cancels, scene.clock.pending) == (["cancel", "cancel"], 0)


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_cancel_is_never_swallowed_and_no_failure_is_lost(ends: str) -> None:
    async def cleans_up() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ends == "raises":
                raise RuntimeError("bug while cleaning up") from None
        return "too late"

    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(cleans_up()))
    await scene.clock.wait_for_timers()
    during.cancel()
    with pytest.raises(RuntimeError if ends == "raises" else asyncio.CancelledError):
        await during


async def test_an_answer_that_newlines_spoil_can_still_be_told_so() -> None:
    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    await scene.pass_time()
    for kind in ("audio/wav", "application/octet-stream", "application/vnd.amazon.eventstream"):
        with pytest.raises(RuntimeError, match=kind):
            await scene.keepalive.answer(kind)
    assert scene.keepalive.waiting
    for kind in (
        "application/x-ndjson",
        "application/geo+json",
        "text/event-stream",
        "application/jsonl",
        "",
    ):
        assert await scene.keepalive.answer(kind) is not None
    scene.go.set()
    await during


async def test_no_second_status_line_and_the_writer_as_it_was() -> None:
    scene = Scene()
    during = asyncio.create_task(scene.keepalive.during(scene.work()))
    await scene.pass_time()
    with pytest.raises(RuntimeError, match="has begun the answer"):
        await web.Response(text="ok").prepare(scene.request)
    assert (scene.writer.length, scene.keepalive.waiting) == (None, True)
    told = await scene.keepalive.finish(web.json_response({"error": "x"}, status=500))
    assert scene.writer.written == [*BEGUN, b'{"error": "x"}', b"end"]
    assert told.status == 200
    scene.go.set()
    await during
