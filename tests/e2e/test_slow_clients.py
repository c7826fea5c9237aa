"""Clients that take their answers slowly, or not at all (docs/protocol.md, "Connections")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import connected
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


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize("path", ["/echo", "/ping"])
async def test_a_malformed_chunk_is_a_400_and_leaves_no_request(
    tmp_path: Path, carrier: Any, path: str
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system, connected(system.url) as client:
        await client.post(path, b'5\r\n{"a"\r\nwrong', {"Transfer-Encoding": "chunked"})
        head, body = await client.answer()
        assert (head.status, head.headers["content-type"].split(";")[0]) == (400, "application/json")
        assert b"wrong" not in body
        assert await client.rest() == b""
        assert system.model.requests == []
        assert (await system.call("/echo"))[0] == 200
