"""Newlines while a client waits for a long job (authoring.md §1 `keepalive_s`, lesson 32), on the wire."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.backend import Backend
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.fakes import shapes
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import JobHandler, Setup
from tests.manual_clock import ManualClock
from tests.system import GUARD_S, System, with_worker_task

KEEPALIVE_S = 0.25
BINARY_SAID = {"error": "internal error", "request": "mine-1"}
MINE = {"X-Request-Id": "mine-1"}
Answer = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


async def by_default(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.json_response({"own": True})


@dataclass
class Script:
    """What the author's code does: `answer` makes the client's, whatever waits goes on once `opened`."""

    answer: Answer = by_default
    opened: anyio.Event = field(default_factory=anyio.Event)
    began: anyio.Event = field(default_factory=anyio.Event)
    left: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    told: anyio.Event = field(default_factory=anyio.Event)

    async def gate(self, request: web.Request) -> web.StreamResponse:
        """Keeps the only slot until it is opened."""
        await self.opened.wait()
        return web.Response()

    async def headed(self, request: web.Request) -> web.StreamResponse:
        """Waits for a body's length, too."""
        await self.wait()
        return web.Response(text="12345")

    async def wait(self) -> None:
        self.began.set()
        await self.opened.wait()


@dataclass(kw_only=True)
class ScriptedHandler(JobHandler):
    script: Script

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        return await self.script.answer(client_request, model_response)

    async def on_client_disconnect(self, payload: Any) -> None:
        self.script.left.append(payload.data)
        self.script.told.set()


@dataclass
class Stage:
    """A system whose time stands still, with the author's script."""

    system: System
    clock: ManualClock
    script: Script

    @property
    def backend(self) -> Backend:
        assert self.system.backend is not None
        return self.system.backend

    def outcomes(self) -> dict[str, int]:
        return {o.name.lower(): count for o, count in self.backend.metrics.outcomes.items()}

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds; no time passes meanwhile."""
        with anyio.fail_after(GUARD_S):
            while not condition():
                await anyio.lowlevel.checkpoint()

    async def newline(self, client: RawClient) -> None:
        """Another `KEEPALIVE_S` pass, and `client` gets a newline and nothing else."""
        self.clock.advance(KEEPALIVE_S)
        assert await client.chunk() == b"\n"

    async def first_newline(self, client: RawClient) -> None:
        """As `newline`, the head before it."""
        self.clock.advance(KEEPALIVE_S)
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/json")
        assert head.headers["transfer-encoding"] == "chunked"
        assert await client.chunk() == b"\n"

    async def told(self, *statuses: str, served: float = 0.0) -> None:
        """The worker stops, having told the engine of as many requests as `statuses`, which are theirs."""
        assert self.system.stop is not None
        if not self.system.stop.asked.is_set():
            self.system.stop.ask()
        await self.until(lambda: self.system.exit_status is not None)
        finished = {f.request.request_idx: f.request.status for f in self.system.engine.finished}
        assert sorted(finished.values()) == sorted(statuses)
        assert (self.system.totals.cur_perf, self.system.last_report.cur_load) == (served, 0.0)


@asynccontextmanager
async def staged(
    tmp_path: Path, handler: dict[str, Any] | None = None, **settings: Any
) -> AsyncGenerator[Stage, None]:
    """All handlers, with `handler`'s fields, wait in one queue; `/gate` has no newlines, all others have."""
    clock, script = ManualClock(), Script()
    fields: dict[str, Any] = {"keepalive_s": KEEPALIVE_S, "allow_parallel_requests": False, **(handler or {})}
    setup = Setup(health="/health", handler=fields, backend={"clock": clock})

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = shapes.build(model_url, setup)
        gate = backend.guard(script.gate, allow_parallel_requests=False, workload=0.0)
        scripted = ScriptedHandler(path="/echo", script=script, **fields)
        slow = ScriptedHandler(path="/held", script=script, **fields)
        headed = backend.guard(script.headed, **fields)
        return backend, [
            *routes,
            web.post("/gate", gate),
            web.post("/scripted", backend.create_handler(scripted)),
            web.post("/scripted/held", backend.create_handler(slow)),
            web.get("/headed", headed),
        ]

    async with with_worker_task(tmp_path, setup, make=make, **settings) as system:
        yield Stage(system, clock, script)


@asynccontextmanager
async def asking(
    stage: Stage, path: str, data: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[RawClient, None]:
    """A client that has asked `path`, once its request is in the queue, or at work."""
    async with connected(stage.system.url) as client:
        before = sum((stage.backend.lanes.waiting, stage.backend.lanes.working))
        await client.post(path, stage.system.envelope(1.0, data), **options)
        await stage.until(lambda: sum((stage.backend.lanes.waiting, stage.backend.lanes.working)) > before)
        yield client


@asynccontextmanager
async def late(
    stage: Stage, path: str, data: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[RawClient, None]:
    """A client that has asked `path` and has had a newline in the queue; from then on the way is free."""
    async with asking(stage, "/gate"), asking(stage, path, data, **options) as client:
        await stage.first_newline(client)
        stage.script.opened.set()
        yield client


async def rest_of(client: RawClient) -> bytes:
    """What comes after the newlines, to the end of the answer."""
    body = b""
    while part := await client.chunk():
        body += part
    return body


async def still_good(stage: Stage, client: RawClient) -> None:
    """Nothing follows the answer that was read: the connection serves another request."""
    await client.post("/echo", stage.system.envelope())
    head, _ = await client.answer()
    assert (head.status, "content-length" in head.names) == (200, True)


# Before the first newline


async def test_what_is_quicker_than_the_first_newline_keeps_its_status_and_headers(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with asking(stage, "/held") as client:
            await stage.system.model.until(lambda: stage.system.model.working == 1)
            stage.clock.advance(KEEPALIVE_S - 0.1)
            stage.system.model.release()
            head, body = await client.answer()
            assert (head.status, body) == (200, b'{"done": true}')
            assert head.headers["content-length"] == "14"
            for path, status, kind, said in (
                ("/error500", 500, "text/html", b"<h1>CUDA out of memory</h1>"),
                ("/error422", 422, "application/json", b'{"detail": "no such parameter"}'),
                ("/close", 502, "application/json; charset=utf-8", None),
            ):
                await client.post(path, stage.system.envelope())
                head, body = await client.answer()
                assert (head.status, head.headers["content-type"]) == (status, kind)
                assert said is None or body == said
            await client.post("/raising", stage.system.envelope(data={"raise": "response"}))
            assert (await client.answer())[0].status == 500
        assert stage.outcomes() == {"served": 2, "errored": 3}


async def test_nought_seconds_are_no_newlines(tmp_path: Path) -> None:
    async with staged(tmp_path, {"keepalive_s": 0.0}) as stage, asking(stage, "/held") as client:
        await stage.system.model.until(lambda: stage.system.model.working == 1)
        stage.clock.advance(100.0)
        stage.system.model.release()
        head, body = await client.answer()
        assert (head.headers["content-length"], body) == ("14", b'{"done": true}')


# Newlines, and then the answer


async def test_newlines_while_it_is_queued_and_while_the_model_works(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, "/held") as client:  # the first one came in the queue
            await stage.system.model.until(lambda: stage.system.model.working == 1)
            for _ in range(3):
                await stage.newline(client)
            stage.clock.advance(KEEPALIVE_S - 0.1)  # no newline yet
            stage.system.model.release()
            assert await rest_of(client) == b'{"done": true}'
            await still_good(stage, client)
        await stage.told("Success", "Success", "Success", served=2.0)


async def test_the_whole_body_is_json(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with asking(stage, "/gate"):
            asked = asyncio.create_task(stage.system.call("/echo"))
            await stage.until(lambda: (stage.backend.lanes.waiting, stage.backend.lanes.working) == (1, 1))
            for _ in range(4):
                stage.clock.advance(KEEPALIVE_S)
                await anyio.wait_all_tasks_blocked()
            stage.script.opened.set()
            status, body = await asked
        assert (status, body[:5]) == (200, b"\n\n\n\n{")
        assert json.loads(body)["path"] == "/echo"
        assert body.count(b"\n") == 4


async def test_a_late_stream_flows_into_the_same_body_without_a_newline_in_it(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, "/stream") as client:
            for number in range(3):
                stage.system.model.step()
                assert await client.chunk() == b"data: token %d\n\n" % number
                stage.clock.advance(3 * KEEPALIVE_S)
                await anyio.wait_all_tasks_blocked()
            stage.system.model.release()
            assert await rest_of(client) == b"data: [DONE]\n\n"
            await still_good(stage, client)
        await stage.told("Success", "Success", "Success", served=2.0)


async def test_nothing_compressed_is_asked_for_or_follows_newlines(tmp_path: Path) -> None:
    packed = {"Accept-Encoding": "gzip, br"}
    async with staged(tmp_path) as stage:
        async with connected(stage.system.url) as client:
            await client.post("/echo", stage.system.envelope(), packed)
            assert "Accept-Encoding" not in json.loads((await client.answer())[1])["headers"]
            await client.post("/gzip", stage.system.envelope(), packed)
            head, body = await client.answer()
            assert ("content-encoding" in head.names, body) == (False, b'{"packed": true}')
        async with late(stage, "/gzip", headers=packed) as client:
            assert await rest_of(client) == b'{"packed": true}'
        assert stage.outcomes() == {"served": 4}


async def test_a_head_has_no_newlines_and_the_length_of_its_get(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage, connected(stage.system.url) as client:
        await client.send(head_bytes("/headed", stage.system.header()))
        with anyio.fail_after(GUARD_S):
            await stage.script.began.wait()
        stage.clock.advance(3 * KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        stage.script.opened.set()
        head = await client.head()
        assert (head.status, head.headers["content-length"]) == (200, "5")
        await still_good(stage, client)
        assert stage.outcomes() == {"served": 2}


def head_bytes(path: str, headers: dict[str, str]) -> bytes:
    return request_bytes(path, b"", headers).replace(b"POST", b"HEAD", 1)


@pytest.mark.parametrize("headers", [{}, {"Connection": "keep-alive"}])
async def test_a_client_of_http_1_0(tmp_path: Path, headers: dict[str, str]) -> None:
    async with (
        staged(tmp_path) as stage,
        asking(stage, "/gate"),
        asking(stage, "/held", headers=headers, version=b"1.0") as client,
    ):
        stage.clock.advance(KEEPALIVE_S)
        head = await client.head()
        assert (head.status, "transfer-encoding" in head.names) == (200, False)
        assert await client.exactly(1) == b"\n"
        stage.script.opened.set()
        stage.system.model.release()
        assert await client.rest() == b'{"done": true}'


# Failures after the first newline are told in the body

LATE_FAILURES: dict[str, Any] = {
    "/error500": {"error": "<h1>CUDA out of memory</h1>"},
    "/error422": {"error": {"detail": "no such parameter"}},
    "/close": {"error": "the model server could not be reached: Server disconnected"},
    "/binary": BINARY_SAID,
}


@pytest.mark.parametrize("path", LATE_FAILURES)
async def test_a_late_failure_of_the_models(tmp_path: Path, path: str) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, path, headers=MINE) as client:
            assert json.loads(await rest_of(client)) == LATE_FAILURES[path]
            await still_good(stage, client)
        await stage.told("Success", "Error", "Success", served=1.0)


async def test_a_models_own_error_is_not_nested(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        stage.system.model.fail_status = 503
        async with late(stage, "/echo") as client:
            assert await rest_of(client) == b'{"error": "broken GPU"}'
        assert stage.outcomes() == {"served": 1, "errored": 1}


async def test_a_late_time_out(tmp_path: Path) -> None:
    async with staged(tmp_path, model_timeout_s=0.05) as stage:
        async with late(stage, "/held") as client:
            assert json.loads(await rest_of(client)) == {"error": "the model server took too long"}
        assert stage.outcomes() == {"served": 1, "errored": 1}


async def test_a_late_time_out_while_the_author_reads(tmp_path: Path) -> None:
    async def slow(request: web.Request, answer: Any) -> web.StreamResponse:
        raise TimeoutError

    async with staged(tmp_path) as stage:
        stage.script.answer = slow
        async with late(stage, "/scripted") as client:
            assert json.loads(await rest_of(client)) == {"error": "the model server took too long"}
        assert stage.outcomes() == {"served": 1, "errored": 1}


async def test_a_handler_that_raises_late(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, "/raising", {"raise": "response"}, headers=MINE) as client:
            assert json.loads(await rest_of(client)) == {"error": "internal error", "request": "mine-1"}
        logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert logged == ["request mine-1: unexpected error"]
        assert "response bug" in caplog.text
        await stage.told("Success", "Error")


async def test_a_connection_of_the_authors_own_that_fails_is_not_the_clients(tmp_path: Path) -> None:
    async def fails(request: web.Request, answer: Any) -> web.StreamResponse:
        raise ConnectionRefusedError("the author's database")

    async with staged(tmp_path) as stage, connected(stage.system.url) as client:
        stage.script.answer = fails
        await client.post("/scripted", stage.system.envelope())
        head, _ = await client.answer()
        assert (head.status, stage.outcomes()) == (500, {"errored": 1})


async def test_429_after_newlines(tmp_path: Path) -> None:
    async with staged(tmp_path, {"max_queue_time": 1.5 * KEEPALIVE_S}) as stage:
        async with asking(stage, "/gate"), asking(stage, "/echo") as client:
            await stage.first_newline(client)
            stage.clock.advance(KEEPALIVE_S / 2)
            told = json.loads(await rest_of(client))
            assert told == {"error": "no slot came free within 0.375 s"}
            stage.script.opened.set()
            await still_good(stage, client)
        assert len(stage.system.model.requests) == 1
        await stage.told("Success", "Error", "Success", served=1.0)


async def test_503_by_a_drain_after_newlines(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with asking(stage, "/gate"), asking(stage, "/echo") as client:
            await stage.first_newline(client)
            stage.backend.running.drain()
            told = json.loads(await rest_of(client))
            assert told == {"error": "the worker is stopping", "state": "draining"}
            stage.script.opened.set()
        await stage.told("Success", "Error")


@pytest.mark.parametrize("path", ["/cut_stream", "/cut_whole"])
async def test_a_model_that_dies_in_its_late_answer_aborts_the_connection(tmp_path: Path, path: str) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, path) as client:
            with pytest.raises(ConnectionError):
                await rest_of(client)
        await stage.told("Success", "Error")


# What the author answers


async def test_the_authors_own_response_before_the_first_newline_stops_them(tmp_path: Path) -> None:
    async def streams(request: web.Request, answer: Any) -> web.StreamResponse:
        response = web.StreamResponse(status=203, headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        await response.write(b"RIFF")
        await stage.script.wait()
        await response.write(b"WAVE")
        return response

    async with staged(tmp_path) as stage, connected(stage.system.url) as client:
        stage.script.answer = streams
        await client.post("/scripted", stage.system.envelope())
        await stage.script.began.wait()
        stage.clock.advance(3 * KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        stage.script.opened.set()
        head, body = await client.answer()
        assert (head.status, head.headers["content-type"], body) == (203, "audio/wav", b"RIFFWAVE")
        await still_good(stage, client)
        assert stage.outcomes() == {"served": 2}


async def prepared(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    await response.prepare(request)
    await response.write_eof()
    return response


async def own_stream(request: web.Request, answer: Any) -> web.StreamResponse:
    return await prepared(request, web.StreamResponse(status=203))


async def own_whole(request: web.Request, answer: Any) -> web.StreamResponse:
    return await prepared(request, web.Response(text="ok"))  # whose length is less than the error's


async def own_file(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.FileResponse(__file__)


async def unprepared(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.StreamResponse(headers={"Content-Type": "application/json"})


async def binary(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.Response(body=b"\x00\xff", content_type="application/octet-stream")


async def compressed(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.json_response({}, headers={"Content-Encoding": "br"})


@pytest.mark.parametrize("answer", [own_stream, own_whole, own_file, unprepared, binary, compressed])
async def test_an_authors_response_that_newlines_spoil_is_an_error_in_the_body(
    tmp_path: Path, answer: Answer
) -> None:
    async with staged(tmp_path) as stage:
        stage.script.answer = answer
        async with asking(stage, "/gate"), asking(stage, "/scripted", headers=MINE) as client:
            stage.clock.advance(KEEPALIVE_S)
            await anyio.wait_all_tasks_blocked()  # the newline is out
            stage.script.opened.set()
            await stage.until(lambda: "errored" in stage.outcomes())
            await client.post("/ping", b"", {"Connection": "close"})
            raw = await client.rest()
        assert raw.count(b"HTTP/1.1 200 OK\r\n") == 1
        body = raw.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 405")[0]
        told = json.dumps(BINARY_SAID).encode()
        assert body == b"1\r\n\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(told), told)
        assert stage.outcomes() == {"served": 1, "errored": 1}


async def test_an_authors_compressed_response_after_newlines_aborts_the_connection(tmp_path: Path) -> None:
    async def packs(request: web.Request, answer: Any) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_compression(web.ContentCoding.gzip)
        return await prepared(request, response)

    async with staged(tmp_path) as stage:
        stage.script.answer = packs
        async with late(stage, "/scripted") as client:
            assert await client.rest() == b""
        assert stage.outcomes() == {"served": 1, "errored": 1}


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"a": 1}', b'{"a": 1}'),
        (200, b"", b""),
        (409, b'{"error": "x", "b": 2}', b'{"error": "x", "b": 2}'),
        (500, b"", b'{"error": "500 Internal Server Error"}'),
        (500, b"[" * 100_000, b'{"error": "' + b"[" * 100_000 + b'"}'),
        (500, b"\xff", b'{"error": "\\ufffd"}'),
    ],
)
async def test_an_authors_whole_response_is_told_in_the_body(
    tmp_path: Path, status: int, body: bytes, told: bytes
) -> None:
    async def whole(request: web.Request, answer: Any) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type="application/json")

    async with staged(tmp_path) as stage:
        stage.script.answer = whole
        async with late(stage, "/scripted") as client:
            assert await rest_of(client) == told
            await still_good(stage, client)
        assert stage.outcomes() == ({"served": 3} if status < 400 else {"served": 2, "errored": 1})


# The client leaves


@pytest.mark.parametrize("way", ["leave", "half_close"])
async def test_a_client_that_leaves_between_newlines_cancels_the_job(tmp_path: Path, way: str) -> None:
    async with staged(tmp_path) as stage:
        async with late(stage, "/scripted/held", {"job": 1}) as client:
            await stage.system.model.until(lambda: stage.system.model.working == 1)
            await stage.newline(client)
            getattr(client, way)()
            await stage.system.model.until(lambda: stage.system.model.cancelled == 1)
            with anyio.fail_after(GUARD_S):
                await stage.script.told.wait()
        assert stage.script.left == [{"job": 1}]
        await stage.told("Success", "Cancelled")


async def test_a_client_that_leaves_between_newlines_leaves_the_queue(tmp_path: Path) -> None:
    async with staged(tmp_path) as stage:
        async with asking(stage, "/gate"):
            async with asking(stage, "/scripted") as client:
                await stage.first_newline(client)
                client.leave()
                await stage.until(
                    lambda: (stage.backend.lanes.waiting, stage.backend.lanes.working) == (0, 1)
                )
            stage.script.opened.set()
        await stage.told("Success", "Cancelled")
        assert (stage.script.left, stage.system.model.requests) == ([], [])


async def test_a_job_that_is_to_be_finished_goes_on_and_counts_as_served(tmp_path: Path) -> None:
    async with staged(tmp_path, {"on_disconnect": "finish"}) as stage:
        async with late(stage, "/held") as client:
            await stage.system.model.until(lambda: stage.system.model.working == 1)
            await stage.newline(client)
            client.leave()
        for _ in range(3):
            stage.clock.advance(KEEPALIVE_S)
            await anyio.wait_all_tasks_blocked()
        assert (stage.backend.lanes.waiting, stage.backend.lanes.working) == (0, 1)
        stage.system.model.release()
        await stage.told("Success", "Success", served=1.0)
        assert stage.system.model.cancelled == 0


async def test_a_job_that_is_to_be_finished_leaves_the_queue_with_its_client(tmp_path: Path) -> None:
    async with staged(tmp_path, {"on_disconnect": "finish"}) as stage:
        async with asking(stage, "/gate"):
            async with asking(stage, "/held") as client:
                await stage.first_newline(client)
                client.leave()
                await stage.until(
                    lambda: (stage.backend.lanes.waiting, stage.backend.lanes.working) == (0, 1)
                )
            stage.script.opened.set()
        await stage.told("Success", "Cancelled")
        assert stage.system.model.requests == []


async def test_a_job_that_is_cut_by_the_workers_end_is_errored(tmp_path: Path) -> None:
    async with staged(tmp_path, drain_timeout_s=0.05) as stage:
        async with late(stage, "/held") as client:
            await stage.system.model.until(lambda: stage.system.model.working == 1)
            assert stage.system.stop is not None
            stage.system.stop.ask()
            with pytest.raises(ConnectionError):
                await rest_of(client)
        await stage.told("Success", "Error")
        assert stage.system.model.cancelled == 1


# Declared


@asynccontextmanager
async def declared(tmp_path: Path, *handlers: HandlerConfig, url: bool = True) -> AsyncGenerator[Stage, None]:
    clock = ManualClock()

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        worker = Worker(
            WorkerConfig(
                model_server_url=model_url if url else None,
                model_healthcheck_url="/health" if url else None,
                handlers=list(handlers),
            )
        )
        worker.backend.clock = clock
        return worker.backend, worker.routes

    async with with_worker_task(tmp_path, make=make) as system:
        yield Stage(system, clock, Script())


async def test_declared_newlines_and_a_late_error(tmp_path: Path) -> None:
    def answer(request: web.Request, response: Any) -> web.StreamResponse:
        return web.json_response({"own": True}, status=418)

    async with declared(
        tmp_path,
        HandlerConfig("/held", keepalive_s=KEEPALIVE_S, allow_parallel_requests=True),
        HandlerConfig("/own/held", keepalive_s=KEEPALIVE_S, response_generator=answer),
    ) as stage:
        async with asking(stage, "/held") as plain, asking(stage, "/own/held") as own:
            await stage.system.model.until(lambda: stage.system.model.working == 2)
            await stage.first_newline(plain)
            assert (await own.head()).status == 200
            stage.system.model.release()
            assert await rest_of(plain) == b'{"done": true}'
            assert await rest_of(own) == b'\n{"error": {"own": true}}'
        assert stage.outcomes() == {"served": 1, "errored": 1}


async def test_functions_have_newlines_and_a_plain_one_keeps_its_place_until_it_is_done(
    tmp_path: Path,
) -> None:
    began, go = threading.Event(), threading.Event()

    def works(workload: float, data: Any) -> str:
        began.set()
        assert go.wait(GUARD_S)
        return "done"

    handler = HandlerConfig("/works", keepalive_s=KEEPALIVE_S, remote_function=works)
    async with declared(tmp_path, handler, url=False) as stage:
        async with asking(stage, "/works") as stays, asking(stage, "/works") as leaves:
            await stage.first_newline(stays)
            assert (await leaves.head()).status == 200
            go.set()
            assert await rest_of(stays) == b'{"result": "done"}'
            assert await rest_of(leaves) == b'\n{"result": "done"}'
        began.clear()
        go.clear()
        async with asking(stage, "/works") as leaves:
            await stage.first_newline(leaves)
            await stage.until(began.is_set)
            leaves.leave()
        stage.clock.advance(KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        assert ((stage.backend.lanes.waiting, stage.backend.lanes.working), stage.outcomes()) == (
            (0, 1),
            {"served": 2},
        )
        go.set()
        await stage.told("Success", "Success", "Cancelled", served=200.0)


async def test_a_function_of_items_flows_into_the_same_body(tmp_path: Path) -> None:
    script = Script()

    async def items(workload: float, data: Any) -> AsyncGenerator[int, None]:
        await script.wait()
        yield 1
        yield 2

    handler = HandlerConfig("/items", keepalive_s=KEEPALIVE_S, remote_function=items)
    async with declared(tmp_path, handler, url=False) as stage, asking(stage, "/items") as client:
        await stage.first_newline(client)
        script.opened.set()
        assert await rest_of(client) == b"1\n2\n"
