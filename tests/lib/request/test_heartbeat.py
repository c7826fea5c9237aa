"""The heartbeat on a fake connection, which can be slow or lost at a chosen moment."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from lib.request.heartbeat import Heartbeat
from tests.fakes.response_writer import RecordingWriter
from tests.manual_clock import ManualClock

INTERVAL_S = 5.0


class WaitingClient:
    """A request with a heartbeat; `work` ends once `work_may_end` is set."""

    def __init__(self) -> None:
        self.writer, self.clock = RecordingWriter(), ManualClock()
        app = web.Application()
        app.on_response_prepare.append(self.check)
        app.freeze()
        self.request = make_mocked_request("POST", "/", writer=self.writer, app=app)
        self.heartbeat = Heartbeat(self.request, INTERVAL_S, self.clock)
        self.work_may_end = asyncio.Event()

    async def check(self, request: web.Request, response: web.StreamResponse) -> None:
        """Check like `lib.request.exchange.on_response_prepare`."""
        self.heartbeat.check(response)

    async def work(self) -> str:
        await self.work_may_end.wait()
        return "done"

    async def pass_time(self) -> None:
        await self.clock.wait_for_timers()
        self.clock.advance(INTERVAL_S)
        await anyio.wait_all_tasks_blocked()


FIRST_NEWLINE = [b"HTTP/1.1 200 OK", b"\n"]


async def test_the_result_or_the_exception_of_the_work() -> None:
    client = WaitingClient()
    client.work_may_end.set()
    assert await client.heartbeat.during(client.work()) == "done"

    async def fails() -> None:
        raise ConnectionResetError("of its own")

    with pytest.raises(ConnectionResetError, match="of its own"):
        await client.heartbeat.during(fails())
    assert (client.writer.written, client.clock.pending) == ([], 0)
    assert (client.heartbeat.begun, client.heartbeat.waiting) == (False, False)


async def test_an_answer_waits_for_a_newline_that_is_being_written_and_ends_them() -> None:
    client = WaitingClient()
    client.writer.may_write = anyio.Event()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.pass_time()
    assert (client.writer.written, client.heartbeat.waiting) == (FIRST_NEWLINE[:1], True)
    answer = asyncio.create_task(client.heartbeat.answer("application/json"))
    await anyio.wait_all_tasks_blocked()
    assert not answer.done()
    client.writer.may_write.set()
    assert await answer is not None
    assert client.writer.written == FIRST_NEWLINE
    await client.pass_time()
    assert (client.writer.written, client.heartbeat.waiting) == (FIRST_NEWLINE, False)
    client.work_may_end.set()
    assert await during == "done"


async def test_an_answer_before_the_first_newline_has_no_stream() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    assert await client.heartbeat.answer("audio/wav") is None
    await client.pass_time()
    assert client.writer.written == []
    client.work_may_end.set()
    assert await during == "done"


async def test_a_lost_connection_ends_the_newlines_and_not_the_work() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.pass_time()
    client.writer.lost = True
    await client.pass_time()
    client.writer.lost = False
    await client.pass_time()
    assert client.writer.written == FIRST_NEWLINE
    client.work_may_end.set()
    assert await during == "done"


async def test_a_client_that_leaves_as_a_newline_is_due_still_cancels_the_work() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.clock.wait_for_timers()
    client.clock.advance(INTERVAL_S)
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

    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(reluctant()))
    await client.pass_time()
    during.cancel()
    await client.pass_time()
    assert (cancels, during.done(), client.writer.written) == (["cancel"], False, FIRST_NEWLINE)
    during.cancel()
    with pytest.raises(asyncio.CancelledError):
        await during
    assert (cancels, client.clock.pending) == (["cancel", "cancel"], 0)


@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_cancel_is_never_swallowed_and_no_failure_is_lost(ends: str) -> None:
    async def cleans_up() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ends == "raises":
                raise RuntimeError("bug while cleaning up") from None
        return "too late"

    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(cleans_up()))
    await client.clock.wait_for_timers()
    during.cancel()
    with pytest.raises(RuntimeError if ends == "raises" else asyncio.CancelledError):
        await during


async def test_a_client_that_leaves_once_the_work_is_done_gets_its_result() -> None:
    """It leaves as it has read the last byte, before the task that waits for the work runs again."""
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.clock.wait_for_timers()
    client.work_may_end.set()
    await asyncio.sleep(0)  # the turn in which the work ends
    assert not during.done()
    during.cancel()
    assert await during == "done"


async def test_a_content_type_that_newlines_corrupt_is_an_error() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.pass_time()
    for kind in ("audio/wav", "application/octet-stream", "application/vnd.amazon.eventstream"):
        with pytest.raises(RuntimeError, match=kind):
            await client.heartbeat.answer(kind)
    assert client.heartbeat.waiting
    for kind in (
        "application/x-ndjson",
        "application/geo+json",
        "text/event-stream",
        "application/jsonl",
        "",
    ):
        assert await client.heartbeat.answer(kind) is not None
    client.work_may_end.set()
    await during


async def test_a_second_status_line_is_an_error_and_leaves_the_writer_unchanged() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    await client.pass_time()
    with pytest.raises(RuntimeError, match="has begun the answer"):
        await web.Response(text="ok").prepare(client.request)
    assert (client.writer.length, client.heartbeat.waiting) == (None, True)
    written = await client.heartbeat.finish(web.json_response({"error": "x"}, status=500))
    assert client.writer.written == [*FIRST_NEWLINE, b'{"error": "x"}', b"end"]
    assert written.status == 200
    client.work_may_end.set()
    await during


NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"


@pytest.mark.parametrize(
    ("kind", "chunks", "written"),
    [
        (NDJSON, [b"", b"1\n", b"[2,", b"3]\n4\n"], [b"\n", b"1\n", b"\n", b"[2,", b"3]\n4\n", b"\n"]),
        ("application/jsonl", [b"1\n"], [b"1\n", b"\n"]),
        (EVENTS, [b"", b"data: 1\n", b"\n"], [b":\n\n", b"data: 1\n", b"\n", b":\n\n"]),
        (EVENTS, [b"data: 1\r\n\r", b"\n", b"d"], [b"data: 1\r\n\r", b"\n", b":\n\n", b"d"]),
        (EVENTS, [b"data: 1\r\r"], [b"data: 1\r\r", b":\n\n"]),
        ("application/json", [b"[1,\n", b"2]\n"], [b"[1,\n", b"2]\n"]),
        ("application/octet-stream", [b"\n"], [b"\n"]),
    ],
)
async def test_a_stream_that_pauses_gets_a_blank_between_its_items_only(
    kind: str, chunks: list[bytes], written: list[bytes]
) -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    response = web.StreamResponse(headers={"Content-Type": kind})
    assert await client.heartbeat.answer(kind) is None
    await response.prepare(client.request)
    client.heartbeat.pass_items(response, kind)
    for chunk in chunks:
        if chunk:
            await client.heartbeat.write(response, chunk)
        await client.pass_time()
    await client.heartbeat.end_items()
    await response.write_eof()
    await client.pass_time()
    assert [part for part in client.writer.written if not part.startswith(b"HTTP/")] == [*written, b"end"]
    client.work_may_end.set()
    assert await during == "done"


async def test_a_blank_comes_an_interval_after_the_last_item() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    await response.prepare(client.request)
    client.heartbeat.pass_items(response, NDJSON)
    for _ in range(4):  # items that come often enough
        await client.clock.wait_for_timers()
        client.clock.advance(INTERVAL_S * 0.7)
        await client.heartbeat.write(response, b"1\n")
        await anyio.wait_all_tasks_blocked()
    assert b"\n" not in client.writer.written
    await client.pass_time()
    await client.pass_time()
    assert client.writer.written[-2:] == [b"\n", b"\n"]
    client.work_may_end.set()
    assert await during == "done"


async def test_a_body_of_a_known_length_gets_no_blanks() -> None:
    client = WaitingClient()
    during = asyncio.create_task(client.heartbeat.during(client.work()))
    response = web.StreamResponse(headers={"Content-Type": NDJSON, "Content-Length": "4"})
    await response.prepare(client.request)
    client.heartbeat.pass_items(response, NDJSON)
    await client.heartbeat.write(response, b"1\n")
    await client.pass_time()
    assert client.writer.written[-1] == b"1\n"
    client.work_may_end.set()
    assert await during == "done"
