from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from lib.client import add_target_arguments
from lib.tools.load_command import OutputOptions, add_load_arguments, plan_from_args, run_and_print
from lib.tools.load_test import LoadPlan
from tests.guard import GUARD_S
from tests.lib.tools.fakes import FakeEngine, OneByOne, engine_and_worker
from workers.hello_world.data_types import InputData

ROOT = Path(__file__).parents[3]


async def load_test(engine: FakeEngine, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lib.tools.cli", "load-test", "--engine", engine.target.engine_url, *args),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def refuse_the_second(request: web.Request) -> web.Response:
    return web.Response(status=429 if b'"request_idx": 2' in await request.read() else 200, text="said")


async def run_in_thread(plan: LoadPlan, output: OutputOptions | None = None) -> int:
    return await asyncio.to_thread(run_and_print, plan, InputData, output or OutputOptions())


async def test_the_exit_status_is_0_only_if_all_succeeded(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_and_worker() as (engine, worker):
        plan = LoadPlan(engine.target, "/generate", 2, 1000.0)
        assert await run_in_thread(plan) == 0
        assert capsys.readouterr().out.startswith("2 of 2 requests")

        engine.requests.clear()
        worker.answer = refuse_the_second
        assert await run_in_thread(plan) == 1
        assert "HTTP 429" in capsys.readouterr().out


async def test_with_json_only_json_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_and_worker() as (engine, _):
        assert (
            await run_in_thread(LoadPlan(engine.target, "/generate", 3, 1000.0), OutputOptions(as_json=True))
            == 0
        )

    summary = json.loads(capsys.readouterr().out)
    assert (summary["sent"], summary["ok"], summary["plan"]["rps"]) == (3, 3, 1000.0)
    assert summary["workers"] == [{"url": engine.worker_url, "requests": 3, "errors": {}}]


async def test_the_plot_is_saved_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure")
    async with engine_and_worker() as (engine, _):
        plan = LoadPlan(engine.target, "/generate", 1, concurrency=1)
        assert await run_in_thread(plan, OutputOptions(plot=tmp_path / "out.png")) == 0

    assert (tmp_path / "out.png").stat().st_size > 5_000


async def test_a_plot_that_fails_at_the_end_is_reported_after_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    async with engine_and_worker() as (engine, _):
        plan = LoadPlan(engine.target, "/generate", 1, concurrency=1)
        assert await run_in_thread(plan, OutputOptions(plot=tmp_path / "out.png")) == 1

    printed = capsys.readouterr()
    assert printed.out.startswith("1 of 1 requests")
    assert printed.err.startswith("--plot: matplotlib is not installed")


async def test_an_impossible_plot_is_reported_before_any_request_is_sent(tmp_path: Path) -> None:
    async with engine_and_worker() as (engine, _):
        process = await load_test(engine, "--plot", str(tmp_path / "out.txt"))
        with anyio.fail_after(GUARD_S):
            output, errors = await process.communicate()

    assert (process.returncode, output, engine.requests) == (2, b"", [])
    assert b"argument --plot: " in errors
    assert b"must end in one of .pdf, .png, .svg" in errors


async def test_ctrl_c_prints_the_summary_so_far() -> None:
    answers = OneByOne()
    async with engine_and_worker() as (engine, worker):
        worker.answer = answers.answer
        answers.allowed.release()
        process = await load_test(engine, "-n", "5", "-c", "1")
        with anyio.fail_after(GUARD_S):
            await worker.until_arrived(2)
            process.send_signal(signal.SIGINT)
            output, errors = await process.communicate()

    assert (process.returncode, errors) == (130, b"")
    assert output.startswith(b"interrupted: 1 of 5 requests in ")
    assert b"(1 more were in flight)" in output


def parsed_plan(*words: str) -> LoadPlan:
    parser = argparse.ArgumentParser()
    add_target_arguments(parser)
    add_load_arguments(parser)
    return plan_from_args(parser, parser.parse_args(["-l", *words]), "/generate")


def test_arguments_make_a_plan() -> None:
    def load(*words: str) -> tuple[int | None, float | None, int | None, float | None]:
        plan = parsed_plan(*words)
        return plan.count, plan.rps, plan.concurrency, plan.duration_s

    assert load() == (1, 1.0, None, None)
    assert load("-n", "7", "-rps", "0.5") == (7, 0.5, None, None)
    assert load("-c", "3") == (3, None, 3, None)
    assert load("-n", "7", "-c", "3") == (7, None, 3, None)
    assert load("--duration", "60") == (None, 1.0, None, 60.0)
    assert load("--duration", "60", "--concurrency", "3", "-n", "9") == (9, None, 3, 60.0)
