"""One worker written as classes and as a declaration: clients and the engine see no difference."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import connected
from tests.fakes.worker import ERROR_LINE, Setup
from tests.system import System, with_worker_process, with_worker_task

pytestmark = pytest.mark.parametrize("declared", [False, True], ids=["classes", "declared"])


def worker_setup(declared: bool, handler: dict[str, Any] | None = None, **more: Any) -> Setup:
    health = None if "log" in more else "/health"
    return Setup(declared=declared, health=health, handler=handler or {}, **more)


async def reported_statuses(system: System, count: int) -> list[str]:
    """Return the reported statuses once there are `count`."""
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [f.request.status for f in system.engine.finished]


async def test_a_worker_process_answers_a_plain_request(tmp_path: Path, declared: bool) -> None:
    async with with_worker_process(tmp_path, worker_setup(declared)) as system:
        async with system.post("/echo", 7.0, {"a": [1]}, headers={"Accept-Encoding": "br"}) as answer:
            assert (answer.status, answer.headers["X-Model"]) == (200, "tiny")
            seen = await answer.json()
        assert (seen["method"], seen["path"], seen["headers"]["Accept-Encoding"]) == ("POST", "/echo", "br")
        assert json.loads(seen["body"]) == {"workload": 7.0, "data": {"a": [1]}}
        await system.reported(served=7.0)
        assert system.totals.cur_perf == 7.0
        assert system.last_report.max_perf == 100.0  # there is no benchmark
        assert system.worker is not None
        system.worker.terminate()
        assert await system.worker.exit_status() == 0


async def test_a_stream_arrives_chunk_by_chunk(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, worker_setup(declared)) as system, connected(system.url) as client:
        await client.post("/stream", system.envelope(3.0))
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        for number in range(3):
            system.model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        system.model.release()
        assert [await client.chunk(), await client.chunk()] == [b"data: [DONE]\n\n", b""]
        await system.reported(served=3.0)


async def test_422_names_the_wrong_fields(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, worker_setup(declared)) as system:
        wrong = {"auth_data": system.auth(), "payload": {"workload": "much", "data": 5}}
        async with system.http.post(system.url + "/echo", json=wrong) as answer:
            expected = {"payload": {"workload": "must be a number", "data": "must be an object"}}
            assert (answer.status, await answer.json()) == (422, expected)
        assert await reported_statuses(system, 1) == ["Error"]
        assert system.model.requests == []


async def test_an_authors_own_handler_class_is_used(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, worker_setup(declared)) as system:
        for what, status in (("json", 422), ("response", 500), ("http", 409)):
            assert (await system.call("/raising", data={"raise": what}))[0] == status
        assert (await system.call("/raising", data={"status": 503}))[0] == 503
        assert await reported_statuses(system, 4) == ["Error", "Error", "Success", "Error"]


async def test_429_for_a_request_that_would_wait_too_long(tmp_path: Path, declared: bool) -> None:
    one_at_a_time = {"allow_parallel_requests": False, "max_queue_time": 1.0}
    async with with_worker_task(tmp_path, worker_setup(declared, one_at_a_time)) as system:
        works = asyncio.create_task(system.call("/held", 1000.0))
        await system.model.until(lambda: system.model.working == 1)
        async with system.post("/echo") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "9")
        system.model.release()
        assert (await works)[0] == 200
        assert await reported_statuses(system, 2) == ["Rejected", "Success"]


async def test_model_server_errors_are_passed_on(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, worker_setup(declared)) as system:
        assert await system.call("/error500") == (500, b"<h1>CUDA out of memory</h1>")
        assert await system.call("/error422") == (422, b'{"detail": "no such parameter"}')
        assert (await system.call("/close"))[0] == 502
        async with connected(system.url) as client:
            await client.post("/cut_stream", system.envelope())
            await client.head()
            assert await client.chunk() == b"data: token\n\n"
            with pytest.raises(ConnectionError):
                await client.chunk()
        assert await reported_statuses(system, 4) == ["Error", "Success", "Error", "Error"]


async def test_a_client_that_leaves_cancels_unless_the_handler_finishes(
    tmp_path: Path, declared: bool
) -> None:
    async with with_worker_task(tmp_path, worker_setup(declared)) as system:
        async with connected(system.url) as client:
            await client.post("/held", system.envelope())
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
            await system.model.until(lambda: system.model.cancelled == 1)
        assert await reported_statuses(system, 1) == ["Cancelled"]
        async with connected(system.url) as client:
            await client.post("/finish/held", system.envelope(5.0))
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
        system.model.release()
        assert await reported_statuses(system, 2) == ["Cancelled", "Success"]
        assert system.model.cancelled == 1


async def test_the_benchmark_is_measured_and_saved(tmp_path: Path, declared: bool) -> None:
    quick = {"benchmark_runs": 2, "benchmark_concurrency": 3}
    async with with_worker_task(tmp_path, worker_setup(declared, quick, benchmark="/echo")) as system:
        assert system.last_report.max_perf > 0
        assert len(system.model.requests) >= 7  # the warm-up, and twice as many as are in flight
        assert all(r.json() == {"workload": 10.0, "data": {"test": True}} for r in system.model.requests)
        saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
        assert (saved["inputs"]["runs"], saved["inputs"]["concurrency"]) == (2, 3)


async def test_the_log_sets_ready_and_error(tmp_path: Path, declared: bool) -> None:
    setup = worker_setup(declared, log=str(tmp_path / "model.log"))
    async with with_worker_task(tmp_path, setup, wait=False, unsecured=True) as system:
        async with system.post("/echo") as answer:
            assert (answer.status, (await answer.json())["state"]) == (503, "loading")
        system.write_log()
        await system.ready()
        assert (await system.call("/echo"))[0] == 200
        system.write_log(f"{ERROR_LINE}: out of memory\n")
        assert await system.errored() == f"{ERROR_LINE}: out of memory"
        system.write_log()
        await system.reported()
