"""The same worker, written as classes and declared: whatever a client or the engine sees is the same."""

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


def a_worker(declared: bool, handler: dict[str, Any] | None = None, **more: Any) -> Setup:
    health = None if "log" in more else "/health"
    return Setup(declared=declared, health=health, handler=handler or {}, **more)


async def statuses(system: System, count: int) -> list[str]:
    """What the engine was told of the first `count` requests."""
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [f.request.status for f in system.engine.finished]


async def test_plain_and_as_a_process(tmp_path: Path, declared: bool) -> None:
    async with with_worker_process(tmp_path, a_worker(declared)) as here:
        async with here.post("/echo", 7.0, {"a": [1]}, headers={"Accept-Encoding": "br"}) as answer:
            assert (answer.status, answer.headers["X-Model"]) == (200, "tiny")
            seen = await answer.json()
        assert (seen["method"], seen["path"], seen["headers"]["Accept-Encoding"]) == ("POST", "/echo", "br")
        assert json.loads(seen["body"]) == {"workload": 7.0, "data": {"a": [1]}}
        await here.told(served=7.0)
        assert here.totals.cur_perf == 7.0
        assert here.last_report.max_perf == 100.0  # there is no benchmark
        assert here.worker is not None
        here.worker.terminate()
        assert await here.worker.exit_status() == 0


async def test_streamed(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, a_worker(declared)) as here, connected(here.url) as client:
        await client.post("/stream", here.envelope(3.0))
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        for number in range(3):
            here.model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        here.model.release()
        assert [await client.chunk(), await client.chunk()] == [b"data: [DONE]\n\n", b""]
        await here.told(served=3.0)


async def test_422_names_the_fields(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, a_worker(declared)) as here:
        wrong = {"auth_data": here.auth(), "payload": {"workload": "much", "data": 5}}
        async with here.http.post(here.url + "/echo", json=wrong) as answer:
            expected = {"payload": {"workload": "must be a number", "data": "must be an object"}}
            assert (answer.status, await answer.json()) == (422, expected)
        assert await statuses(here, 1) == ["Error"]
        assert here.model.requests == []


async def test_a_class_of_the_authors_own(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, a_worker(declared)) as here:
        for what, status in (("json", 422), ("response", 500), ("http", 409)):
            assert (await here.call("/raising", data={"raise": what}))[0] == status
        assert (await here.call("/raising", data={"status": 503}))[0] == 503
        assert await statuses(here, 4) == ["Error", "Error", "Success", "Error"]


async def test_429_for_what_would_wait_too_long(tmp_path: Path, declared: bool) -> None:
    one_at_a_time = {"allow_parallel_requests": False, "max_queue_time": 1.0}
    async with with_worker_task(tmp_path, a_worker(declared, one_at_a_time)) as here:
        works = asyncio.create_task(here.call("/held", 1000.0))
        await here.model.until(lambda: here.model.working == 1)
        async with here.post("/echo") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "9")
        here.model.release()
        assert (await works)[0] == 200
        assert await statuses(here, 2) == ["Rejected", "Success"]


async def test_the_models_errors(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, a_worker(declared)) as here:
        assert await here.call("/error500") == (500, b"<h1>CUDA out of memory</h1>")
        assert await here.call("/error422") == (422, b'{"detail": "no such parameter"}')
        assert (await here.call("/close"))[0] == 502
        async with connected(here.url) as client:
            await client.post("/cut_stream", here.envelope())
            await client.head()
            assert await client.chunk() == b"data: token\n\n"
            with pytest.raises(ConnectionError):
                await client.chunk()
        assert await statuses(here, 4) == ["Error", "Success", "Error", "Error"]


async def test_a_client_that_leaves(tmp_path: Path, declared: bool) -> None:
    async with with_worker_task(tmp_path, a_worker(declared)) as here:
        async with connected(here.url) as client:
            await client.post("/held", here.envelope())
            await here.model.until(lambda: here.model.working == 1)
            client.leave()
            await here.model.until(lambda: here.model.cancelled == 1)
        assert await statuses(here, 1) == ["Cancelled"]
        async with connected(here.url) as client:
            await client.post("/finish/held", here.envelope(5.0))
            await here.model.until(lambda: here.model.working == 1)
            client.leave()
        here.model.release()
        assert await statuses(here, 2) == ["Cancelled", "Success"]
        assert here.model.cancelled == 1


async def test_the_benchmark(tmp_path: Path, declared: bool) -> None:
    quick = {"benchmark_runs": 2, "benchmark_concurrency": 3}
    async with with_worker_task(tmp_path, a_worker(declared, quick, benchmark="/echo")) as here:
        assert here.last_report.max_perf > 0
        assert [r.json() for r in here.model.requests] == [{"workload": 10.0, "data": {"test": True}}] * 7
        saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
        assert (saved["inputs"]["runs"], saved["inputs"]["concurrency"]) == (2, 3)


async def test_ready_and_errored_by_the_log(tmp_path: Path, declared: bool) -> None:
    setup = a_worker(declared, log=str(tmp_path / "model.log"))
    async with with_worker_task(tmp_path, setup, wait=False, unsecured=True) as here:
        async with here.post("/echo") as answer:
            assert (answer.status, (await answer.json())["state"]) == (503, "loading")
        here.write_log()
        await here.ready()
        assert (await here.call("/echo"))[0] == 200
        here.write_log(f"{ERROR_LINE}: out of memory\n")
        assert await here.errored() == f"{ERROR_LINE}: out of memory"
        here.write_log()
        await here.told()
