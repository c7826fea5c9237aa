"""Requests to the model server and its answers to clients (docs/protocol.md, "Passing the answer on")."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import socket
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from aiohttp import web

from lib.backend import Backend
from lib.life.sockets import TCP_KEEP_ALIVE_S
from tests.fakes import varied_routes
from tests.fakes.raw_client import Head, RawClient, connected, request_bytes
from tests.fakes.worker import Setup, build
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_process, with_worker_task

CUT = ["/cut_stream", "/reset_stream", "/cut_whole", "/cut_large"]


async def signed_answer(system: System, path: str, **headers: str) -> tuple[Head, bytes]:
    """The answer to a signed request with only the given headers."""
    async with connected(system.url) as client:
        await client.post(path, system.envelope(), headers)
        return await client.answer()


async def assert_errored(system: System, count: int) -> None:
    """Wait until `count` requests have finished; check that all are errored."""
    await system.engine.wait_for(lambda: len(system.engine.finished) == count)
    assert {(f.request.status, f.request.success) for f in system.engine.finished} == {("Error", False)}


# To the model server


async def test_the_model_server_gets_only_these_headers(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await signed_answer(system, "/echo")
        await signed_answer(
            system,
            "/echo?api_key=secret&a=1",
            Accept="text/event-stream",
            **{
                "Accept-Encoding": "br;q=1.0, gzip",
                "X-Request-Id": "id-1",
                "Authorization": "Bearer secret",
                "Cookie": "a=b",
                "Origin": "https://page.example",
                "X-Vast-Auth-Not": "x",
                "User-Agent": "client",
                "X-Forwarded-For": "1.2.3.4",
            },
        )
        plain, full = system.model.requests
        own = {
            "Host": f"127.0.0.1:{system.model.port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(plain.body)),
        }
        assert dict(plain.headers) == own
        passed = {
            "Accept": "text/event-stream",
            "Accept-Encoding": "br;q=1.0, gzip",
            "X-Request-Id": "id-1",
        }
        assert dict(full.headers) == {**own, **passed}
        assert full.path == "/echo?a=1"


QUERIES = [
    "top_k=1",
    "a=1&b=2&a=3",
    "api_key=secret",
    "api_key=secret&a=1&api_key=secret",
    "%61pi_key=secret&b",
    "a=%20b+c%26d&e=%C3%BC",
    "",
]


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/echo", {"Content-Type": "application/json"}),
        ("POST", "/sound/echo", {"Content-Type": "audio/wav"}),
        ("PUT", "/items/1/echo", {"Content-Type": "application/json"}),
    ],
)
async def test_the_model_server_gets_the_query_without_the_api_key(
    tmp_path: Path, carrier: Any, method: str, path: str, headers: dict[str, str]
) -> None:
    make, setup = varied_routes.build, Setup(health="/health")
    async with (
        with_worker_task(tmp_path, setup, make=make, carrier=carrier) as system,
        connected(system.url) as client,
    ):
        for query in QUERIES:
            fields = {**headers, **system.header()}
            request = request_bytes(f"{path}?{query}", b"{}", fields).replace(b"POST", method.encode(), 1)
            await client.send(request)
            assert (await client.answer())[0].status == 200
            forwarded = system.model.requests[-1].path
            assert "secret" not in forwarded
            expected = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if k != "api_key"]
            assert parse_qsl(urlsplit(forwarded).query, keep_blank_values=True) == expected


async def test_repeated_header_fields_are_passed_on_together(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        await client.post("/echo", system.envelope(), {"Accept": "a/a", "accept": "b/b"})
        await client.answer()
        assert system.model.requests[0].header("Accept") == "a/a, b/b"


async def test_the_model_server_gets_the_json_of_the_payload_class_without_the_envelope(
    tmp_path: Path,
) -> None:
    async with with_worker_task(tmp_path) as system:
        payload = {"workload": 2.0, "data": {"a": "ü"}, "unknown": 1}
        envelope = {"auth_data": system.auth(2.0), "payload": payload, "session_id": None}
        async with system.http.post(system.url + "/echo", json=envelope) as answer:
            assert answer.status == 200
        assert system.model.requests[0].json() == {"workload": 2.0, "data": {"a": "ü"}}


async def test_a_model_server_url_may_have_a_path(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", model_path="/base/v1/")) as system:
        await signed_answer(system, "/echo")
        assert system.backend is not None
        async with system.backend.session.get("/health") as answer:
            assert answer.status == 200
        paths = [r.path for r in system.model.requests]
        assert "/base/v1/echo" in paths
        assert {p for p in paths if p.endswith("health")} == {"/base/v1/health"}


# Back to the client


async def test_an_answer_keeps_its_status_headers_and_body(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path, status, body in (
            ("/bytewise", 200, b'{"slow": true}'),
            ("/accepted", 202, b'{"accepted": true}'),
            ("/error422", 422, b'{"detail": "no such parameter"}'),
            ("/error500", 500, b"<h1>CUDA out of memory</h1>"),
            ("/missing", 404, b'{"error": "no such path"}'),
        ):
            head, got = await signed_answer(system, path)
            assert (head.status, got) == (status, body)
        head, got = await signed_answer(system, "/binary")
        assert (len(got), got[:256]) == (2**20, bytes(range(256)))
        assert head.headers["content-type"] == "audio/wav"
        assert head.headers["content-disposition"] == "attachment"
        assert head.headers["content-length"] == str(2**20)
        head, _ = await signed_answer(system, "/echo")
        assert (head.headers["x-model"], head.headers["set-cookie"]) == ("tiny", "a=b")
        assert len(set(head.names)) == len(head.names)


async def test_an_empty_answer_stays_empty_and_its_connection_is_reused(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        await client.post("/empty", system.envelope())
        head = await client.head()
        assert (head.status, head.headers["x-model"]) == (204, "tiny")
        assert not {"content-length", "transfer-encoding", "content-type"} & set(head.names)
        await client.post("/accepted", system.envelope())
        assert (await client.head()).status == 202


async def test_a_redirect_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        head, _ = await signed_answer(system, "/redirect")
        assert (head.status, head.headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")
        assert len(system.model.requests) == 1


async def test_hop_by_hop_headers_are_not_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        head, _ = await signed_answer(system, "/hop")
        assert head.headers["x-end"] == "1"
        assert not {"x-hop", "keep-alive", "connection"} & set(head.names)


async def test_a_compressed_answer_is_passed_on_if_the_client_accepts_it(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        head, body = await signed_answer(system, "/gzip", **{"Accept-Encoding": "gzip"})
        assert head.headers["content-encoding"] == "gzip"
        assert head.headers["content-length"] == str(len(body))
        assert gzip.decompress(body) == b'{"packed": true}'
        head, body = await signed_answer(system, "/gzip_stream", **{"Accept-Encoding": "*"})
        assert (head.headers["content-encoding"], head.headers["transfer-encoding"]) == ("gzip", "chunked")
        assert zlib.decompress(body, 47) == b"data: packed\n\n" * 1000
        head, body = await signed_answer(system, "/brotli", **{"Accept-Encoding": "gzip, br"})
        assert (head.headers["content-encoding"], body) == ("br", b"\x8b\x03\x80{}\x03")


async def test_a_compressed_answer_is_decompressed_if_the_client_does_not_accept_it(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for accepted in ({}, {"Accept-Encoding": "identity, gzip;q=0"}):
            head, body = await signed_answer(system, "/gzip", **accepted)
            assert "content-encoding" not in head.names
            assert body == b'{"packed": true}'
            head, body = await signed_answer(system, "/gzip_stream", **accepted)
            assert "content-encoding" not in head.names
            assert body == b"data: packed\n\n" * 1000
        head, body = await signed_answer(system, "/brotli")
        assert (head.status, b"br" in body) == (502, True)


async def test_an_author_reads_the_answer_decompressed(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        head, body = await signed_answer(system, "/raising", **{"Accept-Encoding": "gzip"})
        assert (head.status, body) == (200, b'{"raised": false}')
        assert system.model.requests[0].header("Accept-Encoding") is None


# Streaming


async def test_each_chunk_arrives_as_soon_as_it_is_sent(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system, connected(system.url) as client:
        await client.post("/stream", system.envelope())
        head = await client.head()  # before any chunk
        assert head.headers["content-type"] == "text/event-stream"
        assert (head.headers["x-model"], head.headers["cache-control"]) == ("tiny", "no-cache")
        for number in range(5):
            system.model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        system.model.release()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        await client.post("/accepted", system.envelope())  # on the same connection
        assert (await client.answer())[0].status == 202


async def test_a_slow_client_slows_the_model_down(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url, limit=2**16) as client:
        await client.post("/flood", system.envelope())
        assert (await client.head()).status == 200
        await wait_until_blocked(system)
        flooded_before = system.model.flooded_bytes
        while system.model.flooded_bytes == flooded_before:
            await client.exactly(2**16)
        client.leave()
        await system.model.until(lambda: system.model.working == 0)


async def wait_until_blocked(system: System) -> None:
    """Return once the model server's flood is blocked: turns of the event loop send nothing more."""
    flooded, still = -1, 0
    while still < 200:
        still = still + 1 if system.model.flooded_bytes == flooded and flooded > 0 else 0
        flooded = system.model.flooded_bytes
        async with system.http.get(system.url + "/ping") as answer:  # one turn of the event loop
            await answer.read()
    assert flooded < 64 * 2**20


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        system.model.release()
        await client.post("/stream", system.envelope(), version=b"1.0")
        head = await client.head()
        assert "transfer-encoding" not in head.names
        assert await client.rest() == b"data: [DONE]\n\n"


# A model server that dies during its answer


async def read_cut(client: RawClient, path: str) -> None:
    """Read a truncated answer; check that it can't be mistaken for a complete one."""
    if path == "/cut_whole":
        with pytest.raises(ConnectionError):
            await client.head()
        return
    head = await client.head()
    assert head.status == 200
    rest = await client.rest()
    assert b"HTTP/1.1" not in rest
    if "content-length" in head.headers:
        assert len(rest) < int(head.headers["content-length"])
    else:
        assert head.headers["transfer-encoding"] == "chunked"
        assert not rest.endswith(b"0\r\n\r\n")


async def test_a_truncated_answer_never_looks_complete(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        system.model.release()
        for path in CUT:
            async with connected(system.url) as client:
                await client.post(path, system.envelope())
                await read_cut(client, path)
        await assert_errored(system, len(CUT))
        assert (system.totals.cur_perf, system.last_report.cur_load) == (0.0, 0.0)
        assert system.worker is not None
        assert "Traceback" not in await system.worker.final_output()


async def test_a_reset_stream_is_cut_after_the_bytes_received(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        await client.post("/reset_stream", system.envelope())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token\n\n"
        system.model.release()
        with pytest.raises(ConnectionError):
            await client.chunk()


@pytest.mark.parametrize("process", [False, True])
async def test_a_truncated_answer_resets_an_http_1_0_client(tmp_path: Path, process: bool) -> None:
    async with (
        with_worker_process(tmp_path) if process else with_worker_task(tmp_path) as system,
        connected(system.url) as client,
    ):
        await client.post("/reset_stream", system.envelope(), version=b"1.0")
        assert (await client.head()).status == 200
        assert await client.exactly(13) == b"data: token\n\n"
        system.model.release()
        with pytest.raises(ConnectionError):  # a clean end would mean the answer is complete
            await client.exactly(1)


async def test_a_stream_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, model_timeout_s=0.1) as system, connected(system.url) as client:
        await client.post("/silent_stream", system.envelope())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token\n\n"
        with pytest.raises(ConnectionError):
            await client.chunk()
        await system.model.until(lambda: system.model.cancelled == 1)
        await assert_errored(system, 1)


# Responses made by the author


async def call_raising(system: System, **data: Any) -> tuple[Head, bytes]:
    async with connected(system.url) as client:
        await client.post("/raising", system.envelope(data=data))
        return await client.answer()


async def test_an_exception_after_the_status_line_cuts_the_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with connected(system.url) as client:
            await client.post("/raising", system.envelope(data={"raise": "midway"}))
            assert (await client.head()).status == 200
            assert await client.rest() == b"4\r\nhalf\r\n"
        await assert_errored(system, 1)


async def test_an_authors_http_exception_is_the_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        for _ in range(2):  # on one connection
            await client.post("/raising", system.envelope(3.0, {"raise": "http"}))
            head, body = await client.answer()
            assert (head.status, body) == (409, b"not now")
            assert head.headers["set-cookie"].startswith("tried=1")
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert [f.request.status for f in system.engine.finished] == ["Success", "Success"]


@pytest.mark.filterwarnings("ignore:.*RequestKey")  # as `start_server` sets it up
async def test_an_author_sets_the_outcome_of_an_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for data in ({"raise": "errored"}, {"status": 503}, {"raise": "served", "status": 503}, {}):
            head, _ = await call_raising(system, **data)
            assert head.status == data.get("status", 200)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 4)
        assert [f.request.status for f in system.engine.finished] == ["Error", "Error", "Success", "Success"]
        await system.reported(served=2.0)


# Connections to the model server


async def test_a_closed_pooled_connection_does_not_cause_a_502(tmp_path: Path) -> None:
    setup = Setup(health="/health", handler={"idempotent": True})
    async with with_worker_task(tmp_path, setup) as system:
        for _ in range(6):
            assert (await system.call("/once"))[0] == 200
            assert (await system.call("/stale"))[0] == 200
        await system.reported(served=12.0)
        opened = system.model.connections
        for _ in range(20):
            assert (await system.call("/echo"))[0] == 200
        assert system.model.connections <= opened + 1


async def test_a_new_connection_that_is_closed_is_a_502_without_a_retry(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert (await system.call("/close"))[0] == 502
        assert len(system.model.requests) == 1


@asynccontextmanager
async def with_manual_clock(tmp_path: Path) -> AsyncGenerator[tuple[System, ManualClock], None]:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as system:
        yield system, clock


@pytest.fixture
def many_files() -> None:
    """Raise the limit of open files as a worker process does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("many_files")
async def test_parallel_requests_are_not_limited_and_do_not_delay_health_checks(
    tmp_path: Path,
) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        calls = [asyncio.create_task(system.call("/held")) for _ in range(500)]
        await system.model.until(lambda: system.model.working == 500)
        checks = system.model.health_checks
        await clock.wait_for_timer(10.0)
        clock.advance(10.0)
        await system.model.until(lambda: system.model.health_checks > checks)
        assert (await system.call("/echo"))[0] == 200
        system.model.release()
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}


# The log, and the request that authors see


async def test_an_author_sees_the_query_without_the_api_key(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        body = system.envelope(data={"raise": "query"})
        async with system.http.post(f"{system.url}/raising?a=1&api_key=secret&b=2", json=body) as answer:
            assert await answer.json() == {"path": "/raising?a=1&b=2", "query": {"a": "1", "b": "2"}}


async def test_a_request_has_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lib.access")
    async with with_worker_task(tmp_path) as system:
        await signed_answer(system, "/echo?api_key=secret", **{"X-Request-Id": "id-1"})
        lines = [r.getMessage() for r in caplog.records if r.name == "lib.access"]
        assert len(lines) == 1
        assert lines[0].startswith("id-1 POST /echo 200 served workload=1 ")
        assert json.loads((await signed_answer(system, "/echo"))[1])["path"] == "/echo"


# The connection to the client


async def tcp_options(request: web.Request) -> web.Response:
    """Answer with the request's TCP options: SO_KEEPALIVE, and the idle seconds before the first probe."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    silent_s = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    return web.json_response([connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), silent_s])


def worker_with_tcp_options(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    backend, routes = build(model_url, setup)
    return backend, [*routes, web.get("/tcp", tcp_options)]


async def test_tcp_keeps_connections_alive(tmp_path: Path) -> None:
    """Proxies drop connections that are idle for a minute; the system's default is two hours."""
    async with (
        with_worker_task(tmp_path, make=worker_with_tcp_options) as system,
        system.http.get(system.url + "/tcp") as answer,
    ):
        assert await answer.json() == [1, TCP_KEEP_ALIVE_S]
    assert TCP_KEEP_ALIVE_S < 60
