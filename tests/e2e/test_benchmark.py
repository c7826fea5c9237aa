"""The benchmark of a running worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup
from tests.system import engine_and_model_server, with_worker_task, worker_process

QUICK: dict[str, Any] = {"benchmark_runs": 1, "benchmark_concurrency": 2}


def benchmarked(path: str = "/echo", log: Path | None = None, **handler: Any) -> Setup:
    setup = Setup(log=str(log)) if log else Setup(health="/health")
    setup.benchmark, setup.handler = path, {**QUICK, **handler}
    return setup


async def test_the_result_is_reported_with_ready(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, benchmarked()) as system:
        assert system.last_report.max_perf > 0
        assert system.totals.cur_perf == 0  # the benchmark is not a client's work
        assert len(system.model.requests) >= 3  # the warm-up, and two at once
        assert all(r.json() == {"workload": 10.0, "data": {"test": True}} for r in system.model.requests)
        saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
        assert saved["perf"] == system.last_report.max_perf


async def test_a_restart_with_the_same_inputs_skips_the_benchmark(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        async with worker_process(system, tmp_path, benchmarked()):
            await system.ready()
            measured, sent = system.last_report.max_perf, len(system.model.requests)
        reports = system.totals.reports
        async with worker_process(system, tmp_path, benchmarked()) as worker:
            await system.engine.wait_for(
                lambda: system.totals.reports > reports and system.last_report.loadtime > 0
            )
            assert system.last_report.max_perf == measured
            assert len(system.model.requests) == sent
            assert "saved benchmark" in await worker.final_output()


async def test_a_result_saved_in_has_benchmark_is_used(tmp_path: Path) -> None:
    (tmp_path / ".has_benchmark").write_text("321.5")
    async with with_worker_task(tmp_path, benchmarked()) as system:
        assert system.last_report.max_perf == 321.5
        assert system.model.requests == []


@pytest.mark.parametrize("path", ["/accepted", "/bytewise"])
async def test_any_2xx_counts_as_success(tmp_path: Path, path: str) -> None:
    async with with_worker_task(tmp_path, benchmarked(path)) as system:
        assert system.last_report.max_perf > 0


async def test_a_benchmark_without_runs_does_not_leave_the_worker_loading(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, benchmarked(benchmark_runs=0)) as system:
        assert system.last_report.max_perf > 0


async def test_a_model_that_always_fails_is_an_error_with_its_own_message(tmp_path: Path) -> None:
    async with with_worker_task(
        tmp_path, benchmarked("/error500", benchmark_runs=1000), wait=False
    ) as system:
        assert "500: <h1>CUDA out of memory</h1>" in await system.errored()
        assert (system.last_report.max_perf, system.last_report.loadtime) == (0.0, 0.0)
        assert len(system.model.requests) <= 3


async def test_requests_are_refused_during_the_benchmark(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, benchmarked("/held"), wait=False) as system:
        await system.model.until(lambda: len(system.model.requests) == 1)
        status, body = await system.call("/echo", 4.0)
        assert (status, json.loads(body)["state"]) == (503, "benchmarking")
        system.model.release()
        await system.ready()
        await system.engine.wait_for(lambda: system.totals.rej_load == 4.0)


async def test_a_crash_during_the_benchmark_is_noticed_and_the_next_load_starts_it_again(
    tmp_path: Path,
) -> None:
    log = tmp_path / "model.log"
    async with with_worker_task(tmp_path, benchmarked("/held", log), wait=False) as system:
        system.write_log()
        await system.model.until(lambda: len(system.model.requests) == 1)
        system.write_log(f"{ERROR_LINE} in the warm-up\n")
        assert await system.errored() == f"{ERROR_LINE} in the warm-up"
        await system.model.until(lambda: system.model.cancelled == 1)
        system.model.release()
        system.write_log(f"{READY_LINE}, again\n")
        await system.ready()
        assert system.last_report.max_perf > 0
        assert system.last_report.error_msg == ""
