"""Clients that leave, at each step of their request (docs/protocol.md, "Outcomes")."""

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
    """Close the connection, or only its sending half, which counts as leaving too."""
    if way == "leave":
        client.leave()
    else:
        client.half_close()


@asynccontextmanager
async def requesting(
    system: System, path: str, workload: float = 1.0, data: dict[str, Any] | None = None
) -> AsyncGenerator[RawClient, None]:
    """Connect a client and POST to `path`; yield it once the model server works on the request."""
    async with connected(system.url) as client:
        working = system.model.working
        await client.post(path, system.envelope(workload, data))
        await system.model.until(lambda: system.model.working > working)
        yield client


async def assert_reported(system: System, *statuses: str) -> None:
    """Wait until as many finished requests as `statuses` are reported, and compare their statuses."""
    await system.engine.wait_for(lambda: len(system.engine.finished) == len(statuses))
    assert [f.request.status for f in system.engine.finished] == list(statuses)


async def in_flight(system: System, count: int) -> None:
    await system.engine.wait_for(lambda: system.last_report.num_requests_working == count)


# The model server's work is cancelled


@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_cancels_the_models_work(tmp_path: Path, way: str) -> None:
    async with with_worker_process(tmp_path) as system:
        async with requesting(system, "/held", 3.0) as client:
            leave(client, way)
            await system.model.until(lambda: system.model.cancelled == 1)
        async with requesting(system, "/stream", 3.0) as client:
            system.model.step()
            await client.head()
            assert await client.chunk() == b"data: token 0\n\n"
            leave(client, way)
            await system.model.until(lambda: system.model.cancelled == 2)
        async with requesting(system, "/silent_stream", 3.0) as client:
            await client.head()
            leave(client, way)
            await system.model.until(lambda: system.model.cancelled == 3)
        await assert_reported(system, "Cancelled", "Cancelled", "Cancelled")
        await in_flight(system, 0)
        assert all(f.request.success for f in system.engine.finished)
        assert (system.totals.cur_perf, system.last_report.cur_load) == (0.0, 0.0)
        assert system.worker is not None
        output = await system.worker.final_output()
        lines = [line for line in output.splitlines() if "lib.access" in line]
        assert [" 499 cancelled " in line for line in lines] == [True] * 3
        assert "Traceback" not in output


async def test_other_requests_are_unaffected_by_a_client_that_leaves(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, requesting(system, "/held") as stays:
        async with requesting(system, "/held") as client:
            client.leave()
        await system.model.until(lambda: system.model.cancelled == 1)
        system.model.release()
        head, body = await stays.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        await assert_reported(system, "Cancelled", "Success")


async def test_a_client_that_leaves_while_sending_its_body_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_perf": 50.0})) as system:
        caplog.set_level("INFO", "lib.access")
        for path in ("/echo", "/finish/echo"):
            async with connected(system.url) as client:
                await client.send(request_bytes(path, json.dumps(system.envelope()).encode())[:-1])
                assert (await system.call("/echo"))[0] == 200  # the worker has read what was sent by now
                client.leave()
            async with connected(system.url) as client:
                await client.send(request_bytes(path, b"x" * 9)[:-1])
                client.half_close()
                assert await client.rest() == b""
        assert (await system.call("/echo"))[0] == 200
        assert system.backend is not None
        assert sum(system.backend.metrics.outcomes.values()) == 3
        statuses = [r.getMessage().split()[3:5] for r in caplog.records if r.name == "lib.access"]
        assert statuses.count(["499", "refused"]) == 4
        assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


# In the queue


@pytest.mark.parametrize("path", ["/held", "/finish/held"])
@pytest.mark.parametrize("way", ["leave", "half close"])
async def test_a_client_that_leaves_is_removed_from_the_queue(tmp_path: Path, path: str, way: str) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME) as system, requesting(system, "/held") as works:
        async with connected(system.url) as waits:
            await waits.post(path, system.envelope(4.0))
            await in_flight(system, 2)
            leave(waits, way)
            await assert_reported(system, "Cancelled")
        assert system.engine.finished[0].request.work_started_at == 0.0
        system.model.release()
        assert (await works.answer())[0].status == 200
        assert (await system.call(path))[0] == 200  # the slot is free again
        assert len(system.model.requests) == 2  # the request of the client that left never arrived
        await system.reported(served=2.0)


# With on_disconnect="finish"


async def test_with_on_disconnect_finish_a_job_is_finished_and_counts_as_served(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        async with requesting(system, "/finish/held", 3.0) as client:
            client.leave()
        async with requesting(system, "/finish/stream", 4.0) as client:
            system.model.step()
            await client.head()
            assert await client.chunk() == b"data: token 0\n\n"
            client.half_close()
            system.model.step()
        await in_flight(system, 2)
        system.model.release()
        await system.reported(served=7.0)
        assert system.model.cancelled == 0
        await assert_reported(system, "Success", "Success")
        assert system.worker is not None
        assert "Traceback" not in await system.worker.final_output()


async def test_a_job_that_fails_after_its_client_left_counts_as_errored(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with requesting(system, "/finish/stream") as client:
            system.model.step()
            await client.head()
            client.leave()
        assert (await system.call("/echo"))[0] == 200
        await system.model.stop()
        await assert_reported(system, "Success", "Error")


async def test_with_on_disconnect_finish_a_client_that_stays_gets_its_answer(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        system.model.release()
        for path, body in (("/finish/held", b'{"done": true}'), ("/finish/stream", b"data: [DONE]\n\n")):
            await client.post(path, system.envelope())
            head, got = await client.answer()
            assert (head.status, got) == (200, body)
        await system.reported(served=2.0)


# on_client_disconnect


async def test_on_client_disconnect_gets_the_payload_of_the_job_to_stop(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        async with requesting(system, "/stopping/held", data={"job": 1}) as client:
            client.leave()
            await system.model.until(lambda: system.model.requests[-1].path == "/interrupt")
        assert system.model.requests[-1].json() == {"job": 1}
        async with requesting(system, "/stopping/stream", data={"job": 2, "raise": True}) as client:
            system.model.step()
            await client.head()
            client.leave()
            await system.model.until(lambda: system.model.requests[-1].json() == {"job": 2, "raise": True})
            await system.model.until(lambda: system.model.requests[-1].path == "/interrupt")
        assert (await system.call("/echo"))[0] == 200  # the author's exception does not stop the worker
        await assert_reported(system, "Cancelled", "Cancelled", "Success")


async def test_on_client_disconnect_is_not_called_for_a_job_that_never_began(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, ONE_AT_A_TIME) as system, requesting(system, "/held") as works:
        async with connected(system.url) as waits:
            await waits.post("/stopping/held", system.envelope())
            await in_flight(system, 2)
            waits.leave()
            await assert_reported(system, "Cancelled")
        system.model.release()
        assert (await works.answer())[0].status == 200
        assert (await system.call("/stopping/held"))[0] == 200
        assert [r.path for r in system.model.requests] == ["/held", "/held"]
