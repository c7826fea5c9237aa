"""Uploads: kept on disk while their request is served, never whole in memory (docs/protocol.md, "Bodies")."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.event_loop import until
from tests.fakes import varied_routes
from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import System, engine_and_model_server, with_worker_task, worker_process

MIB = 1024 * 1024
FORM = "multipart/form-data; boundary=xyz"
ONE_AT_A_TIME = Setup(health="/health", handler={"allow_parallel_requests": False})


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """The folder for the bodies of this test; afterwards it must be empty, with no open files."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert spooled_bodies(folder) == 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor that lists them
            assert not os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))


async def send(system: System, body: Any, path: str = "/sound/echo", **headers: str) -> tuple[int, Any]:
    """POST `body`, a form unless `headers` say otherwise; return status and JSON of the answer."""
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    all_headers = {**system.header(), "Content-Type": FORM, **headers}
    async with system.http.post(system.url + path, data=data, headers=all_headers) as answer:
        return answer.status, await answer.json()


def upload_bytes(system: System, path: str, body: bytes, **headers: str) -> bytes:
    """A signed form as a request in bytes."""
    return request_bytes(path, body, {**system.header(), "Content-Type": FORM, **headers})


async def pieces(count: int, size: int = MIB) -> AsyncGenerator[bytes, None]:
    for number in range(count):
        yield bytes([number % 256]) * size


def spooled_bodies(spool: Path) -> int:
    """The number of bodies on disk."""
    return len(list(spool.iterdir()))


async def assert_finished(system: System, spool: Path, *statuses: str) -> None:
    """Wait until as many requests as `statuses` are reported; compare these; check that no body is left."""
    await system.engine.wait_for(lambda: len(system.engine.finished) >= len(statuses))
    assert sorted(f.request.status for f in system.engine.finished) == sorted(statuses)
    await until(lambda: spooled_bodies(spool) == 0)  # a thread deletes it after the outcome is known


# Passed on unchanged


async def test_a_form_is_passed_on_byte_for_byte(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        body = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"b" * 3000 + b"\r\n--xyz--\r\n"
        status, seen = await send(system, body)
        assert (status, seen["body"].encode()) == (200, body)
        assert (seen["headers"]["Content-Type"], seen["headers"]["Content-Length"]) == (FORM, str(len(body)))
        assert "Transfer-Encoding" not in seen["headers"]
        await system.reported(served=len(body) / 1000)
        await assert_finished(system, spool, "Success")


async def test_a_compressed_upload_is_decompressed_first(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        status, seen = await send(system, gzip.compress(b"x" * 5000), **{"Content-Encoding": "gzip"})
        assert (status, seen["body"], "Content-Encoding" in seen["headers"]) == (200, "x" * 5000, False)
        assert (await send(system, b"not gzip", **{"Content-Encoding": "gzip"}))[0] == 422
        assert (await send(system, b"x", **{"Content-Encoding": "br"}))[0] == 415


async def test_an_upload_without_length_and_content_type_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        status, seen = await send(system, pieces(3, 1000), **{"Content-Type": "audio/wav"})
        assert (status, len(seen["body"])) == (200, 3000)
        assert seen["headers"]["Content-Length"] == "3000"


async def test_an_upload_is_sent_once_more_on_a_new_connection(tmp_path: Path) -> None:
    setup = Setup(health="/health", handler={"idempotent": True})
    async with with_worker_task(tmp_path, setup, make=varied_routes.build) as system:
        for _ in range(2):
            assert (await send(system, b"x" * 5000, "/sound/stale"))[0] == 200
        got = [r.body for r in system.model.requests if r.path == "/stale"]
        assert got == [b"x" * 5000] * 3


async def test_any_bytes_of_any_content_type_are_passed_on(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        body = bytes(range(256)) * 300 + b"\r\n0\r\n\r\n"
        for kind in ("image/png", 'Multipart/Form-Data; boundary="x y"', None):
            headers = {**system.header(), **({} if kind is None else {"Content-Type": kind})}
            await client.post("/sound/echo?a=1", body, headers)
            assert (await client.answer())[0].status == 200
            got = system.model.requests[-1]
            assert (got.path, got.body) == ("/echo?a=1", body)
            # The content type that RFC 9110 assumes if there is none.
            assert got.header("Content-Type") == (kind or "application/octet-stream")


async def test_an_empty_upload_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        status, seen = await send(system, pieces(0))
        assert (status, seen["body"], seen["headers"]["Content-Length"]) == (200, "", "0")
        await system.engine.wait_for(lambda: system.engine.finished)


async def test_a_bare_route_gets_the_upload_as_a_file(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        headers = {**system.header(9.0), "Content-Type": FORM}
        async with system.http.post(system.url + "/own", data=b"x" * 5000, headers=headers) as answer:
            assert (answer.status, json.loads(await answer.text())) == (203, {"payload": 5000, "cost": 9.0})
        await system.reported(served=5000.0)


# Refused


async def test_a_json_route_refuses_an_upload_before_reading_it(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        headers = {**system.header(), "Content-Type": FORM}
        await client.send(request_bytes("/echo", b"x" * 5000, headers)[:-5000])
        head, body = await client.answer()
        error = json.loads(body)["error"]
        assert (head.status, error) == (415, "this route takes application/json, not multipart/form-data")
        await assert_finished(system, spool, "Error")
        assert system.model.requests == []


async def test_an_upload_that_would_wait_too_long_is_refused_before_reading_it(tmp_path: Path) -> None:
    setup = Setup(health="/health", handler={"max_queue_time": 5.0}, backend={"max_perf": 10.0})
    async with (
        with_worker_task(tmp_path, setup, make=varied_routes.build, request_body_timeout_s=0.05) as system,
        connected(system.url) as works,
        connected(system.url) as client,
    ):
        await works.send(upload_bytes(system, "/sound/held", b"x" * 500_000))
        await system.model.until(lambda: system.model.working == 1)
        await client.send(upload_bytes(system, "/sound/held", b"x" * 100)[:-100])
        assert (await client.head()).status == 429
        system.model.release()


@pytest.mark.parametrize("kind", ["of known length", "chunked"])
async def test_an_upload_that_is_too_large_is_refused(tmp_path: Path, spool: Path, kind: str) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, max_request_bytes=2 * MIB) as system:
        body: Any = b"x" * (2 * MIB + 1) if kind == "of known length" else pieces(3)
        status, answer = await send(system, body)
        assert (status, answer) == (
            413,
            {"error": f"the body is larger than {2 * MIB} bytes (MAX_REQUEST_BYTES)"},
        )
        assert (await send(system, b"x" * (2 * MIB)))[0] == 200
        await assert_finished(system, spool, "Error", "Success")


@pytest.mark.parametrize("path", ["/sound/echo", "/echo"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_the_connection_serves_more_requests_after_a_refused_upload(
    tmp_path: Path, path: str, framing: str
) -> None:
    """Its unread rest is not part of the next request."""
    async with (
        with_worker_task(tmp_path, make=varied_routes.build, max_request_bytes=MIB) as system,
        connected(system.url) as client,
    ):
        body = upload_bytes(system, "/sound/echo", b"within")  # looks like a request itself
        body += b" " * (2 * MIB)
        chunked = {"Transfer-Encoding": "chunked"} if framing == "chunks" else dict[str, str]()
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        await client.send(upload_bytes(system, path, data, **chunked))
        assert (await client.answer())[0].status == (413 if path == "/sound/echo" else 415)
        await client.send(upload_bytes(system, "/sound/echo", b"next"))
        assert (await client.answer())[0].status == 200
        assert [r.body for r in system.model.requests] == [b"next"]


async def test_a_compressed_upload_is_refused_by_its_decompressed_size(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build, max_request_bytes=MIB) as system:
        packed = {"Content-Encoding": "gzip"}
        status, answer = await send(system, gzip.compress(bytes(MIB + 1)), **packed)
        assert (status, "MAX_REQUEST_BYTES" in answer["error"]) == (413, True)
        assert (await send(system, gzip.compress(bytes(MIB)), **packed))[0] == 200
        assert len(system.model.requests[0].body) == MIB
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)


async def test_an_upload_that_stalls_is_refused(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build, request_body_timeout_s=0.05) as system,
        connected(system.url) as client,
    ):
        headers = {**system.header(), "Content-Type": FORM}
        await client.send(request_bytes("/sound/echo", b"x" * 100, headers)[:-1])
        head, _ = await client.answer()
        assert head.status == 408
        await assert_finished(system, spool, "Error")


async def test_no_upload_is_read_while_the_model_loads(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, Setup(health="/held"), make=varied_routes.build, wait=False) as system,
        connected(system.url) as client,
    ):
        await system.model.until(lambda: bool(system.model.requests))
        headers = {**system.header(), "Content-Type": FORM}
        await client.send(request_bytes("/sound/echo", b"x" * 100, headers)[:-100])
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"], spooled_bodies(spool)) == (503, "loading", 0)
        await system.engine.wait_for(lambda: system.totals.rej_load == 100.0)
        system.model.release()


async def test_a_disk_that_cannot_be_written_is_a_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        status, answer = await send(system, b"x")
        assert status == 503
        assert answer == {
            "error": "the body can't be written to disk: No such file or directory",
            "state": "no room",
        }
        await system.engine.wait_for(lambda: system.totals.rej_load == 100.0)


async def test_an_envelope_is_refused_where_an_upload_is_expected(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        async with system.http.post(system.url + "/sound/echo", json=system.envelope()) as answer:
            result = await answer.json()
        assert (answer.status, list(result["payload"])) == (422, ["body"])


async def test_a_full_disk_is_a_503(tmp_path: Path, spool: Path) -> None:
    module = "tests.fakes.varied_routes"
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, Setup(health="/health"), module=module) as worker,
    ):
        await system.ready()
        _, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (2 * MIB, hard))
        for body in (b"x" * (2 * MIB + 1), pieces(5)):
            status, answer = await send(system, body)
            assert (status, answer["state"], spooled_bodies(spool)) == (503, "no room", 0)
        assert (await send(system, b"x" * (2 * MIB)))[0] == 200
        await assert_finished(system, spool, "Rejected", "Rejected", "Success")
        assert "Traceback" not in await worker.final_output()


# The model server fails


async def test_errors_of_the_model_server_leave_no_file(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        for path, status in (("/sound/error500", 500), ("/sound/close", 502), ("/sound/cut_stream", 200)):
            async with connected(system.url) as client:
                await client.send(upload_bytes(system, path, b"x" * 5000))
                assert (await client.head()).status == status
                if status == 200:
                    assert b"0\r\n\r\n" not in await client.rest()
        await system.model.stop()
        assert (await send(system, b"x" * 5000))[0] == 502
        await assert_finished(system, spool, "Error", "Error", "Error", "Error")


# Clients that leave


@pytest.mark.parametrize("policy", ["cancel", "finish"])
@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_while_sending_leaves_no_file(
    tmp_path: Path, spool: Path, way: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(health="/health", handler={"on_disconnect": policy}, backend={"max_perf": 50.0})
    async with with_worker_task(tmp_path, setup, make=varied_routes.build) as system:
        async with connected(system.url) as client:
            await client.send(upload_bytes(system, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
            assert (await send(system, b"x"))[0] == 200  # the other one is being read by now
            if way == "leave":
                client.leave()
            else:
                client.half_close()
                assert await client.rest() == b""
            await assert_finished(system, spool, "Cancelled", "Success")
        assert len(system.model.requests) == 1
        assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
        await system.reported(served=0.001)
        assert (system.totals.new_load, system.totals.cur_perf) == (0.001, 0.001)


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_a_client_that_leaves_while_the_model_works_leaves_no_file(
    tmp_path: Path, spool: Path, policy: str
) -> None:
    setup = Setup(health="/health", handler={"on_disconnect": policy})
    async with with_worker_task(tmp_path, setup, make=varied_routes.build) as system:
        async with connected(system.url) as client:
            await client.send(upload_bytes(system, "/sound/held", b"x" * 5000))
            await system.model.until(lambda: system.model.working == 1)
            assert spooled_bodies(spool) == 1
            client.leave()
        if policy == "cancel":
            await system.model.until(lambda: system.model.cancelled == 1)
        system.model.release()
        await assert_finished(system, spool, "Cancelled" if policy == "cancel" else "Success")
        assert system.model.cancelled == (policy == "cancel")


async def test_a_client_that_leaves_the_queue_leaves_no_file(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME, make=varied_routes.build) as system:
        async with connected(system.url) as first, connected(system.url) as second:
            headers = {**system.header(), "Content-Type": FORM}
            await first.post("/sound/held", b"x" * 1000, headers)
            await system.model.until(lambda: system.model.working == 1)
            await second.post("/sound/held", b"x" * 2000, {**headers, **system.header()})
            await system.engine.wait_for(lambda: system.last_report.cur_load == 3.0)
            second.leave()
            await system.engine.wait_for(lambda: system.engine.finished)
            assert [f.request.status for f in system.engine.finished] == ["Cancelled"]
            assert spooled_bodies(spool) == 1
            system.model.release()
            assert (await first.head()).status == 200
        await assert_finished(system, spool, "Cancelled", "Success")
        assert len(system.model.requests) == 1


# The worker stops


async def test_a_drain_leaves_no_file(tmp_path: Path, spool: Path) -> None:
    """An upload still being received and one whose answer takes too long are cut."""
    env, module = {"DRAIN_TIMEOUT_S": "0.1"}, "tests.fakes.varied_routes"
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, Setup(health="/health"), env, module=module) as worker,
    ):
        await system.ready()
        async with connected(system.url) as coming, connected(system.url) as working:
            await working.send(upload_bytes(system, "/sound/held", b"x" * 5000))
            await system.model.until(lambda: system.model.working == 1)
            await coming.send(upload_bytes(system, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
            while spooled_bodies(spool) < 2:
                assert (await send(system, b"x"))[0] == 200
            worker.terminate()
            assert (await working.rest(), await worker.exit_status()) == (b"", 0)
        assert spooled_bodies(spool) == 0
        assert "Traceback" not in await worker.final_output()
        assert system.last_report.cur_load == 0.0


async def test_an_upload_in_transit_when_the_worker_stops_is_refused(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        await client.send(upload_bytes(system, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
        while spooled_bodies(spool) < 1:
            assert (await system.call("/echo"))[0] == 200
        assert system.stop is not None
        system.stop.ask()
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"]) == (503, "draining")
        await system.engine.wait_for(lambda: {f.request.status for f in system.engine.finished} - {"Success"})
        assert system.engine.finished[-1].request.status == "Rejected"


# Large ones


async def counting_server(request: web.Request) -> web.Response:
    """Answer with the body's size and digest, without storing it."""
    digest, size = hashlib.sha256(), 0
    async for part in request.content.iter_any():
        digest.update(part)
        size += len(part)
    return web.json_response({"size": size, "sha256": digest.hexdigest()})


async def working_server(_: web.Request) -> web.Response:
    return web.Response()


async def test_200_mib_are_passed_on_without_being_held_in_memory(tmp_path: Path, spool: Path) -> None:
    app = web.Application()
    app.add_routes([web.post("/count", counting_server), web.get("/health", working_server)])
    count = 200
    expected = hashlib.sha256()
    async for piece in pieces(count):
        expected.update(piece)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        env = {"TEST_MODEL_URL": url}
        async with (
            engine_and_model_server(tmp_path) as system,
            worker_process(
                system, tmp_path, Setup(health="/health"), env, module="tests.fakes.varied_routes"
            ) as worker,
        ):
            await system.ready()
            assert (await send(system, b"x" * 1000, "/sound/count"))[0] == 200
            before_kib = worker.memory_kib()
            status, seen = await send(system, pieces(count), "/sound/count")
            assert (status, seen) == (200, {"size": count * MIB, "sha256": expected.hexdigest()})
            assert worker.peak_memory_kib() - before_kib < 30 * 1024
            await assert_finished(system, spool, "Success", "Success")
            packed = gzip.compress(bytes(count * MIB), 1, mtime=0)  # compressed to a hundredth
            status, seen = await send(system, packed, "/sound/count", **{"Content-Encoding": "gzip"})
            assert (status, seen["size"]) == (200, count * MIB)
            assert worker.peak_memory_kib() - before_kib < 30 * 1024
            await assert_finished(system, spool, "Success", "Success", "Success")


async def test_a_start_deletes_the_uploads_of_a_killed_worker(tmp_path: Path, spool: Path) -> None:
    env, module = {"TMPDIR": str(spool)}, "tests.fakes.varied_routes"
    async with engine_and_model_server(tmp_path) as system:
        async with worker_process(system, tmp_path, Setup(health="/health"), env, module=module) as worker:
            await system.ready()
            async with connected(system.url) as client:
                await client.send(upload_bytes(system, "/sound/held", b"x" * MIB))
                await system.model.until(lambda: system.model.working == 1)
                assert spooled_bodies(spool) == 1
                worker.process.kill()
                await worker.process.wait()
                assert spooled_bodies(spool) == 1
        async with worker_process(system, tmp_path, Setup(health="/health"), env, module=module) as worker:
            await until(lambda: "deleted 1 uploads" in worker.output())
            assert spooled_bodies(spool) == 0
