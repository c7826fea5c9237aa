"""Asynchronous jobs in each dialect, and how long results are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.errors import Invalid
from tests.fakes.raw_client import connected
from tests.system import GUARD_S
from tests.workers.comfyui.comfy_system import BaseSystem, native_system
from tests.workers.comfyui.graphs import Graph, failing, image, invalid, node
from tests.workers.comfyui.test_dialects import api_system
from workers.comfyui import results
from workers.comfyui.results import JobResults
from workers.comfyui.spool import SpooledAnswer

START = "/generate"


def asked(graph: Graph, request_id: str, **more: Any) -> dict[str, Any]:
    return {"input": {"workflow_json": graph, "request_id": request_id, **more}}


async def ended(here: BaseSystem, job_id: str) -> tuple[int, Any]:
    """Status and JSON of a job's result, once the job has ended."""
    with anyio.fail_after(GUARD_S):
        while True:
            status, answer = await here.get(f"/result/{job_id}")
            if status != 202:
                return status, answer


async def test_a_job_of_a_stock_comfyui(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, answer = await here.call(START, asked(image(hold=True), "job-1"))
        assert (status, answer["id"], answer["status"], answer["output"]) == (202, "job-1", "pending", [])
        await here.model.until("running")
        assert (await here.get("/result/job-1"))[0] == 202
        status, _ = await here.call(START, asked(image(), "job-1"))
        assert status == 422  # the id is in use
        await here.call(START, asked(image(2), "job-2"))
        assert (await here.get("/queue-info"))[1] == {
            "preprocess_queue_size": 0,
            "generation_queue_size": 1,
            "postprocess_queue_size": 0,
        }
        assert here.engine.finished == []  # they count as load until they have ended

        await here.model.steer(release=True)
        status, result = await ended(here, "job-1")
        assert (status, result["id"], result["status"]) == (200, "job-1", "completed")
        assert "data" in result["output"][0]
        assert (await here.get("/result/job-1"))[1] == result  # as often as it is asked for
        assert (await ended(here, "job-2"))[0] == 200
        status, answer = await here.get("/result/nothing")
        assert (status, answer["message"]) == (404, "Request ID not found")


async def test_jobs_that_fail_or_are_refused(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        assert (await here.call(START, asked(failing(), "bad")))[0] == 202
        status, result = await ended(here, "bad")
        assert (status, result["status"], result["node_type"]) == (500, "failed", "RegexReplace")
        status, answer = await here.call(START, asked(invalid(), "invalid"))
        assert (status, list(answer["node_errors"])) == (422, ["5"])
        assert (await here.get("/result/invalid"))[0] == 404
        await here.engine.wait_for(lambda: len(here.engine.finished) >= 2, GUARD_S)
        assert "Error" in [finished.request.status for finished in here.engine.finished]


async def test_a_job_goes_on_without_its_client_and_can_be_cancelled(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        async with connected(here.url) as client:
            await client.post(START, here.envelope(asked(image(hold=True), "job")))
            assert (await client.head()).status == 202
            client.leave()
        await here.model.until("running")
        status, answer = await here.call("/cancel/job", {})
        assert (status, answer["status"]) == (200, "cancelled")
        assert (await here.model.until("interrupts"))["interrupts"] != []
        status, result = await ended(here, "job")
        assert (status, result["status"]) == (499, "cancelled")
        status, answer = await here.call("/cancel/job", {})
        assert (status, answer["message"]) == (200, "Request job is already cancelled")
        assert (await here.call("/cancel/nothing", {}))[0] == 404


async def test_jobs_of_the_wrapper(tmp_path: Path) -> None:
    async with api_system(tmp_path, "wrapper") as here:
        for graph, job_id in ((image(), "good"), ({"1": node("Fail")}, "bad")):
            status, answer = await here.call(START, asked(graph, job_id))
            assert (status, answer["id"]) == (202, job_id)
            status, answer = await here.get(f"/result/{job_id}")
            assert answer["status"] == {"good": "completed", "bad": "failed"}[job_id]
        assert (await here.call(START, asked({"1": node("Hold")}, "held")))[0] == 202
        status, answer = await here.call("/cancel/held", {})
        assert (status, answer["status"]) == (200, "cancelled")
        assert (await here.get("/queue-info"))[1] == {"generation_queue_size": 7}
        assert (await here.get("/result/nothing"))[0] == 404
        assert (await here.call(START, asked(image(), "x", modifier="y")))[0] == 422


async def test_the_runsync_api_has_no_jobs(tmp_path: Path) -> None:
    async with api_system(tmp_path, "runsync") as here:
        answers = [
            await here.call(START, asked(image(), "a")),
            await here.get("/result/a"),
            await here.call("/cancel/a", {}),
            await here.get("/queue-info"),
        ]
        assert {status for status, _ in answers} == {404}
        assert all("no asynchronous jobs" in answer["error"] for _, answer in answers)


async def keep(kept: JobResults, job_id: str, size_bytes: int = 10) -> Path:
    job = kept.begin(job_id)
    async with SpooledAnswer() as spool:
        await spool.put(b"x" * size_bytes)
        await kept.keep(job, "completed", 200, spool)
    assert job.path is not None
    return job.path


@pytest.mark.parametrize(
    ("limit", "value", "size_bytes"), [("MAX_RESULTS", 2, 10), ("MAX_BYTES", 25, 10), ("MAX_BYTES", 5, 10)]
)
async def test_the_oldest_results_are_deleted(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, size_bytes: int
) -> None:
    monkeypatch.setattr(results, limit, value)
    kept = JobResults()
    with kept.opened():
        paths = [await keep(kept, str(number), size_bytes) for number in range(4)]
        kept.begin("goes on")
        remaining = 2 if value != 5 else 1  # the last one is kept whatever its size
        assert [path.exists() for path in paths] == [False] * (4 - remaining) + [True] * remaining
        assert kept.find("3") is not None
        assert kept.find("0") is None
        monkeypatch.setattr(results, "RESULT_LIFETIME_S", -1.0)
        assert kept.find("3") is None
        assert kept.find("goes on") is not None
    assert not any(path.exists() for path in paths)


async def test_an_id_can_be_used_again_when_its_job_has_ended() -> None:
    kept = JobResults()
    with kept.opened():
        first = await keep(kept, "a")
        second = await keep(kept, "a")
        assert (first.exists(), second.exists()) == (False, True)
        kept.begin("b")
        with pytest.raises(Invalid):
            kept.begin("b")
