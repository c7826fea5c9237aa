"""The benchmark of a running worker (lessons 15 to 19, 21)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup
from tests.rig import inner_rig, peers, worker_process

QUICK: dict[str, Any] = {"benchmark_runs": 1, "benchmark_concurrency": 2}


def benchmarked(path: str = "/echo", log: Path | None = None, **handler: Any) -> Setup:
    setup = Setup(log=str(log)) if log else Setup(health="/health")
    setup.benchmark, setup.handler = path, {**QUICK, **handler}
    return setup


async def test_its_result_is_reported_with_ready(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, benchmarked()) as rig:
        assert rig.last_report.max_perf > 0
        assert rig.totals.cur_perf == 0  # it is no client's work
        assert [r.json() for r in rig.model.requests] == [{"workload": 10.0, "data": {"test": True}}] * 3
        saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
        assert saved["perf"] == rig.last_report.max_perf


async def test_a_restart_with_the_same_inputs_skips_it(tmp_path: Path) -> None:
    async with peers(tmp_path) as here:
        async with worker_process(here, tmp_path, benchmarked()):
            await here.ready()
            measured, sent = here.last_report.max_perf, len(here.model.requests)
        reports = here.totals.reports
        async with worker_process(here, tmp_path, benchmarked()) as worker:
            await here.engine.wait_for(
                lambda: here.totals.reports > reports and here.last_report.loadtime > 0, 20
            )
            assert here.last_report.max_perf == measured
            assert len(here.model.requests) == sent
            assert "saved benchmark" in worker.output()


async def test_the_number_of_another_worker_is_honoured(tmp_path: Path) -> None:
    (tmp_path / ".has_benchmark").write_text("321.5")
    async with inner_rig(tmp_path, benchmarked()) as rig:
        assert rig.last_report.max_perf == 321.5
        assert rig.model.requests == []


@pytest.mark.parametrize("path", ["/accepted", "/bytewise"])
async def test_any_2xx_counts(tmp_path: Path, path: str) -> None:
    async with inner_rig(tmp_path, benchmarked(path)) as rig:
        assert rig.last_report.max_perf > 0


async def test_no_rounds_leave_no_worker_loading(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, benchmarked(benchmark_runs=0)) as rig:
        assert rig.last_report.max_perf > 0


async def test_a_model_that_always_fails_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, benchmarked("/error500", benchmark_runs=1000), wait=False) as rig:
        assert "500: <h1>CUDA out of memory</h1>" in await rig.errored()
        assert (rig.last_report.max_perf, rig.last_report.loadtime) == (0.0, 0.0)
        assert len(rig.model.requests) <= 3


async def test_requests_are_refused_meanwhile(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, benchmarked("/held"), wait=False) as rig:
        await rig.model.until(lambda: len(rig.model.requests) == 1)
        status, body = await rig.call("/echo", 4.0)
        assert (status, json.loads(body)["state"]) == (503, "benchmarking")
        rig.model.release()
        await rig.ready()
        await rig.engine.wait_for(lambda: rig.totals.rej_load == 4.0)


async def test_a_crash_in_it_is_seen_at_once_and_it_runs_again_after_the_next_loaded_line(
    tmp_path: Path,
) -> None:
    log = tmp_path / "model.log"
    async with inner_rig(tmp_path, benchmarked("/held", log), wait=False) as rig:
        rig.write_log()
        await rig.model.until(lambda: len(rig.model.requests) == 1)
        rig.write_log(f"{ERROR_LINE} in the warm-up\n")
        assert await rig.errored() == f"{ERROR_LINE} in the warm-up"
        await rig.model.until(lambda: rig.model.cancelled == 1)
        rig.model.release()
        rig.write_log(f"{READY_LINE}, again\n")
        await rig.ready()
        assert rig.last_report.max_perf > 0
        assert rig.last_report.error_msg == ""
