"""Answers that begin and then stop (docs/protocol.md, "Passing the answer on"), with all kinds of clients.

The clock is a manual one; the model server sends what the test says, byte by byte.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.backend import Backend
from lib.metrics import Outcome
from lib.model.stall import LOOKS
from lib.runtime.settings import CarrierKind
from tests.event_loop import run_event_loop_turns
from tests.fakes.raw_client import RawClient, connected
from tests.fakes.worker import JobHandler, Setup
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_task

LIMIT_S = 120.0
LATEST_S = LIMIT_S * (1 + 1 / LOOKS)
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP_STREAM = STREAM[:-2] + b"Content-Encoding: gzip\r\n\r\n"
TOKEN = b"data: token\n\n"
PING = b": ping\n\n"
PACKED = gzip.compress(TOKEN * 100)
CARRIERS = ["direct", "aiohttp"]
GB = 2**30


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class ReadingHandler(JobHandler):
    """Reads the whole answer before it answers."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        return web.Response(body=await model_response.read())


class BusyHandler(JobHandler):
    """Does something else between two reads, until `done` is set."""

    begun = asyncio.Event()
    done = asyncio.Event()

    async def generate_client_response(
        self, client_request: web.Request, model_response: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        first = await model_response.content.readany()
        self.begun.set()
        await self.done.wait()
        return web.Response(body=first + await model_response.read())


class DrivenModel:
    """A model server on whose connections the test sends; each carries one request."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked.set()
            while await reader.read(65536):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.left.set()
            writer.close()

    async def send(self, data: bytes) -> None:
        """Send `data` once a request has come; the worker has read it when this returns, if it reads."""
        with anyio.fail_after(GUARD_S):
            await self.asked.wait()
        assert self._writer is not None
        self._writer.write(data)
        await run_event_loop_turns()

    async def paused(self) -> None:
        """Return once the worker reads no more, although there is more to read."""
        assert self._writer is not None
        left_bytes = -1
        with anyio.fail_after(GUARD_S):
            while left_bytes != (left_bytes := self._writer.transport.get_write_buffer_size()):
                await run_event_loop_turns(200)
        assert left_bytes > 0


class Stage:
    """A worker with a manual clock between a client and the model server."""

    def __init__(self, system: System, model: DrivenModel, client: RawClient, clock: ManualClock) -> None:
        self.system = system
        self.model = model
        self.client = client
        self.clock = clock

    @property
    def outcomes(self) -> dict[Outcome, int]:
        assert self.system.backend is not None
        return dict(self.system.backend.metrics.outcomes)

    @property
    def cur_perf(self) -> float:
        assert self.system.backend is not None
        return self.system.backend.metrics.served_load

    @property
    def failures_in_a_row(self) -> int:
        assert self.system.running is not None
        return self.system.running.server.failures.count

    async def pass_time(self, seconds: float) -> None:
        await run_event_loop_turns()
        self.clock.advance(seconds)
        await run_event_loop_turns()

    async def ended(self) -> dict[Outcome, int]:
        assert self.system.backend is not None
        with anyio.fail_after(GUARD_S):
            await self.system.backend.metrics.emptied()
        return self.outcomes


@asynccontextmanager
async def stage(
    tmp_path: Path,
    carrier: CarrierKind,
    path: str,
    limit_s: float | None = LIMIT_S,
    default_s: float | None = None,
) -> AsyncGenerator[Stage, None]:
    """A request to `path` that waits for the model server's answer."""
    model, clock = DrivenModel(), ManualClock()
    server = await asyncio.start_server(model.connected, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def make(health_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend = Backend(
            model.url,
            healthcheck_url=f"{health_url}/health",
            allow_parallel_requests=True,
            clock=clock,
            model_stall_timeout_s=default_s,
        )
        handlers = {
            "/passed": JobHandler(),
            "/beating": JobHandler(keepalive_s=100 * LIMIT_S),
            "/read": ReadingHandler(),
            "/busy": BusyHandler(),
        }
        return backend, [web.post(p, backend.create_handler(h)) for p, h in handlers.items()]

    settings: dict[str, Any] = {"model_stall_timeout_s": limit_s, "client_stall_timeout_s": 1e6}
    BusyHandler.begun, BusyHandler.done = asyncio.Event(), asyncio.Event()
    try:
        async with (
            with_worker_task(tmp_path, make=make, carrier=carrier, **settings) as system,
            connected(system.url, limit=64 * 1024) as client,
        ):
            await client.post(path, system.envelope(7.0))
            yield Stage(system, model, client, clock)
    finally:
        server.close()


async def read_bytes(client: RawClient, size: int) -> None:
    """Read an answer's head, and this much of its body, which may be chunked."""
    head = await client.head()
    if "content-length" in head.headers:
        await client.exactly(size)
        return
    while size > 0:
        size -= len(await client.chunk())


# What the model server has sent when it stops, and whether that is the beginning of a body.
SILENCES = [
    pytest.param(b"", False, id="nothing"),
    pytest.param(STREAM[:20], False, id="a part of a head"),
    pytest.param(STREAM, False, id="a head"),
    pytest.param(STREAM + chunk(TOKEN), True, id="a token"),
    pytest.param(STREAM + chunk(TOKEN)[:6], True, id="a part of a token"),
    pytest.param(STREAM + chunk(PING), True, id="a comment"),
    pytest.param(OK + b"Content-Length: 100\r\n\r\n{", True, id="a part of a short answer"),
    pytest.param(OK + b"Content-Length: %d\r\n\r\n{" % GB, True, id="a part of a long answer"),
    pytest.param(OK + b"\r\n{", True, id="a part of an answer of unknown length"),
    pytest.param(GZIP_STREAM + chunk(PACKED[:20]), True, id="a part of a compressed answer"),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("path", ["/passed", "/beating", "/read"])
@pytest.mark.parametrize(("sent", "has_begun"), SILENCES)
async def test_an_answer_that_has_begun_and_stops_is_broken_off(
    tmp_path: Path,
    carrier: CarrierKind,
    path: str,
    sent: bytes,
    has_begun: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        async with stage(tmp_path, carrier, path) as here:
            await here.model.send(sent)
            await here.pass_time(LIMIT_S - 1.0)
            assert here.outcomes == {}
            await here.pass_time(LATEST_S - LIMIT_S + 1.0)
            if not has_begun:
                assert here.outcomes == {}  # `MODEL_TIMEOUT_S` is not set
                return
            assert await here.ended() == {Outcome.ERRORED: 1}
            assert here.cur_perf == 0.0
            assert here.failures_in_a_row == 1
            with anyio.fail_after(GUARD_S):
                await here.model.left.wait()
            got = await here.client.rest()
            assert not got.endswith(b"\r\n0\r\n\r\n")  # the client sees that it is not whole
    assert "answer broke off: nothing came for 120 s (MODEL_STALL_TIMEOUT_S)" in caplog.text


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("path", ["/passed", "/read"])
@pytest.mark.parametrize("progress", [chunk(PING), chunk(TOKEN), b"5\r\nd"])
async def test_every_byte_of_a_body_is_progress(
    tmp_path: Path, carrier: CarrierKind, path: str, progress: bytes
) -> None:
    async with stage(tmp_path, carrier, path) as here:
        await here.model.send(STREAM + chunk(TOKEN))
        await here.pass_time(LIMIT_S - 1.0)
        await here.model.send(progress)
        await here.pass_time(LIMIT_S - 1.0)
        assert here.outcomes == {}
        await here.pass_time(LATEST_S)
        assert await here.ended() == {Outcome.ERRORED: 1}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("path", ["/passed", "/beating", "/read"])
async def test_a_slow_stream_is_served(tmp_path: Path, carrier: CarrierKind, path: str) -> None:
    async with stage(tmp_path, carrier, path) as here:
        await here.model.send(STREAM)
        await here.pass_time(10 * LIMIT_S)  # before the first byte
        for _ in range(5):
            await here.model.send(chunk(TOKEN))
            await here.pass_time(LIMIT_S - 1.0)
        await here.model.send(b"0\r\n\r\n")
        assert await here.ended() == {Outcome.SERVED: 1}
        await here.pass_time(10 * LIMIT_S)  # the connection is idle, and closed by its own limit
        assert here.outcomes == {Outcome.SERVED: 1}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("path", ["/passed", "/beating"])
@pytest.mark.parametrize("head", [STREAM, OK + b"Content-Length: %d\r\n\r\n" % GB])
async def test_waiting_for_the_client_is_no_stall_of_the_model_server(
    tmp_path: Path, carrier: CarrierKind, path: str, head: bytes
) -> None:
    sent = (chunk(b"x" * 2**20) if head is STREAM else b"x" * 2**20) * 32  # more than sockets and worker hold
    async with stage(tmp_path, carrier, path) as here:
        await here.model.send(head + sent)
        await here.model.paused()
        await here.pass_time(10 * LIMIT_S)
        assert here.outcomes == {}
        await read_bytes(here.client, 32 * 2**20)
        await here.pass_time(LIMIT_S - 1.0)
        assert here.outcomes == {}
        await here.pass_time(LATEST_S)
        assert await here.ended() == {Outcome.ERRORED: 1}


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_what_the_handler_does_between_two_reads_is_no_stall(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with stage(tmp_path, carrier, "/busy") as here:
        await here.model.send(STREAM + chunk(TOKEN))
        with anyio.fail_after(GUARD_S):
            await BusyHandler.begun.wait()
        await here.pass_time(10 * LIMIT_S)
        assert here.outcomes == {}
        BusyHandler.done.set()
        await here.pass_time(LIMIT_S - 1.0)
        await here.model.send(chunk(TOKEN) + b"0\r\n\r\n")
        assert await here.ended() == {Outcome.SERVED: 1}


# What the environment says, the author's own default, and the limit that holds.
LIMITS = [(None, None, None), (None, 60.0, 60.0), (30.0, 60.0, 30.0), (0.0, 60.0, None), (30.0, None, 30.0)]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("given_s", "default_s", "limit_s"), LIMITS)
async def test_the_environment_overrides_the_workers_own_limit(
    tmp_path: Path,
    carrier: CarrierKind,
    given_s: float | None,
    default_s: float | None,
    limit_s: float | None,
) -> None:
    async with stage(tmp_path, carrier, "/passed", given_s, default_s) as here:
        await here.model.send(STREAM + chunk(TOKEN))
        await here.pass_time(24 * 3600.0 if limit_s is None else limit_s - 1.0)
        assert here.outcomes == {}
        if limit_s is not None:
            await here.pass_time(limit_s)
            assert await here.ended() == {Outcome.ERRORED: 1}
