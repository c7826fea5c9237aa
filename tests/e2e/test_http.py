"""What reaches the model server, and how its answer reaches the client (protocol.md §2, lessons 26 to 36)."""

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

import pytest
from aiohttp import web

from lib.backend import Backend
from lib.life.sockets import TCP_KEEP_ALIVE_S
from tests.fakes.raw_client import Head, RawClient, connected
from tests.fakes.worker import Setup, build
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_process, with_worker_task

CUT = ["/cut_stream", "/reset_stream", "/cut_whole", "/cut_large"]


async def ask(system: System, path: str, **headers: str) -> tuple[Head, bytes]:
    """The answer to a signed request, with no header but those given."""
    async with connected(system.url) as client:
        await client.post(path, system.envelope(), headers)
        return await client.answer()


async def errored(system: System, count: int) -> None:
    """Return once `count` requests have ended in the ledger, all of them errored."""
    await system.engine.wait_for(lambda: len(system.engine.finished) == count)
    assert {(f.request.status, f.request.success) for f in system.engine.finished} == {("Error", False)}


# To the model server


async def test_the_model_server_gets_these_headers_and_no_others(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        await ask(here, "/echo")
        await ask(
            here,
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
        plain, full = here.model.requests
        own = {
            "Host": f"127.0.0.1:{here.model.port}",
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
        assert full.path == "/echo"


async def test_header_fields_that_come_twice_are_passed_on_together(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        await client.post("/echo", here.envelope(), {"Accept": "a/a", "accept": "b/b"})
        await client.answer()
        assert here.model.requests[0].header("Accept") == "a/a, b/b"


async def test_the_model_server_gets_what_the_payload_class_makes_and_nothing_of_the_envelope(
    tmp_path: Path,
) -> None:
    async with with_worker_task(tmp_path) as here:
        payload = {"workload": 2.0, "data": {"a": "ü"}, "unknown": 1}
        envelope = {"auth_data": here.auth(2.0), "payload": payload, "session_id": None}
        async with here.http.post(here.url + "/echo", json=envelope) as answer:
            assert answer.status == 200
        assert here.model.requests[0].json() == {"workload": 2.0, "data": {"a": "ü"}}


async def test_a_model_server_below_a_path(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", model_path="/base/v1/")) as here:
        await ask(here, "/echo")
        assert here.backend is not None
        async with here.backend.session.get("/health") as answer:
            assert answer.status == 200
        paths = [r.path for r in here.model.requests]
        assert "/base/v1/echo" in paths
        assert {p for p in paths if p.endswith("health")} == {"/base/v1/health"}


# Back to the client


async def test_an_answer_keeps_its_status_headers_and_body(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for path, status, body in (
            ("/bytewise", 200, b'{"slow": true}'),
            ("/accepted", 202, b'{"accepted": true}'),
            ("/error422", 422, b'{"detail": "no such parameter"}'),
            ("/error500", 500, b"<h1>CUDA out of memory</h1>"),
            ("/missing", 404, b'{"error": "no such path"}'),
        ):
            head, got = await ask(here, path)
            assert (head.status, got) == (status, body)
        head, got = await ask(here, "/binary")
        assert (len(got), got[:256]) == (2**20, bytes(range(256)))
        assert head.headers["content-type"] == "audio/wav"
        assert head.headers["content-disposition"] == "attachment"
        assert head.headers["content-length"] == str(2**20)
        head, _ = await ask(here, "/echo")
        assert (head.headers["x-model"], head.headers["set-cookie"]) == ("tiny", "a=b")
        assert len(set(head.names)) == len(head.names)


async def test_an_empty_answer_stays_empty_and_the_connection_in_use(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        await client.post("/empty", here.envelope())
        head = await client.head()
        assert (head.status, head.headers["x-model"]) == (204, "tiny")
        assert not {"content-length", "transfer-encoding", "content-type"} & set(head.names)
        await client.post("/accepted", here.envelope())
        assert (await client.head()).status == 202


async def test_a_redirect_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        head, _ = await ask(here, "/redirect")
        assert (head.status, head.headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")
        assert len(here.model.requests) == 1


async def test_hop_by_hop_headers_stay_on_their_hop(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        head, _ = await ask(here, "/hop")
        assert head.headers["x-end"] == "1"
        assert not {"x-hop", "keep-alive", "connection"} & set(head.names)


async def test_a_compressed_answer_is_passed_through_where_it_is_accepted(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        head, body = await ask(here, "/gzip", **{"Accept-Encoding": "gzip"})
        assert head.headers["content-encoding"] == "gzip"
        assert head.headers["content-length"] == str(len(body))
        assert gzip.decompress(body) == b'{"packed": true}'
        head, body = await ask(here, "/gzip_stream", **{"Accept-Encoding": "*"})
        assert (head.headers["content-encoding"], head.headers["transfer-encoding"]) == ("gzip", "chunked")
        assert zlib.decompress(body, 47) == b"data: packed\n\n" * 1000
        head, body = await ask(here, "/brotli", **{"Accept-Encoding": "gzip, br"})
        assert (head.headers["content-encoding"], body) == ("br", b"\x8b\x03\x80{}\x03")


async def test_a_compressed_answer_is_unpacked_where_it_is_not_accepted(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for accepted in ({}, {"Accept-Encoding": "identity, gzip;q=0"}):
            head, body = await ask(here, "/gzip", **accepted)
            assert "content-encoding" not in head.names
            assert body == b'{"packed": true}'
            head, body = await ask(here, "/gzip_stream", **accepted)
            assert "content-encoding" not in head.names
            assert body == b"data: packed\n\n" * 1000
        head, body = await ask(here, "/brotli")
        assert (head.status, b"br" in body) == (502, True)


async def test_an_author_who_reads_the_answer_gets_it_unpacked(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        head, body = await ask(here, "/raising", **{"Accept-Encoding": "gzip"})
        assert (head.status, body) == (200, b'{"raised": false}')
        assert here.model.requests[0].header("Accept-Encoding") is None


# Streaming


async def test_each_chunk_arrives_as_soon_as_it_is_sent(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here, connected(here.url) as client:
        await client.post("/stream", here.envelope())
        head = await client.head()  # before any chunk
        assert head.headers["content-type"] == "text/event-stream"
        assert (head.headers["x-model"], head.headers["cache-control"]) == ("tiny", "no-cache")
        for number in range(5):
            here.model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        here.model.release()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        await client.post("/accepted", here.envelope())  # on the same connection
        assert (await client.answer())[0].status == 202


async def test_a_slow_client_slows_the_model_down(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url, limit=2**16) as client:
        await client.post("/flood", here.envelope())
        assert (await client.head()).status == 200
        await stopped(here)
        told = here.model.flooded_bytes
        while here.model.flooded_bytes == told:
            await client.exactly(2**16)
        client.leave()
        await here.model.until(lambda: here.model.working == 0)


async def stopped(system: System) -> None:
    """Return once the model's flood stands still: no turn of the loop moves it on."""
    told, still = -1, 0
    while still < 200:
        still = still + 1 if system.model.flooded_bytes == told and told > 0 else 0
        told = system.model.flooded_bytes
        async with system.http.get(system.url + "/ping") as answer:  # the loop goes around
            await answer.read()
    assert told < 64 * 2**20


async def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        here.model.release()
        await client.post("/stream", here.envelope(), version=b"1.0")
        head = await client.head()
        assert "transfer-encoding" not in head.names
        assert await client.rest() == b"data: [DONE]\n\n"


# A model server that dies in its answer (lesson 27)


async def read_cut(client: RawClient, path: str) -> None:
    """Read an answer that breaks off, and see that it can't be taken for a whole one."""
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


async def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here:
        here.model.release()
        for path in CUT:
            async with connected(here.url) as client:
                await client.post(path, here.envelope())
                await read_cut(client, path)
        await errored(here, len(CUT))
        assert (here.totals.cur_perf, here.last_report.cur_load) == (0.0, 0.0)
        assert here.worker is not None
        assert "Traceback" not in here.worker.output()


async def test_a_reset_stream_is_cut_after_what_came(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        await client.post("/reset_stream", here.envelope())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token\n\n"
        here.model.release()
        with pytest.raises(ConnectionError):
            await client.chunk()


@pytest.mark.parametrize("process", [False, True])
async def test_a_client_of_http_1_0_is_reset(tmp_path: Path, process: bool) -> None:
    async with (
        with_worker_process(tmp_path) if process else with_worker_task(tmp_path) as here,
        connected(here.url) as client,
    ):
        await client.post("/reset_stream", here.envelope(), version=b"1.0")
        assert (await client.head()).status == 200
        assert await client.exactly(13) == b"data: token\n\n"
        here.model.release()
        with pytest.raises(ConnectionError):  # a clean end would be the answer's
            await client.exactly(1)


async def test_a_stream_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, model_timeout_s=0.1) as here, connected(here.url) as client:
        await client.post("/silent_stream", here.envelope())
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token\n\n"
        with pytest.raises(ConnectionError):
            await client.chunk()
        await here.model.until(lambda: here.model.cancelled == 1)
        await errored(here, 1)


# Authors who write the answer themselves


async def raising(system: System, **data: Any) -> tuple[Head, bytes]:
    async with connected(system.url) as client:
        await client.post("/raising", system.envelope(data=data))
        return await client.answer()


async def test_an_author_who_raises_after_the_status_line_cuts_the_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        async with connected(here.url) as client:
            await client.post("/raising", here.envelope(data={"raise": "midway"}))
            assert (await client.head()).status == 200
            assert await client.rest() == b"4\r\nhalf\r\n"
        await errored(here, 1)


async def test_an_authors_http_exception_is_the_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        for _ in range(2):  # on one connection
            await client.post("/raising", here.envelope(3.0, {"raise": "http"}))
            head, body = await client.answer()
            assert (head.status, body) == (409, b"not now")
            assert head.headers["set-cookie"].startswith("tried=1")
        await here.told(served=6.0)


@pytest.mark.filterwarnings("ignore:.*RequestKey")  # as `start_server` has it
async def test_an_author_says_what_an_answer_counts_as(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for data in ({"raise": "errored"}, {"status": 503}, {"raise": "served", "status": 503}, {}):
            head, _ = await raising(here, **data)
            assert head.status == data.get("status", 200)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 4)
        assert [f.request.status for f in here.engine.finished] == ["Error", "Error", "Success", "Success"]
        await here.told(served=2.0)


# Connections to the model server (lessons 29 and 30)


async def test_a_kept_connection_that_was_closed_is_no_502(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for _ in range(6):
            assert (await here.call("/once"))[0] == 200
            assert (await here.call("/stale"))[0] == 200
        await here.told(served=12.0)
        opened = here.model.connections
        for _ in range(20):
            assert (await here.call("/echo"))[0] == 200
        assert here.model.connections <= opened + 1


async def test_a_fresh_connection_that_is_closed_is_a_502_and_sent_once(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        assert (await here.call("/close"))[0] == 502
        assert len(here.model.requests) == 1


@asynccontextmanager
async def clocked(tmp_path: Path) -> AsyncGenerator[tuple[System, ManualClock], None]:
    clock = ManualClock()
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"clock": clock})) as here:
        yield here, clock


@pytest.fixture
def many_files() -> None:
    """As many open files as the worker's own process would have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.usefixtures("many_files")
async def test_nothing_caps_parallel_requests_and_the_health_check_is_served_beside_them(
    tmp_path: Path,
) -> None:
    async with clocked(tmp_path) as (here, clock):
        calls = [asyncio.create_task(here.call("/held")) for _ in range(320)]
        await here.model.until(lambda: here.model.working == 320)
        checks = here.model.health_checks
        await clock.wait_for_timer(10.0)
        clock.advance(10.0)
        await here.model.until(lambda: here.model.health_checks > checks)
        assert (await here.call("/echo"))[0] == 200
        here.model.release()
        assert {status for status, _ in await asyncio.gather(*calls)} == {200}


# The log, and what an author sees


async def test_an_author_sees_the_query_without_the_api_key(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        body = here.envelope(data={"raise": "query"})
        async with here.http.post(f"{here.url}/raising?a=1&api_key=secret&b=2", json=body) as answer:
            assert await answer.json() == {"path": "/raising?a=1&b=2", "query": {"a": "1", "b": "2"}}


async def test_a_request_has_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lib.access")
    async with with_worker_task(tmp_path) as here:
        await ask(here, "/echo?api_key=secret", **{"X-Request-Id": "id-1"})
        lines = [r.getMessage() for r in caplog.records if r.name == "lib.access"]
        assert len(lines) == 1
        assert lines[0].startswith("id-1 POST /echo 200 served workload=1 ")
        assert json.loads((await ask(here, "/echo"))[1])["path"] == "/echo"


# The connection to the client


async def tcp_options(request: web.Request) -> web.Response:
    """Of the connection that it comes by: keep-alive, and after how many silent seconds."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    silent_s = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    return web.json_response([connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), silent_s])


def telling(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    backend, routes = build(model_url, setup)
    return backend, [*routes, web.get("/tcp", tcp_options)]


async def test_tcp_keeps_connections_alive(tmp_path: Path) -> None:
    """Proxies forget those that are silent for a minute; the system's default is two hours (lesson 32)."""
    async with (
        with_worker_task(tmp_path, make=telling) as here,
        here.http.get(here.url + "/tcp") as answer,
    ):
        assert await answer.json() == [1, TCP_KEEP_ALIVE_S]
    assert TCP_KEEP_ALIVE_S < 60
