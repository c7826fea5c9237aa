"""Newlines while a client waits for a long job, over real sockets (docs/protocol.md, "Heartbeat")."""

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
from tests.event_loop import run_event_loop_turns
from tests.fakes import varied_routes
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import JobHandler, Setup
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_task

KEEPALIVE_S = 0.25
BINARY_ERROR = {"error": "internal error", "request": "mine-1"}
MINE = {"X-Request-Id": "mine-1"}
Answer = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


async def by_default(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.json_response({"own": True})


@dataclass
class AuthorCode:
    """Author code controlled by the test: `answer` makes the response; `wait` ends once `opened` is set."""

    answer: Answer = by_default
    opened: anyio.Event = field(default_factory=anyio.Event)
    began: anyio.Event = field(default_factory=anyio.Event)
    left: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    informed: anyio.Event = field(default_factory=anyio.Event)

    async def gate(self, request: web.Request) -> web.StreamResponse:
        """Hold the only slot until `opened` is set."""
        await self.opened.wait()
        return web.Response()

    async def headed(self, request: web.Request) -> web.StreamResponse:
        """Wait, then answer with a body of known length."""
        await self.wait()
        return web.Response(text="12345")

    async def wait(self) -> None:
        self.began.set()
        await self.opened.wait()


@dataclass(kw_only=True)
class AuthorHandler(JobHandler):
    author: AuthorCode

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        return await self.author.answer(client_request, model_response)

    async def on_client_disconnect(self, payload: Any) -> None:
        self.author.left.append(payload.data)
        self.author.informed.set()


@dataclass
class HeartbeatScenario:
    """A system with a manual clock and controlled author code."""

    system: System
    clock: ManualClock
    author: AuthorCode

    @property
    def backend(self) -> Backend:
        assert self.system.backend is not None
        return self.system.backend

    def outcomes(self) -> dict[str, int]:
        return {o.name.lower(): count for o, count in self.backend.metrics.outcomes.items()}

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds, without advancing the clock."""
        with anyio.fail_after(GUARD_S):
            while not condition():
                await anyio.lowlevel.checkpoint()

    async def newline(self, client: RawClient) -> None:
        """Advance by `KEEPALIVE_S`; check that `client` gets one newline and nothing else."""
        self.clock.advance(KEEPALIVE_S)
        assert await client.chunk() == b"\n"

    async def first_newline(self, client: RawClient) -> None:
        """As `newline`, with the head before it."""
        self.clock.advance(KEEPALIVE_S)
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "application/json")
        assert head.headers["transfer-encoding"] == "chunked"
        assert await client.chunk() == b"\n"

    async def stop_and_check(self, *statuses: str, served: float = 0.0) -> None:
        """Stop the worker; compare the reported statuses and the load served."""
        assert self.system.stop is not None
        if not self.system.stop.asked.is_set():
            self.system.stop.ask()
        await self.until(lambda: self.system.exit_status is not None)
        finished = {f.request.request_idx: f.request.status for f in self.system.engine.finished}
        assert sorted(finished.values()) == sorted(statuses)
        assert (self.system.totals.cur_perf, self.system.last_report.cur_load) == (served, 0.0)


@asynccontextmanager
async def with_scenario(
    tmp_path: Path, handler: dict[str, Any] | None = None, **settings: Any
) -> AsyncGenerator[HeartbeatScenario, None]:
    """A scenario with one slot for all routes; all but `/gate` send newlines. `handler` sets fields."""
    clock, author = ManualClock(), AuthorCode()
    fields: dict[str, Any] = {"keepalive_s": KEEPALIVE_S, "allow_parallel_requests": False, **(handler or {})}
    setup = Setup(health="/health", handler=fields, backend={"clock": clock})

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = varied_routes.build(model_url, setup)
        gate = backend.guard(author.gate, allow_parallel_requests=False, workload=0.0)
        scripted = AuthorHandler(path="/echo", author=author, **fields)
        slow = AuthorHandler(path="/held", author=author, **fields)
        headed = backend.guard(author.headed, **fields)
        return backend, [
            *routes,
            web.post("/gate", gate),
            web.post("/scripted", backend.create_handler(scripted)),
            web.post("/scripted/held", backend.create_handler(slow)),
            web.get("/headed", headed),
        ]

    async with with_worker_task(tmp_path, setup, make=make, **settings) as system:
        yield HeartbeatScenario(system, clock, author)


@asynccontextmanager
async def requesting(
    scenario: HeartbeatScenario, path: str, data: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[RawClient, None]:
    """Connect a client and POST to `path`; yield it once its request is in the queue or being served."""
    async with connected(scenario.system.url) as client:
        before = sum((scenario.backend.lanes.waiting, scenario.backend.lanes.working))
        await client.post(path, scenario.system.envelope(1.0, data), **options)
        await scenario.until(
            lambda: sum((scenario.backend.lanes.waiting, scenario.backend.lanes.working)) > before
        )
        yield client


@asynccontextmanager
async def after_first_newline(
    scenario: HeartbeatScenario, path: str, data: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[RawClient, None]:
    """As `requesting`, after one newline in the queue; the slot is free from then on."""
    async with requesting(scenario, "/gate"), requesting(scenario, path, data, **options) as client:
        await scenario.first_newline(client)
        scenario.author.opened.set()
        yield client


async def rest_of(client: RawClient) -> bytes:
    """The body after the newlines, to the end of the answer."""
    body = b""
    while part := await client.chunk():
        body += part
    return body


async def still_good(scenario: HeartbeatScenario, client: RawClient) -> None:
    """Check that the connection serves another request, so nothing followed the answer that was read."""
    await client.post("/echo", scenario.system.envelope())
    head, _ = await client.answer()
    assert (head.status, "content-length" in head.names) == (200, True)


# Before the first newline


async def test_an_answer_before_the_first_newline_keeps_its_status_and_headers(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with requesting(scenario, "/held") as client:
            await scenario.system.model.until(lambda: scenario.system.model.working == 1)
            scenario.clock.advance(KEEPALIVE_S - 0.1)
            scenario.system.model.release()
            head, body = await client.answer()
            assert (head.status, body) == (200, b'{"done": true}')
            assert head.headers["content-length"] == "14"
            for path, status, kind, expected_body in (
                ("/error500", 500, "text/html", b"<h1>CUDA out of memory</h1>"),
                ("/error422", 422, "application/json", b'{"detail": "no such parameter"}'),
                ("/close", 502, "application/json; charset=utf-8", None),
            ):
                await client.post(path, scenario.system.envelope())
                head, body = await client.answer()
                assert (head.status, head.headers["content-type"]) == (status, kind)
                assert expected_body is None or body == expected_body
            await client.post("/raising", scenario.system.envelope(data={"raise": "response"}))
            assert (await client.answer())[0].status == 500
        assert scenario.outcomes() == {"served": 2, "errored": 3}


async def test_zero_seconds_turn_newlines_off(tmp_path: Path) -> None:
    async with (
        with_scenario(tmp_path, {"keepalive_s": 0.0}) as scenario,
        requesting(scenario, "/held") as client,
    ):
        await scenario.system.model.until(lambda: scenario.system.model.working == 1)
        scenario.clock.advance(100.0)
        scenario.system.model.release()
        head, body = await client.answer()
        assert (head.headers["content-length"], body) == ("14", b'{"done": true}')


# Newlines, then the answer


async def test_newlines_are_sent_in_the_queue_and_while_the_model_works(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, "/held") as client:  # the first newline came in the queue
            await scenario.system.model.until(lambda: scenario.system.model.working == 1)
            for _ in range(3):
                await scenario.newline(client)
            scenario.clock.advance(KEEPALIVE_S - 0.1)  # no newline yet
            scenario.system.model.release()
            assert await rest_of(client) == b'{"done": true}'
            await still_good(scenario, client)
        await scenario.stop_and_check("Success", "Success", "Success", served=2.0)


@dataclass
class PausingItems:
    """A function that pauses after its first item until `opened` is set."""

    opened: anyio.Event = field(default_factory=anyio.Event)

    async def __call__(self, workload: float, data: Any) -> AsyncGenerator[dict[str, int], None]:
        yield {"n": 1}
        await self.opened.wait()
        yield {"n": 2}


async def test_newlines_are_sent_between_the_items_of_a_function(tmp_path: Path) -> None:
    items = PausingItems()
    handler = HandlerConfig("/items", remote_function=items, keepalive_s=0.1)
    worker = Worker(WorkerConfig(handlers=[handler]))
    async with (
        with_worker_task(tmp_path, make=lambda url, setup: (worker.backend, worker.routes)) as system,
        connected(system.url) as client,
    ):
        await client.post("/items", system.envelope())
        assert (await client.head()).headers["content-type"] == "application/x-ndjson"
        assert [await client.chunk() for _ in range(3)] == [b'{"n": 1}\n', b"\n", b"\n"]
        items.opened.set()
        body = await rest_of(client)
    assert [json.loads(line) for line in body.split(b"\n") if line] == [{"n": 2}]


async def test_the_body_with_newlines_is_json(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with requesting(scenario, "/gate"):
            asked = asyncio.create_task(scenario.system.call("/echo"))
            await scenario.until(
                lambda: (scenario.backend.lanes.waiting, scenario.backend.lanes.working) == (1, 1)
            )
            for _ in range(4):
                scenario.clock.advance(KEEPALIVE_S)
                await anyio.wait_all_tasks_blocked()
            scenario.author.opened.set()
            status, body = await asked
        assert (status, body[:5]) == (200, b"\n\n\n\n{")
        assert json.loads(body)["path"] == "/echo"
        assert body.count(b"\n") == 4


async def test_a_stream_after_newlines_follows_in_the_same_body_with_comments_between_its_events(
    tmp_path: Path,
) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, "/stream") as client:
            for number in range(3):
                scenario.system.model.step()
                assert await client.chunk() == b"data: token %d\n\n" % number
                scenario.clock.advance(KEEPALIVE_S)
                assert await client.chunk() == b":\n\n"
            scenario.system.model.release()
            assert await rest_of(client) == b"data: [DONE]\n\n"
            await still_good(scenario, client)
        await scenario.stop_and_check("Success", "Success", "Success", served=2.0)


async def test_answers_after_newlines_are_never_compressed(tmp_path: Path) -> None:
    packed = {"Accept-Encoding": "gzip, br"}
    async with with_scenario(tmp_path) as scenario:
        async with connected(scenario.system.url) as client:
            await client.post("/echo", scenario.system.envelope(), packed)
            assert "Accept-Encoding" not in json.loads((await client.answer())[1])["headers"]
            await client.post("/gzip", scenario.system.envelope(), packed)
            head, body = await client.answer()
            assert ("content-encoding" in head.names, body) == (False, b'{"packed": true}')
        async with after_first_newline(scenario, "/gzip", headers=packed) as client:
            assert await rest_of(client) == b'{"packed": true}'
        assert scenario.outcomes() == {"served": 4}


async def test_a_head_request_gets_no_newlines_and_the_length_of_its_get(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario, connected(scenario.system.url) as client:
        await client.send(head_bytes("/headed", scenario.system.header()))
        with anyio.fail_after(GUARD_S):
            await scenario.author.began.wait()
        scenario.clock.advance(3 * KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        scenario.author.opened.set()
        head = await client.head()
        assert (head.status, head.headers["content-length"]) == (200, "5")
        await still_good(scenario, client)
        assert scenario.outcomes() == {"served": 2}


def head_bytes(path: str, headers: dict[str, str]) -> bytes:
    return request_bytes(path, b"", headers).replace(b"POST", b"HEAD", 1)


@pytest.mark.parametrize("headers", [{}, {"Connection": "keep-alive"}])
async def test_an_http_1_0_client_gets_newlines_unchunked(tmp_path: Path, headers: dict[str, str]) -> None:
    async with (
        with_scenario(tmp_path) as scenario,
        requesting(scenario, "/gate"),
        requesting(scenario, "/held", headers=headers, version=b"1.0") as client,
    ):
        scenario.clock.advance(KEEPALIVE_S)
        head = await client.head()
        assert (head.status, "transfer-encoding" in head.names) == (200, False)
        assert await client.exactly(1) == b"\n"
        scenario.author.opened.set()
        scenario.system.model.release()
        assert await client.rest() == b'{"done": true}'


# Failures after the first newline are reported in the body

LATE_FAILURES: dict[str, Any] = {
    "/error500": {"error": "<h1>CUDA out of memory</h1>"},
    "/error422": {"error": {"detail": "no such parameter"}},
    "/close": {"error": "the model server could not be reached: Server disconnected"},
    "/binary": BINARY_ERROR,
}


@pytest.mark.parametrize("path", LATE_FAILURES)
async def test_a_model_failure_after_newlines_is_an_error_in_the_body(tmp_path: Path, path: str) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, path, headers=MINE) as client:
            assert json.loads(await rest_of(client)) == LATE_FAILURES[path]
            await still_good(scenario, client)
        await scenario.stop_and_check("Success", "Error", "Success", served=1.0)


async def test_a_models_own_error_object_is_not_nested(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        scenario.system.model.fail_status = 503
        async with after_first_newline(scenario, "/echo") as client:
            assert await rest_of(client) == b'{"error": "broken GPU"}'
        assert scenario.outcomes() == {"served": 1, "errored": 1}


async def test_a_time_out_after_newlines_is_an_error_in_the_body(tmp_path: Path) -> None:
    async with with_scenario(tmp_path, model_timeout_s=0.05) as scenario:
        async with after_first_newline(scenario, "/held") as client:
            assert json.loads(await rest_of(client)) == {"error": "the model server took too long"}
        assert scenario.outcomes() == {"served": 1, "errored": 1}


async def test_a_time_out_while_the_author_reads_is_an_error_in_the_body(tmp_path: Path) -> None:
    async def slow(request: web.Request, answer: Any) -> web.StreamResponse:
        raise TimeoutError

    async with with_scenario(tmp_path) as scenario:
        scenario.author.answer = slow
        async with after_first_newline(scenario, "/scripted") as client:
            assert json.loads(await rest_of(client)) == {"error": "the model server took too long"}
        assert scenario.outcomes() == {"served": 1, "errored": 1}


async def test_a_handler_that_raises_after_newlines_is_an_error_in_the_body(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, "/raising", {"raise": "response"}, headers=MINE) as client:
            assert json.loads(await rest_of(client)) == {"error": "internal error", "request": "mine-1"}
        logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
        assert logged == ["request mine-1: unexpected error"]
        assert "response bug" in caplog.text
        await scenario.stop_and_check("Success", "Error")


async def test_a_failed_connection_of_the_authors_own_is_a_500(tmp_path: Path) -> None:
    async def fails(request: web.Request, answer: Any) -> web.StreamResponse:
        raise ConnectionRefusedError("the author's database")

    async with with_scenario(tmp_path) as scenario, connected(scenario.system.url) as client:
        scenario.author.answer = fails
        await client.post("/scripted", scenario.system.envelope())
        head, _ = await client.answer()
        assert (head.status, scenario.outcomes()) == (500, {"errored": 1})


async def test_429_after_newlines(tmp_path: Path) -> None:
    async with with_scenario(tmp_path, {"max_queue_time": 1.5 * KEEPALIVE_S}) as scenario:
        async with requesting(scenario, "/gate"), requesting(scenario, "/echo") as client:
            await scenario.first_newline(client)
            scenario.clock.advance(KEEPALIVE_S / 2)
            expected = json.loads(await rest_of(client))
            assert expected == {"error": "no slot came free within 0.375 s"}
            scenario.author.opened.set()
            await still_good(scenario, client)
        assert len(scenario.system.model.requests) == 1
        await scenario.stop_and_check("Success", "Error", "Success", served=1.0)


async def test_503_by_a_drain_after_newlines(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with requesting(scenario, "/gate"), requesting(scenario, "/echo") as client:
            await scenario.first_newline(client)
            scenario.backend.running.drain()
            expected = json.loads(await rest_of(client))
            assert expected == {"error": "the worker is stopping", "state": "draining"}
            scenario.author.opened.set()
        await scenario.stop_and_check("Success", "Error")


@pytest.mark.parametrize("path", ["/cut_stream", "/cut_whole"])
async def test_a_truncated_answer_after_newlines_aborts_the_connection(tmp_path: Path, path: str) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, path) as client:
            with pytest.raises(ConnectionError):
                await rest_of(client)
        await scenario.stop_and_check("Success", "Error")


# Responses made by the author


async def test_the_authors_own_response_before_the_first_newline_stops_them(tmp_path: Path) -> None:
    async def streams(request: web.Request, answer: Any) -> web.StreamResponse:
        response = web.StreamResponse(status=203, headers={"Content-Type": "audio/wav"})
        await response.prepare(request)
        await response.write(b"RIFF")
        await scenario.author.wait()
        await response.write(b"WAVE")
        return response

    async with with_scenario(tmp_path) as scenario, connected(scenario.system.url) as client:
        scenario.author.answer = streams
        await client.post("/scripted", scenario.system.envelope())
        await scenario.author.began.wait()
        scenario.clock.advance(3 * KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        scenario.author.opened.set()
        head, body = await client.answer()
        assert (head.status, head.headers["content-type"], body) == (203, "audio/wav", b"RIFFWAVE")
        await still_good(scenario, client)
        assert scenario.outcomes() == {"served": 2}


async def prepared(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    await response.prepare(request)
    await response.write_eof()
    return response


async def own_stream(request: web.Request, answer: Any) -> web.StreamResponse:
    return await prepared(request, web.StreamResponse(status=203))


async def own_whole(request: web.Request, answer: Any) -> web.StreamResponse:
    return await prepared(request, web.Response(text="ok"))  # shorter than the error's body


async def own_file(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.FileResponse(__file__)


async def unprepared(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.StreamResponse(headers={"Content-Type": "application/json"})


async def binary(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.Response(body=b"\x00\xff", content_type="application/octet-stream")


async def compressed(request: web.Request, answer: Any) -> web.StreamResponse:
    return web.json_response({}, headers={"Content-Encoding": "br"})


@pytest.mark.parametrize("answer", [own_stream, own_whole, own_file, unprepared, binary, compressed])
async def test_an_authors_response_incompatible_with_newlines_is_an_error_in_the_body(
    tmp_path: Path, answer: Answer
) -> None:
    async with with_scenario(tmp_path) as scenario:
        scenario.author.answer = answer
        async with requesting(scenario, "/gate"), requesting(scenario, "/scripted", headers=MINE) as client:
            scenario.clock.advance(KEEPALIVE_S)
            await anyio.wait_all_tasks_blocked()  # the newline has been sent
            scenario.author.opened.set()
            await scenario.until(lambda: "errored" in scenario.outcomes())
            await client.post("/ping", b"", {"Connection": "close"})
            raw = await client.rest()
        assert raw.count(b"HTTP/1.1 200 OK\r\n") == 1
        body = raw.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 405")[0]
        expected = json.dumps(BINARY_ERROR).encode()
        assert body == b"1\r\n\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(expected), expected)
        assert scenario.outcomes() == {"served": 1, "errored": 1}


async def test_an_authors_compressed_response_after_newlines_aborts_the_connection(tmp_path: Path) -> None:
    async def packs(request: web.Request, answer: Any) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_compression(web.ContentCoding.gzip)
        return await prepared(request, response)

    async with with_scenario(tmp_path) as scenario:
        scenario.author.answer = packs
        async with after_first_newline(scenario, "/scripted") as client:
            assert await client.rest() == b""
        assert scenario.outcomes() == {"served": 1, "errored": 1}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"a": 1}', b'{"a": 1}'),
        (200, b"", b""),
        (409, b'{"error": "x", "b": 2}', b'{"error": "x", "b": 2}'),
        (500, b"", b'{"error": "500 Internal Server Error"}'),
        (500, b"[" * 100_000, b'{"error": "' + b"[" * 100_000 + b'"}'),
        (500, b"\xff", b'{"error": "\\ufffd"}'),
    ],
)
async def test_an_authors_complete_response_follows_newlines_in_the_body(
    tmp_path: Path, status: int, body: bytes, expected: bytes
) -> None:
    async def whole(request: web.Request, answer: Any) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type="application/json")

    async with with_scenario(tmp_path) as scenario:
        scenario.author.answer = whole
        async with after_first_newline(scenario, "/scripted") as client:
            assert await rest_of(client) == expected
            await still_good(scenario, client)
        assert scenario.outcomes() == ({"served": 3} if status < 400 else {"served": 2, "errored": 1})


# The client leaves


@pytest.mark.parametrize("way", ["leave", "half_close"])
async def test_a_client_that_leaves_between_newlines_cancels_the_job(tmp_path: Path, way: str) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with after_first_newline(scenario, "/scripted/held", {"job": 1}) as client:
            await scenario.system.model.until(lambda: scenario.system.model.working == 1)
            await scenario.newline(client)
            getattr(client, way)()
            await scenario.system.model.until(lambda: scenario.system.model.cancelled == 1)
            with anyio.fail_after(GUARD_S):
                await scenario.author.informed.wait()
        assert scenario.author.left == [{"job": 1}]
        await scenario.stop_and_check("Success", "Cancelled")


@pytest.mark.parametrize("turns", range(8))
async def test_a_client_that_leaves_as_its_answer_begins_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, turns: int
) -> None:
    """However many turns of the event loop are between the two."""
    setup = Setup(health="/health", handler={"keepalive_s": 3600.0})
    async with with_worker_task(tmp_path, setup) as system:
        for path in ("/held", "/stream", "/flood"):
            async with connected(system.url) as client:
                await client.post(path, system.envelope())
                await run_event_loop_turns(turns * 3)
                client.leave()
                await run_event_loop_turns(turns)
                system.model.release()
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 0)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_client_that_leaves_between_newlines_is_removed_from_the_queue(tmp_path: Path) -> None:
    async with with_scenario(tmp_path) as scenario:
        async with requesting(scenario, "/gate"):
            async with requesting(scenario, "/scripted") as client:
                await scenario.first_newline(client)
                client.leave()
                await scenario.until(
                    lambda: (scenario.backend.lanes.waiting, scenario.backend.lanes.working) == (0, 1)
                )
            scenario.author.opened.set()
        await scenario.stop_and_check("Success", "Cancelled")
        assert (scenario.author.left, scenario.system.model.requests) == ([], [])


async def test_with_on_disconnect_finish_a_job_continues_and_counts_as_served(tmp_path: Path) -> None:
    async with with_scenario(tmp_path, {"on_disconnect": "finish"}) as scenario:
        async with after_first_newline(scenario, "/held") as client:
            await scenario.system.model.until(lambda: scenario.system.model.working == 1)
            await scenario.newline(client)
            client.leave()
        for _ in range(3):
            scenario.clock.advance(KEEPALIVE_S)
            await anyio.wait_all_tasks_blocked()
        assert (scenario.backend.lanes.waiting, scenario.backend.lanes.working) == (0, 1)
        scenario.system.model.release()
        await scenario.stop_and_check("Success", "Success", served=1.0)
        assert scenario.system.model.cancelled == 0


async def test_with_on_disconnect_finish_a_queued_job_is_removed_with_its_client(tmp_path: Path) -> None:
    async with with_scenario(tmp_path, {"on_disconnect": "finish"}) as scenario:
        async with requesting(scenario, "/gate"):
            async with requesting(scenario, "/held") as client:
                await scenario.first_newline(client)
                client.leave()
                await scenario.until(
                    lambda: (scenario.backend.lanes.waiting, scenario.backend.lanes.working) == (0, 1)
                )
            scenario.author.opened.set()
        await scenario.stop_and_check("Success", "Cancelled")
        assert scenario.system.model.requests == []


async def test_a_job_cut_by_the_drain_timeout_counts_as_errored(tmp_path: Path) -> None:
    async with with_scenario(tmp_path, drain_timeout_s=0.05) as scenario:
        async with after_first_newline(scenario, "/held") as client:
            await scenario.system.model.until(lambda: scenario.system.model.working == 1)
            assert scenario.system.stop is not None
            scenario.system.stop.ask()
            with pytest.raises(ConnectionError):
                await rest_of(client)
        await scenario.stop_and_check("Success", "Error")
        assert scenario.system.model.cancelled == 1


# Declared


@asynccontextmanager
async def declared(
    tmp_path: Path, *handlers: HandlerConfig, url: bool = True
) -> AsyncGenerator[HeartbeatScenario, None]:
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
        yield HeartbeatScenario(system, clock, AuthorCode())


async def test_a_declared_handler_sends_newlines_and_late_errors(tmp_path: Path) -> None:
    def answer(request: web.Request, response: Any) -> web.StreamResponse:
        return web.json_response({"own": True}, status=418)

    async with declared(
        tmp_path,
        HandlerConfig("/held", keepalive_s=KEEPALIVE_S, allow_parallel_requests=True),
        HandlerConfig("/own/held", keepalive_s=KEEPALIVE_S, response_generator=answer),
    ) as scenario:
        async with requesting(scenario, "/held") as plain, requesting(scenario, "/own/held") as own:
            await scenario.system.model.until(lambda: scenario.system.model.working == 2)
            await scenario.first_newline(plain)
            assert (await own.head()).status == 200
            scenario.system.model.release()
            assert await rest_of(plain) == b'{"done": true}'
            assert await rest_of(own) == b'\n{"error": {"own": true}}'
        assert scenario.outcomes() == {"served": 1, "errored": 1}


async def test_functions_send_newlines_and_a_plain_one_keeps_its_slot_until_it_returns(
    tmp_path: Path,
) -> None:
    began, go = threading.Event(), threading.Event()

    def works(workload: float, data: Any) -> str:
        began.set()
        assert go.wait(GUARD_S)
        return "done"

    handler = HandlerConfig("/works", keepalive_s=KEEPALIVE_S, remote_function=works)
    async with declared(tmp_path, handler, url=False) as scenario:
        async with requesting(scenario, "/works") as stays, requesting(scenario, "/works") as leaves:
            await scenario.first_newline(stays)
            assert (await leaves.head()).status == 200
            go.set()
            assert await rest_of(stays) == b'{"result": "done"}'
            assert await rest_of(leaves) == b'\n{"result": "done"}'
        began.clear()
        go.clear()
        async with requesting(scenario, "/works") as leaves:
            await scenario.first_newline(leaves)
            await scenario.until(began.is_set)
            leaves.leave()
        scenario.clock.advance(KEEPALIVE_S)
        await anyio.wait_all_tasks_blocked()
        assert ((scenario.backend.lanes.waiting, scenario.backend.lanes.working), scenario.outcomes()) == (
            (0, 1),
            {"served": 2},
        )
        go.set()
        await scenario.stop_and_check("Success", "Success", "Cancelled", served=200.0)


async def test_items_of_a_function_follow_newlines_in_the_same_body(tmp_path: Path) -> None:
    author = AuthorCode()

    async def items(workload: float, data: Any) -> AsyncGenerator[int, None]:
        await author.wait()
        yield 1
        yield 2

    handler = HandlerConfig("/items", keepalive_s=KEEPALIVE_S, remote_function=items)
    async with declared(tmp_path, handler, url=False) as scenario, requesting(scenario, "/items") as client:
        await scenario.first_newline(client)
        author.opened.set()
        assert await rest_of(client) == b"1\n2\n"
