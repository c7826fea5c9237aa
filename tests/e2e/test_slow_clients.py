"""Clients that take their answers slowly, or not at all (docs/protocol.md, "Connections")."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import varied_routes
from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import with_worker_task

ONE_AT_A_TIME = Setup(health="/health", handler={"allow_parallel_requests": False})


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_a_client_that_reads_nothing_is_cancelled_and_frees_its_slot(
    tmp_path: Path, carrier: Any
) -> None:
    async with (
        with_worker_task(tmp_path, ONE_AT_A_TIME, client_stall_timeout_s=0.2, carrier=carrier) as system,
        connected(system.url, limit=1024) as client,
    ):
        await client.post("/flood", system.envelope())
        await system.engine.wait_for(lambda: system.engine.finished)
        assert (await system.call("/echo"))[0] == 200
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        assert [f.request.status for f in system.engine.finished] == ["Cancelled", "Success"]


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_a_quiet_answer_is_no_stall(tmp_path: Path, carrier: Any) -> None:
    async with (
        with_worker_task(tmp_path, client_stall_timeout_s=0.05, carrier=carrier) as system,
        connected(system.url) as client,
        connected(system.url) as other,
    ):
        await client.post("/stream", system.envelope())
        system.model.step()
        assert (await client.head()).status == 200
        assert await client.chunk() == b"data: token 0\n\n"
        await other.post("/flood", system.envelope())  # it is dropped, after the limit
        await system.engine.wait_for(lambda: system.engine.finished)
        system.model.release()
        assert [await client.chunk(), await client.chunk()] == [b"data: [DONE]\n\n", b""]


AUDIO, JSON = {"Content-Type": "audio/wav"}, {"Content-Type": "application/json"}
GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    ("method", "path", "is_signed", "fields"),
    [
        ("POST", "/echo", False, {}),
        ("POST", "/echo", True, JSON),
        ("POST", "/echo", True, {**JSON, **GZIP}),
        ("PUT", "/items/1/echo", True, JSON),
        ("POST", "/sound/echo", True, AUDIO),
        ("POST", "/session/create", False, {}),
        ("POST", "/session/get", False, {}),
        ("POST", "/session/end", False, {}),
    ],
)
async def test_a_malformed_chunk_is_a_400_wherever_a_body_is_read(
    tmp_path: Path,
    carrier: Any,
    is_late: bool,
    method: str,
    path: str,
    is_signed: bool,
    fields: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "lib.access")
    make, setup = varied_routes.build, Setup(health="/health")
    async with (
        with_worker_task(tmp_path, setup, make=make, carrier=carrier) as system,
        connected(system.url) as client,
    ):
        signed = system.header() if is_signed else {}
        headers = {**signed, **fields, "Transfer-Encoding": "chunked"}
        first = b"a\r\n%s\r\n" % (
            gzip.compress(b"{}")[:10] if "Content-Encoding" in fields else b'{"a": "b",'
        )
        begun = request_bytes(path, first, headers).replace(b"POST", method.encode(), 1)
        if is_late:
            await client.send(begun)
            async with system.http.get(system.url + "/ping") as answer:
                await answer.read()
            begun = b""
        await client.send(begun + b"wrong\r\n")
        head, body = await client.answer()
        assert (head.status, list(json.loads(body))) == (400, ["error"])
        assert b"wrong" not in body
        assert await client.rest() == b""
        assert system.model.requests == []
    lines = [r.getMessage().split()[1:4] for r in caplog.records if r.name == "lib.access"]
    assert lines == ([] if path.startswith("/session") else [[method, path, "400"]])


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ping", 200),
        ("POST", "/ping", 405),
        ("POST", "/nowhere", 404),
        ("POST", "/pyworker/update", 401),
    ],
)
async def test_a_malformed_chunk_in_a_body_that_nobody_reads_closes_the_connection(
    tmp_path: Path, carrier: Any, method: str, path: str, status: int
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system, connected(system.url) as client:
        begun = request_bytes(path, b"1\r\na\r\nwrong\r\n", {"Transfer-Encoding": "chunked"})
        await client.send(begun.replace(b"POST", method.encode(), 1) + request_bytes("/echo", b"{}"))
        assert (await client.answer())[0].status == status
        assert await client.rest() == b""
