"""Bodies that are not JSON: on disk while their request is served, never whole in memory (protocol.md §2)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.fakes import shapes
from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import Setup
from tests.rig import Rig, inner_rig, peers, worker_process

MIB = 1024 * 1024
FORM = "multipart/form-data; boundary=xyz"
ONE_AT_A_TIME = Setup(health="/health", handler={"allow_parallel_requests": False})


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bodies of this test are kept: nothing may be left."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


async def send(rig: Rig, body: Any, path: str = "/sound/echo", **headers: str) -> tuple[int, Any]:
    """Status and JSON of the answer to `body`, which is a form unless `headers` say otherwise."""
    data = io.BytesIO(body) if isinstance(body, bytes) else body
    all_headers = {**rig.header(), "Content-Type": FORM, **headers}
    async with rig.http.post(rig.url + path, data=data, headers=all_headers) as answer:
        return answer.status, await answer.json()


async def pieces(count: int, size: int = MIB) -> AsyncGenerator[bytes, None]:
    for number in range(count):
        yield bytes([number % 256]) * size


def kept(spool: Path) -> int:
    """How many bodies are on disk."""
    return len(list(spool.iterdir()))


async def over(rig: Rig, spool: Path, *statuses: str) -> None:
    """Once the engine was told of as many requests as `statuses`: they are theirs, and nothing is left."""
    await rig.engine.wait_for(lambda: len(rig.engine.finished) >= len(statuses))
    assert sorted(f.request.status for f in rig.engine.finished) == sorted(statuses)
    assert kept(spool) == 0


# Sent on as they came


async def test_a_form_is_sent_on_byte_for_byte(tmp_path: Path, spool: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        body = b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"b" * 3000 + b"\r\n--xyz--\r\n"
        status, seen = await send(here, body)
        assert (status, seen["body"].encode()) == (200, body)
        assert (seen["headers"]["Content-Type"], seen["headers"]["Content-Length"]) == (FORM, str(len(body)))
        assert "Transfer-Encoding" not in seen["headers"]
        await here.told(served=len(body) / 1000)
        await over(here, spool, "Success")


async def test_a_packed_one_is_unpacked_first(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        status, seen = await send(here, gzip.compress(b"x" * 5000), **{"Content-Encoding": "gzip"})
        assert (status, seen["body"], "Content-Encoding" in seen["headers"]) == (200, "x" * 5000, False)
        assert (await send(here, b"not gzip", **{"Content-Encoding": "gzip"}))[0] == 422
        assert (await send(here, b"x", **{"Content-Encoding": "br"}))[0] == 415


async def test_one_of_unknown_length_and_no_type(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        status, seen = await send(here, pieces(3, 1000), **{"Content-Type": "audio/wav"})
        assert (status, len(seen["body"])) == (200, 3000)
        assert seen["headers"]["Content-Length"] == "3000"


async def test_it_is_sent_once_more_on_a_fresh_connection(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        for _ in range(2):
            assert (await send(here, b"x" * 5000, "/sound/stale"))[0] == 200
        got = [r.body for r in here.model.requests if r.path == "/stale"]
        assert got == [b"x" * 5000] * 3


# Refused


async def test_a_route_of_json_refuses_it_before_it_is_read(tmp_path: Path, spool: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here, connected(here.url) as client:
        headers = {**here.header(), "Content-Type": FORM}
        await client.send(request_bytes("/echo", b"x" * 5000, headers)[:-5000])
        head, body = await client.answer()
        error = json.loads(body)["error"]
        assert (head.status, error) == (415, "this route takes application/json, not multipart/form-data")
        await over(here, spool, "Error")
        assert here.model.requests == []


@pytest.mark.parametrize("kind", ["of known length", "chunked"])
async def test_one_that_is_too_large_is_refused(tmp_path: Path, spool: Path, kind: str) -> None:
    async with inner_rig(tmp_path, make=shapes.build, max_request_bytes=2 * MIB) as here:
        body: Any = b"x" * (2 * MIB + 1) if kind == "of known length" else pieces(3)
        status, answer = await send(here, body)
        assert (status, answer) == (
            413,
            {"error": f"the body is larger than {2 * MIB} bytes (MAX_REQUEST_BYTES)"},
        )
        assert (await send(here, b"x" * (2 * MIB)))[0] == 200
        await over(here, spool, "Error", "Success")


async def test_one_that_stalls_is_refused(tmp_path: Path, spool: Path) -> None:
    async with (
        inner_rig(tmp_path, make=shapes.build, request_body_timeout_s=0.05) as here,
        connected(here.url) as client,
    ):
        headers = {**here.header(), "Content-Type": FORM}
        await client.send(request_bytes("/sound/echo", b"x" * 100, headers)[:-1])
        head, _ = await client.answer()
        assert head.status == 408
        await over(here, spool, "Error")


async def test_none_is_read_while_the_model_loads(tmp_path: Path, spool: Path) -> None:
    async with (
        inner_rig(tmp_path, Setup(health="/held"), make=shapes.build, wait=False) as here,
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
    async with inner_rig(tmp_path, make=shapes.build) as here:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
        status, answer = await send(here, b"x")
        assert status == 503
        assert answer == {"error": "the body can't be kept: No such file or directory", "state": "no room"}
        await here.engine.wait_for(lambda: here.totals.rej_load == 100.0)


async def test_an_envelope_brings_no_upload(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        async with here.http.post(here.url + "/sound/echo", json=here.envelope()) as answer:
            told = await answer.json()
        assert (answer.status, list(told["payload"])) == (422, ["body"])


# Clients that leave


async def test_a_client_that_leaves_while_it_sends(tmp_path: Path, spool: Path) -> None:
    async with inner_rig(tmp_path, make=shapes.build) as here:
        async with connected(here.url) as client:
            headers = {**here.header(), "Content-Type": FORM}
            await client.send(request_bytes("/sound/echo", b"x" * 5 * MIB, headers)[:-MIB])
            assert (await send(here, b"x"))[0] == 200  # by now the other is being read
            client.leave()
        await over(here, spool, "Cancelled", "Success")
        assert len(here.model.requests) == 1


async def test_a_client_that_leaves_while_it_waits(tmp_path: Path, spool: Path) -> None:
    async with inner_rig(tmp_path, ONE_AT_A_TIME, make=shapes.build) as here:
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
            peers(tmp_path) as here,
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
