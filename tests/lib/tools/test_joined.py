from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from lib.client import CLOUD_ENGINE, Target
from lib.local.engine import AutoscaleStatus, LocalEngine
from lib.local.serving import serve_engine
from lib.tools.joined import NobodyJoined, check_joined
from lib.tools.load_command import run_and_print
from lib.tools.load_test import LoadPlan
from tests.fakes.command import command, done
from tests.fakes.reports import READY
from tests.lib.tools.fakes import engine_and_worker, never
from tests.system import engine_key


async def checked(url: str, endpoint: str, key: str = "any") -> str | None:
    """The text of `NobodyJoined`, or None."""
    async with aiohttp.ClientSession() as http:
        try:
            await check_joined(http, Target(url, endpoint, key))
        except NobodyJoined as e:
            return str(e)
    return None


async def test_an_endpoint_that_nobody_joined_is_reported_with_the_others() -> None:
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url:
        assert await checked(url, "local") == (
            f"no worker has joined the endpoint 'local' of the engine at {url}.\n"
            f"A worker joins if it is started with REPORT_ADDR={url}/e/local. "
            "--timeout SECONDS waits for one."
        )
        engine.take_report("local", READY)
        engine.take_report("local", replace(READY, id=8, loadtime=0.0))
        engine.take_report("a/b", replace(READY, id=9, error_msg="broken"))
        assert await checked(url, "local") is None
        assert await checked(f"{url}/e/local", "local") is None
        text = await checked(url, "no pe")
        assert text is not None
        assert (
            "It has other endpoints: local (1 ready, 1 loading), a/b (1 error). Name one with -e.\n" in text
        )
        assert f"REPORT_ADDR={url}/e/no%20pe. " in text


async def test_an_endpoint_whose_workers_are_not_ready_has_been_joined() -> None:
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url:
        engine.take_report("local", replace(READY, loadtime=0.0))
        assert await checked(url, "local") is None


async def test_an_endpoint_for_which_the_engine_starts_workers_will_be_joined() -> None:
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url:
        engine.autoscale = AutoscaleStatus("local", running=0, wanted=1, most=1)
        assert await checked(url, "local") is None
        assert await checked(url, "other") is not None


async def test_an_engine_that_cannot_be_asked_is_passed_over() -> None:
    async with serve_engine(LocalEngine(api_key="secret", key=engine_key())) as url:
        assert await checked(url, "nope", "wrong") is None
        assert await checked(url, "nope", "secret") is not None
    assert await checked(url, "nope", "secret") is None
    assert await checked(CLOUD_ENGINE, "nope") is None


@pytest.mark.parametrize(("name", "words"), [("request", ("/generate",)), ("load-test", ("-n", "2"))])
async def test_the_commands_say_so_at_once(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url:
        ended = await done(name, *words, "-e", "nope", "--engine", url, cwd=tmp_path)
        assert (ended.status, ended.output) == (1, "")
        assert "no worker has joined the endpoint 'nope'" in ended.errors
        assert engine.requests_seen["route"] == 0
        waited = await done(name, *words, "-e", "nope", "--engine", url, "--timeout", "0.1", cwd=tmp_path)
        assert waited.status == 1
        assert "no worker is ready: none has joined" in waited.output + waited.errors
        assert engine.requests_seen["route"] > 0


async def test_with_a_timeout_a_request_waits_for_a_worker_to_join(tmp_path: Path) -> None:
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url:
        words = ("request", "/generate", "-e", "late", "--engine", url, "--timeout", "60")
        async with command(*words, cwd=tmp_path, errors_in_output=True) as asked:
            await asked.until(
                f"no worker is ready yet: none has joined this endpoint (is its name right?); {url}/"
            )
            engine.take_report("late", replace(READY, url=url))  # the engine has no such route
            assert (await asked.end()).status == 1
        assert f"{url}/generate answered 404" in asked.output


async def test_with_a_timeout_an_answer_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = never
        words = ("request", "/x", "--engine", engine.target.engine_url, "--timeout", "1")
        ended = await done(*words, cwd=tmp_path)
    assert (ended.status, ended.errors) == (1, "pyworker request: no complete answer within 1 s\n")


async def test_a_load_test_of_ones_own_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve_engine(LocalEngine(key=engine_key())) as url:
        plan = LoadPlan(Target(url, "nope", "any"), "/generate", 1, 1.0)
        assert await asyncio.to_thread(run_and_print, plan, {}) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("no worker has joined the endpoint 'nope'")
