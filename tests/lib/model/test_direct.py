"""A call's connection serves others as soon as its answer has come, and no client holds it up then."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from lib.errors import ModelTimedOut
from lib.model.direct import DirectCalls, ModelConnection, Origin, Outgoing, PostTarget
from lib.model.direct_relay import DirectRelay
from lib.request.incoming import Source
from tests.event_loop import run_event_loop_turns
from tests.manual_clock import ManualClock

TARGET = PostTarget(Origin("127.0.0.1", 1, False), b"POST / HTTP/1.1\r\nHost: m\r\n")


class RecordingTransport(asyncio.Transport):
    """A transport that is always open."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_paused = self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0


class StalledClient:
    """A client's connection that takes nothing; it pauses what it follows."""

    keep_alive = True
    is_write_paused = True

    def __init__(self) -> None:
        self.written = b""
        self.source: Source | None = None

    def write(self, data: bytes) -> None:
        self.written += data

    def follow(self, source: Source | None) -> None:
        self.source = source


class NotingExchange:
    """An exchange, as far as an answer that is passed on uses it."""

    def stream(self) -> None: ...

    def note_relayed_head(self, status: int) -> None: ...

    def note_chunk(self) -> None: ...


async def test_a_client_that_reads_slowly_does_not_pause_the_next_call() -> None:
    calls = DirectCalls(ManualClock())
    connection = ModelConnection(calls, TARGET.origin)
    connection.transport = transport = RecordingTransport()
    client = StalledClient()
    relay = DirectRelay(cast(Any, NotingExchange()), cast(Any, client), None)
    ended = connection.call(TARGET, Outgoing(b"", b"{}", False), relay, False, True)
    connection.flush()
    assert transport.written == [TARGET.head + b"Content-Length: 2\r\n\r\n{}"]
    connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
    assert client.source is transport
    connection.data_received(b"0\r\n\r\n")
    assert ended.done()
    assert client.source is None  # the connection may be another client's by now
    assert not transport.is_paused
    assert client.written.endswith(b"2\r\nab\r\n0\r\n\r\n")


async def test_an_early_end_of_the_connection_is_an_error_of_its_call() -> None:
    connection = ModelConnection(DirectCalls(ManualClock()), TARGET.origin)
    connection.transport = RecordingTransport()
    relay = DirectRelay(cast(Any, NotingExchange()), cast(Any, StalledClient()), None)
    ended = connection.call(TARGET, Outgoing(b"", b"{}", False), relay, False, True)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")
    connection.connection_lost(None)
    assert "broke off" in str(ended.exception())


async def test_a_cancelled_call_whose_answer_has_come_leaves_the_next_one_alone() -> None:
    connection = ModelConnection(DirectCalls(ManualClock()), TARGET.origin)
    connection.transport = transport = RecordingTransport()

    def call() -> asyncio.Future[None]:
        relay = DirectRelay(cast(Any, NotingExchange()), cast(Any, StalledClient()), None)
        return connection.call(TARGET, Outgoing(b"", b"{}", False), relay, False, True)

    first = call()
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    second = call()
    connection.cancel(first)  # its task has not run since
    connection.fail_call(first)
    assert not transport.is_aborted
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert second.exception() is None
    third = call()
    connection.cancel(third)
    assert transport.is_aborted
    assert third.cancelled()


async def test_the_time_limit_includes_connecting() -> None:
    clock = ManualClock()
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # one more connection waits to be accepted; further ones are not answered
        waiting.connect(full.getsockname())
        target = PostTarget(Origin("127.0.0.1", full.getsockname()[1], False), TARGET.head)
        async with DirectCalls(clock, timeout_s=2.0) as calls:
            relay = DirectRelay(cast(Any, NotingExchange()), cast(Any, StalledClient()), None)
            post = asyncio.ensure_future(calls.post(target, Outgoing(b"", b"{}", False), relay))
            await run_event_loop_turns()
            clock.advance(2.0)
            with pytest.raises(ModelTimedOut):
                await post
