"""Bodies that are not JSON: on disk while their request is served, never whole in memory (protocol.md §2)."""

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

from tests.fakes import shapes
from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import System, engine_and_model_server, with_worker_task, worker_process

MIB = 1024 * 1024
FORM = "multipart/form-data; boundary=xyz"
ONE_AT_A_TIME = Setup(health="/health", handler={"allow_parallel_requests": False})


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """Where bodies of this test are kept: nothing may be left, and nothing open."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert kept(folder) == 0
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            assert not os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(folder))


async def send(system: System, body: Any, path: str = "/sound/echo", **headers: str) -> tuple[int, Any]:
    """Status and JSON of the answer to `body`, which is a form unless `headers` say otherwise."""
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


def kept(spool: Path) -> int:
    """How many bodies are on disk."""
    return len(list(spool.iterdir()))


async def over(system: System, spool: Path, *statuses: str) -> None:
    """Once the engine was told of as many requests as `statuses`: they are theirs, and nothing is left."""
    await system.engine.wait_for(lambda: len(system.engine.finished) >= len(statuses))
    assert sorted(f.request.status for f in system.engine.finished) == sorted(statuses)
    assert kept(spool) == 0


# Sent on as they came


async def test_a_form_is_sent_on_byte_for_byte(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        body = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"b" * 3000 + b"\r\n--xyz--\r\n"
        status, seen = await send(here, body)
        assert (status, seen["body"].encode()) == (200, body)
        assert (seen["headers"]["Content-Type"], seen["headers"]["Content-Length"]) == (FORM, str(len(body)))
        assert "Transfer-Encoding" not in seen["headers"]
        await here.told(served=len(body) / 1000)
        await over(here, spool, "Success")


async def test_a_packed_one_is_unpacked_first(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        status, seen = await send(here, gzip.compress(b"x" * 5000), **{"Content-Encoding": "gzip"})
        assert (status, seen["body"], "Content-Encoding" in seen["headers"]) == (200, "x" * 5000, False)
        assert (await send(here, b"not gzip", **{"Content-Encoding": "gzip"}))[0] == 422
        assert (await send(here, b"x", **{"Content-Encoding": "br"}))[0] == 415


async def test_one_of_unknown_length_and_no_type(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        status, seen = await send(here, pieces(3, 1000), **{"Content-Type": "audio/wav"})
        assert (status, len(seen["body"])) == (200, 3000)
        assert seen["headers"]["Content-Length"] == "3000"


async def test_it_is_sent_once_more_on_a_fresh_connection(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        for _ in range(2):
            assert (await send(here, b"x" * 5000, "/sound/stale"))[0] == 200
        got = [r.body for r in here.model.requests if r.path == "/stale"]
        assert got == [b"x" * 5000] * 3


async def test_any_bytes_of_any_kind(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        body = bytes(range(256)) * 300 + b"\r\n0\r\n\r\n"
        for kind in ("image/png", 'Multipart/Form-Data; boundary="x y"', None):
            headers = {**here.header(), **({} if kind is None else {"Content-Type": kind})}
            await client.post("/sound/echo?a=1", body, headers)
            assert (await client.answer())[0].status == 200
            got = here.model.requests[-1]
            assert (got.path, got.body) == ("/echo", body)
            # What RFC 9110 has it taken for where nothing is said.
            assert got.header("Content-Type") == (kind or "application/octet-stream")


async def test_an_empty_one(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        status, seen = await send(here, pieces(0))
        assert (status, seen["body"], seen["headers"]["Content-Length"]) == (200, "", "0")
        await here.engine.wait_for(lambda: here.engine.finished)


async def test_a_bare_route_has_it_as_a_file(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        headers = {**here.header(9.0), "Content-Type": FORM}
        async with here.http.post(here.url + "/own", data=b"x" * 5000, headers=headers) as answer:
            assert (answer.status, json.loads(await answer.text())) == (203, {"payload": 5000, "cost": 9.0})
        await here.told(served=5000.0)


# Refused


async def test_a_route_of_json_refuses_it_before_it_is_read(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        headers = {**here.header(), "Content-Type": FORM}
        await client.send(request_bytes("/echo", b"x" * 5000, headers)[:-5000])
        head, body = await client.answer()
        error = json.loads(body)["error"]
        assert (head.status, error) == (415, "this route takes application/json, not multipart/form-data")
        await over(here, spool, "Error")
        assert here.model.requests == []


async def test_none_is_read_that_would_wait_too_long(tmp_path: Path) -> None:
    setup = Setup(health="/health", handler={"max_queue_time": 5.0}, backend={"max_perf": 10.0})
    async with (
        with_worker_task(tmp_path, setup, make=shapes.build, request_body_timeout_s=0.05) as here,
        connected(here.url) as works,
        connected(here.url) as client,
    ):
        await works.send(upload_bytes(here, "/sound/held", b"x" * 500_000))
        await here.model.until(lambda: here.model.working == 1)
        await client.send(upload_bytes(here, "/sound/held", b"x" * 100)[:-100])
        assert (await client.head()).status == 429
        here.model.release()


@pytest.mark.parametrize("kind", ["of known length", "chunked"])
async def test_one_that_is_too_large_is_refused(tmp_path: Path, spool: Path, kind: str) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, max_request_bytes=2 * MIB) as here:
        body: Any = b"x" * (2 * MIB + 1) if kind == "of known length" else pieces(3)
        status, answer = await send(here, body)
        assert (status, answer) == (
            413,
            {"error": f"the body is larger than {2 * MIB} bytes (MAX_REQUEST_BYTES)"},
        )
        assert (await send(here, b"x" * (2 * MIB)))[0] == 200
        await over(here, spool, "Error", "Success")


@pytest.mark.parametrize("path", ["/sound/echo", "/echo"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_the_connection_of_one_that_is_refused_goes_on(tmp_path: Path, path: str, framing: str) -> None:
    """What was not read of it is no part of the next request."""
    async with (
        with_worker_task(tmp_path, make=shapes.build, max_request_bytes=MIB) as here,
        connected(here.url) as client,
    ):
        body = upload_bytes(here, "/sound/echo", b"within")  # what a body may look like, too
        body += b" " * (2 * MIB)
        chunked = {"Transfer-Encoding": "chunked"} if framing == "chunks" else dict[str, str]()
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        await client.send(upload_bytes(here, path, data, **chunked))
        assert (await client.answer())[0].status == (413 if path == "/sound/echo" else 415)
        await client.send(upload_bytes(here, "/sound/echo", b"next"))
        assert (await client.answer())[0].status == 200
        assert [r.body for r in here.model.requests] == [b"next"]


async def test_a_packed_one_is_refused_by_its_unpacked_size(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build, max_request_bytes=MIB) as here:
        packed = {"Content-Encoding": "gzip"}
        status, answer = await send(here, gzip.compress(bytes(MIB + 1)), **packed)
        assert (status, "MAX_REQUEST_BYTES" in answer["error"]) == (413, True)
        assert (await send(here, gzip.compress(bytes(MIB)), **packed))[0] == 200
        assert len(here.model.requests[0].body) == MIB
        await here.engine.wait_for(lambda: len(here.engine.finished) == 2)


async def test_one_that_stalls_is_refused(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=shapes.build, request_body_timeout_s=0.05) as here,
        connected(here.url) as client,
    ):
        headers = {**here.header(), "Content-Type": FORM}
        await client.send(request_bytes("/sound/echo", b"x" * 100, headers)[:-1])
        head, _ = await client.answer()
        assert head.status == 408
        await over(here, spool, "Error")


async def test_none_is_read_while_the_model_loads(tmp_path: Path, spool: Path) -> None:
    async with (
        with_worker_task(tmp_path, Setup(health="/held"), make=shapes.build, wait=False) as here,
        connected(here.url) as client,
    ):
        await here.model.until(lambda: bool(here.model.requests))
        headers = {**here.header(), "Content-Type": FORM}
        await client.send(request_bytes("/sound/echo", b"x" * 100, headers)[:-100])
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"], kept(spool)) == (503, "loading", 0)
        await here.engine.wait_for(lambda: here.totals.rej_load == 100.0)
        here.model.release()


async def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        status, answer = await send(here, b"x")
        assert status == 503
        assert answer == {
            "error": "the body can't be written to disk: No such file or directory",
            "state": "no room",
        }
        await here.engine.wait_for(lambda: here.totals.rej_load == 100.0)


async def test_an_envelope_brings_no_upload(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        async with here.http.post(here.url + "/sound/echo", json=here.envelope()) as answer:
            told = await answer.json()
        assert (answer.status, list(told["payload"])) == (422, ["body"])


async def test_a_disk_that_is_full(tmp_path: Path, spool: Path) -> None:
    module = "tests.fakes.shapes"
    async with (
        engine_and_model_server(tmp_path) as here,
        worker_process(here, tmp_path, Setup(health="/health"), module=module) as worker,
    ):
        await here.ready()
        _, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (2 * MIB, hard))
        for body in (b"x" * (2 * MIB + 1), pieces(5)):
            status, answer = await send(here, body)
            assert (status, answer["state"], kept(spool)) == (503, "no room", 0)
        assert (await send(here, b"x" * (2 * MIB)))[0] == 200
        await over(here, spool, "Rejected", "Rejected", "Success")
        assert "Traceback" not in worker.output()


# The model server fails


async def test_its_errors_leave_no_file(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here:
        for path, status in (("/sound/error500", 500), ("/sound/close", 502), ("/sound/cut_stream", 200)):
            async with connected(here.url) as client:
                await client.send(upload_bytes(here, path, b"x" * 5000))
                assert (await client.head()).status == status
                if status == 200:
                    assert b"0\r\n\r\n" not in await client.rest()
        await here.model.stop()
        assert (await send(here, b"x" * 5000))[0] == 502
        await over(here, spool, "Error", "Error", "Error", "Error")


# Clients that leave


@pytest.mark.parametrize("policy", ["cancel", "finish"])
@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_in_the_middle_of_its_body(
    tmp_path: Path, spool: Path, way: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup(health="/health", handler={"on_disconnect": policy})
    async with with_worker_task(tmp_path, setup, make=shapes.build) as here:
        async with connected(here.url) as client:
            await client.send(upload_bytes(here, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
            assert (await send(here, b"x"))[0] == 200  # by now the other is being read
            if way == "leave":
                client.leave()
            else:
                client.half_close()
                assert await client.rest() == b""
            await over(here, spool, "Cancelled", "Success")
        assert len(here.model.requests) == 1
        assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
        await here.told(served=0.001)
        assert (here.totals.new_load, here.totals.cur_perf) == (0.001, 0.001)


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_a_client_that_leaves_while_the_model_works(tmp_path: Path, spool: Path, policy: str) -> None:
    setup = Setup(health="/health", handler={"on_disconnect": policy})
    async with with_worker_task(tmp_path, setup, make=shapes.build) as here:
        async with connected(here.url) as client:
            await client.send(upload_bytes(here, "/sound/held", b"x" * 5000))
            await here.model.until(lambda: here.model.working == 1)
            assert kept(spool) == 1
            client.leave()
        if policy == "cancel":
            await here.model.until(lambda: here.model.cancelled == 1)
        here.model.release()
        await over(here, spool, "Cancelled" if policy == "cancel" else "Success")
        assert here.model.cancelled == (policy == "cancel")


async def test_a_client_that_leaves_while_it_waits(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME, make=shapes.build) as here:
        async with connected(here.url) as first, connected(here.url) as second:
            headers = {**here.header(), "Content-Type": FORM}
            await first.post("/sound/held", b"x" * 1000, headers)
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/sound/held", b"x" * 2000, {**headers, **here.header()})
            await here.engine.wait_for(lambda: here.last_report.cur_load == 3.0)
            second.leave()
            await here.engine.wait_for(lambda: here.engine.finished)
            assert [f.request.status for f in here.engine.finished] == ["Cancelled"]
            assert kept(spool) == 1
            here.model.release()
            assert (await first.head()).status == 200
        await over(here, spool, "Cancelled", "Success")
        assert len(here.model.requests) == 1


# The worker stops


async def test_a_drain_leaves_no_file(tmp_path: Path, spool: Path) -> None:
    """One that is still coming in, and one whose answer takes too long, are cut."""
    env, module = {"DRAIN_TIMEOUT_S": "0.1"}, "tests.fakes.shapes"
    async with (
        engine_and_model_server(tmp_path) as here,
        worker_process(here, tmp_path, Setup(health="/health"), env, module=module) as worker,
    ):
        await here.ready()
        async with connected(here.url) as coming, connected(here.url) as working:
            await working.send(upload_bytes(here, "/sound/held", b"x" * 5000))
            await here.model.until(lambda: here.model.working == 1)
            await coming.send(upload_bytes(here, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
            while kept(spool) < 2:
                assert (await send(here, b"x"))[0] == 200
            worker.terminate()
            assert (await working.rest(), await worker.exit_status()) == (b"", 0)
        assert kept(spool) == 0
        assert "Traceback" not in worker.output()
        assert here.last_report.cur_load == 0.0


async def test_one_that_is_on_its_way_when_the_worker_stops_is_refused(tmp_path: Path, spool: Path) -> None:
    async with with_worker_task(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        await client.send(upload_bytes(here, "/sound/echo", b"x" * 5 * MIB)[:-MIB])
        while kept(spool) < 1:
            assert (await here.call("/echo"))[0] == 200
        assert here.stop is not None
        here.stop.ask()
        head, body = await client.answer()
        assert (head.status, json.loads(body)["state"]) == (503, "draining")
        await here.engine.wait_for(lambda: {f.request.status for f in here.engine.finished} - {"Success"})
        assert here.engine.finished[-1].request.status == "Rejected"


# Large ones


async def counted(request: web.Request) -> web.Response:
    """How much came, and its digest; nothing of it is kept."""
    digest, size = hashlib.sha256(), 0
    async for part in request.content.iter_any():
        digest.update(part)
        size += len(part)
    return web.json_response({"size": size, "sha256": digest.hexdigest()})


async def well(_: web.Request) -> web.Response:
    return web.Response()


async def test_200_mib_pass_without_being_held(tmp_path: Path, spool: Path) -> None:
    app = web.Application()
    app.add_routes([web.post("/count", counted), web.get("/health", well)])
    count = 200
    expected = hashlib.sha256()
    async for piece in pieces(count):
        expected.update(piece)
    async with TestServer(app) as server:
        url = str(server.make_url(""))
        env = {"TEST_MODEL_URL": url}
        async with (
            engine_and_model_server(tmp_path) as here,
            worker_process(
                here, tmp_path, Setup(health="/health"), env, module="tests.fakes.shapes"
            ) as worker,
        ):
            await here.ready()
            assert (await send(here, b"x" * 1000, "/sound/count"))[0] == 200
            before_kib = worker.memory_kib()
            status, seen = await send(here, pieces(count), "/sound/count")
            assert (status, seen) == (200, {"size": count * MIB, "sha256": expected.hexdigest()})
            assert worker.peak_memory_kib() - before_kib < 30 * 1024
            await over(here, spool, "Success", "Success")
            packed = gzip.compress(bytes(count * MIB), 1, mtime=0)  # a hundred times smaller
            status, seen = await send(here, packed, "/sound/count", **{"Content-Encoding": "gzip"})
            assert (status, seen["size"]) == (200, count * MIB)
            assert worker.peak_memory_kib() - before_kib < 30 * 1024
            await over(here, spool, "Success", "Success", "Success")
