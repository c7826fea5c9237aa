"""The client leaves, on every part of its request's way (protocol.md §2, lesson 31)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import System, with_worker_process, with_worker_task

ONE_AT_A_TIME = Setup(health="/health", handler={"allow_parallel_requests": False})


def leave(client: RawClient, way: str) -> None:
    """Hang up, or send no more and go on reading: which counts as gone as well."""
    if way == "leave":
        client.leave()
    else:
        client.half_close()


@asynccontextmanager
async def asking(
    system: System, path: str, workload: float = 1.0, data: dict[str, Any] | None = None
) -> AsyncGenerator[RawClient, None]:
    """A client that has asked `path`, once the model server works on it."""
    async with connected(system.url) as client:
        working = system.model.working
        await client.post(path, system.envelope(workload, data))
        await system.model.until(lambda: system.model.working > working)
        yield client


async def told(system: System, *statuses: str) -> None:
    """Return once the engine was told of as many requests as `statuses`, which are theirs."""
    await system.engine.wait_for(lambda: len(system.engine.finished) == len(statuses))
    assert [f.request.status for f in system.engine.finished] == list(statuses)


async def in_flight(system: System, count: int) -> None:
    await system.engine.wait_for(lambda: system.last_report.num_requests_working == count)


# The model's work is cancelled at once


@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_cancels_the_models_work(tmp_path: Path, way: str) -> None:
    async with with_worker_process(tmp_path) as here:
        async with asking(here, "/held", 3.0) as client:
            leave(client, way)
            await here.model.until(lambda: here.model.cancelled == 1)
        async with asking(here, "/stream", 3.0) as client:
            here.model.step()
            await client.head()
            assert await client.chunk() == b"data: token 0\n\n"
            leave(client, way)
            await here.model.until(lambda: here.model.cancelled == 2)
        async with asking(here, "/silent_stream", 3.0) as client:
            await client.head()
            leave(client, way)
            await here.model.until(lambda: here.model.cancelled == 3)
        await told(here, "Cancelled", "Cancelled", "Cancelled")
        await in_flight(here, 0)
        assert all(f.request.success for f in here.engine.finished)
        assert (here.totals.cur_perf, here.last_report.cur_load) == (0.0, 0.0)
        assert here.worker is not None
        lines = [line for line in here.worker.output().splitlines() if "lib.access" in line]
        assert [" 499 cancelled " in line for line in lines] == [True] * 3
        assert "Traceback" not in here.worker.output()


async def test_the_rest_of_the_worker_does_not_notice(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, asking(here, "/held") as stays:
        async with asking(here, "/held") as client:
            client.leave()
        await here.model.until(lambda: here.model.cancelled == 1)
        here.model.release()
        head, body = await stays.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        await told(here, "Cancelled", "Success")


async def test_a_client_that_leaves_while_its_body_comes_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path) as here:
        caplog.set_level("INFO", "lib.access")
        for path in ("/echo", "/finish/echo"):
            async with connected(here.url) as client:
                await client.send(request_bytes(path, json.dumps(here.envelope()).encode())[:-1])
                assert (await here.call("/echo"))[0] == 200  # by now it is read as far as it came
                client.leave()
            async with connected(here.url) as client:
                await client.send(request_bytes(path, b"x" * 9)[:-1])
                client.half_close()
                assert await client.rest() == b""
        assert (await here.call("/echo"))[0] == 200
        assert here.backend is not None
        assert sum(here.backend.metrics.outcomes.values()) == 3
        statuses = [r.getMessage().split()[3:5] for r in caplog.records if r.name == "lib.access"]
        assert statuses.count(["499", "refused"]) == 4
        assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


# In the queue


@pytest.mark.parametrize("path", ["/held", "/finish/held"])
@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_leaves_the_queue(tmp_path: Path, path: str, way: str) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME) as here, asking(here, "/held") as works:
        async with connected(here.url) as waits:
            await waits.post(path, here.envelope(4.0))
            await in_flight(here, 2)
            leave(waits, way)
            await told(here, "Cancelled")
        assert here.engine.finished[0].request.work_started_at == 0.0
        here.model.release()
        assert (await works.answer())[0].status == 200
        assert (await here.call(path))[0] == 200  # the slot is free again
        assert len(here.model.requests) == 2  # the one that left never came there
        await here.told(served=2.0)


# Where the handler lets the model finish


async def test_a_job_is_finished_and_counts_as_served(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here:
        async with asking(here, "/finish/held", 3.0) as client:
            client.leave()
        async with asking(here, "/finish/stream", 4.0) as client:
            here.model.step()
            await client.head()
            assert await client.chunk() == b"data: token 0\n\n"
            client.half_close()
            here.model.step()
        await in_flight(here, 2)
        here.model.release()
        await here.told(served=7.0)
        assert here.model.cancelled == 0
        await told(here, "Success", "Success")
        assert here.worker is not None
        assert "Traceback" not in here.worker.output()


async def test_a_job_that_fails_after_its_client_left_is_no_success(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        async with asking(here, "/finish/stream") as client:
            here.model.step()
            await client.head()
            client.leave()
        assert (await here.call("/echo"))[0] == 200
        await here.model.stop()
        await told(here, "Success", "Error")


async def test_a_client_that_stays_gets_its_answer_all_the_same(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        here.model.release()
        for path, body in (("/finish/held", b'{"done": true}'), ("/finish/stream", b"data: [DONE]\n\n")):
            await client.post(path, here.envelope())
            head, got = await client.answer()
            assert (head.status, got) == (200, body)
        await here.told(served=2.0)


# The author is told


async def test_the_author_is_told_which_job_to_stop(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        async with asking(here, "/stopping/held", data={"job": 1}) as client:
            client.leave()
            await here.model.until(lambda: here.model.requests[-1].path == "/interrupt")
        assert here.model.requests[-1].json() == {"job": 1}
        async with asking(here, "/stopping/stream", data={"job": 2, "raise": True}) as client:
            here.model.step()
            await client.head()
            client.leave()
            await here.model.until(lambda: here.model.requests[-1].json() == {"job": 2, "raise": True})
            await here.model.until(lambda: here.model.requests[-1].path == "/interrupt")
        assert (await here.call("/echo"))[0] == 200  # what the author raised there is no end
        await told(here, "Cancelled", "Cancelled", "Success")


async def test_the_author_is_not_told_of_a_job_that_never_began(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME) as here, asking(here, "/held") as works:
        async with connected(here.url) as waits:
            await waits.post("/stopping/held", here.envelope())
            await in_flight(here, 2)
            waits.leave()
            await told(here, "Cancelled")
        here.model.release()
        assert (await works.answer())[0].status == 200
        assert (await here.call("/stopping/held"))[0] == 200
        assert [r.path for r in here.model.requests] == ["/held", "/held"]
