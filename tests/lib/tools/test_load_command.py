from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from lib.client import add_target_arguments
from lib.tools.load_command import Output, add_load_arguments, plan_of, run_and_print
from lib.tools.load_test import Plan
from tests.lib.tools.stand_ins import Engine, InTurn, Worker
from workers.hello_world.data_types import InputData

ROOT = Path(__file__).parents[3]
GUARD_S = 30.0


@asynccontextmanager
async def engine_and_worker() -> AsyncGenerator[tuple[Engine, Worker], None]:
    worker = Worker()
    async with worker.server:
        engine = Engine(worker.url)
        async with engine.server:
            yield engine, worker


async def load_test(engine: Engine, *args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lib.tools.cli", "load-test", "--engine", engine.target.engine_url, *args),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def refuse_the_second(request: web.Request) -> web.Response:
    return web.Response(status=429 if b'"request_idx": 2' in await request.read() else 200, text="said")


async def run_in_thread(plan: Plan, output: Output | None = None) -> int:
    return await asyncio.to_thread(run_and_print, plan, InputData, output or Output())


async def test_the_exit_status_is_0_only_if_all_succeeded(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_and_worker() as (engine, worker):
        plan = Plan(engine.target, "/generate", 2, 1000.0)
        assert await run_in_thread(plan) == 0
        assert capsys.readouterr().out.startswith("2 of 2 requests")

        engine.asked.clear()
        worker.answer = refuse_the_second
        assert await run_in_thread(plan) == 1
        assert "HTTP 429" in capsys.readouterr().out


async def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async with engine_and_worker() as (engine, _):
        assert await run_in_thread(Plan(engine.target, "/generate", 3, 1000.0), Output(as_json=True)) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["sent"], told["ok"], told["plan"]["rps"]) == (3, 3, 1000.0)
    assert told["workers"] == [{"url": engine.worker_url, "requests": 3, "errors": {}}]


async def test_a_picture_is_drawn_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.figure")
    async with engine_and_worker() as (engine, _):
        plan = Plan(engine.target, "/generate", 1, concurrency=1)
        assert await run_in_thread(plan, Output(plot=tmp_path / "out.png")) == 0

    assert (tmp_path / "out.png").stat().st_size > 5_000


async def test_a_picture_that_cannot_be_drawn_after_all_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    async with engine_and_worker() as (engine, _):
        plan = Plan(engine.target, "/generate", 1, concurrency=1)
        assert await run_in_thread(plan, Output(plot=tmp_path / "out.png")) == 1

    told = capsys.readouterr()
    assert told.out.startswith("1 of 1 requests")
    assert told.err.startswith("--plot: it needs matplotlib")


async def test_what_cannot_be_drawn_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    async with engine_and_worker() as (engine, _):
        process = await load_test(engine, "--plot", str(tmp_path / "out.txt"))
        with anyio.fail_after(GUARD_S):
            output, errors = await process.communicate()

    assert (process.returncode, output, engine.asked) == (2, b"", [])
    assert b"argument --plot: " in errors
    assert b"must end in .pdf, .png, .svg" in errors


async def test_ctrl_c_prints_what_there_is() -> None:
    turn = InTurn()
    async with engine_and_worker() as (engine, worker):
        worker.answer = turn.answer
        turn.allowed.release()
        process = await load_test(engine, "-n", "5", "-c", "1")
        with anyio.fail_after(GUARD_S):
            await worker.until_arrived(2)
            process.send_signal(signal.SIGINT)
            output, errors = await process.communicate()

    assert (process.returncode, errors) == (130, b"")
    assert output.startswith(b"interrupted: 1 of 5 requests in ")
    assert b"(1 more without an answer)" in output


def plan(*words: str) -> Plan:
    parser = argparse.ArgumentParser()
    add_target_arguments(parser)
    add_load_arguments(parser)
    return plan_of(parser, parser.parse_args(["-l", *words]), "/generate")


def test_arguments_make_a_plan() -> None:
    def pace(*words: str) -> tuple[int | None, float | None, int | None, float | None]:
        made = plan(*words)
        return made.count, made.rps, made.concurrency, made.duration_s

    assert pace() == (1, 1.0, None, None)
    assert pace("-n", "7", "-rps", "0.5") == (7, 0.5, None, None)
    assert pace("-c", "3") == (3, None, 3, None)
    assert pace("-n", "7", "-c", "3") == (7, None, 3, None)
    assert pace("--duration", "60") == (None, 1.0, None, 60.0)
    assert pace("--duration", "60", "--concurrency", "3", "-n", "9") == (9, None, 3, 60.0)
