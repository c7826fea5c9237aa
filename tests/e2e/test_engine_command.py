"""`pyworker engine` as a process, with workers that it starts itself."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.fakes.command import command, done

BROKEN_WORKER = "raise RuntimeError('no such GPU')\n"
FILE_WORKER = """
from lib.worker import HandlerConfig, Worker, WorkerConfig

async def double(number: int) -> dict[str, int]:
    return {"doubled": 2 * number}

Worker(WorkerConfig(handlers=[HandlerConfig("/double", remote_function=double)])).run()
"""


async def test_a_started_worker_serves_and_is_stopped(tmp_path: Path) -> None:
    async with command("engine", "--port", "0", "--autoscale", "2", cwd=tmp_path) as engine:
        await engine.until("autoscale: starting worker 101: to measure its performance")
        url = re.findall(r"http://\S+", engine.output)[0]
        payload = '{"prompt": "Alice was", "max_response_tokens": 5}'
        asked = await done(*("request", "/generate", payload, "--engine", url), cwd=tmp_path)
        assert asked.status == 0, asked.errors
        assert '"tokens": 5' in asked.output.replace(":5", ": 5")
        async with aiohttp.ClientSession() as http, http.get(url + "/local/plan") as answer:
            (plan,) = (await answer.json())["plans"]
        assert plan["autoscale"] == {"endpoint": "local", "most": 2, "running": 1, "wanted": 1}
        assert plan["workers_ready"] == 1
        await engine.until("autoscale")  # it has children by now; none may outlive it
        engine.process.send_signal(signal.SIGTERM)
        assert (await engine.end()).status == 128 + signal.SIGTERM


async def test_workers_are_started_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(FILE_WORKER)
    words = ("engine", "--port", "0", "--endpoint", "chat", "--autoscale", "1", "--worker", ".")
    async with command(*words, cwd=tmp_path) as engine:
        await engine.until("starting worker 101")
        url = re.findall(r"http://\S+", engine.output)[0]
        options = ("--engine", url, "-e", "chat")
        asked = await done("request", "/double", '{"number": 4}', *options, cwd=tmp_path)
        assert '{"doubled": 8}' in asked.output, asked.errors
        engine.process.send_signal(signal.SIGINT)
        assert (await engine.end()).status == 128 + signal.SIGINT


async def test_a_worker_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(BROKEN_WORKER)
    words = ("engine", "--port", "0", "--autoscale", "1", "--worker", "worker.py")
    async with command(*words, cwd=tmp_path) as engine:
        await engine.until("worker 101 failed, next start in 1 s: the worker ended with exit status 1")
        await engine.until("no such GPU")
        await engine.until("next start in 2 s")


async def test_it_may_be_asked_for_by_names_that_are_allowed(tmp_path: Path) -> None:
    names = ("--allow-host", "Engine.Example", "--allow-host", "other.example")
    async with command("engine", "--port", "0", *names, cwd=tmp_path) as engine:
        await engine.until("http://")
        await engine.until("\n")
        url = re.findall(r"http://[\w.:]+", engine.output)[0]
        async with aiohttp.ClientSession() as http:
            for host, status in (("engine.example", 200), ("other.example:1", 200), ("evil.example", 421)):
                async with http.get(url + "/pubkey/", headers={"Host": host}) as answer:
                    assert answer.status == status, host


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--worker", "hello_world"), "--worker: needs --autoscale"),
        (("--autoscale", "0"), "1 to 64"),
        (("--autoscale", "many"), "1 to 64"),
        (("--allow-host", "a.example:80"), "'a.example:80' is not the name of a host, without a port"),
        (("--autoscale", "1", "--worker", "helo_world"), "helo_world"),
    ],
)
async def test_impossible_options_are_refused(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    ended = await done("engine", "--port", "0", *words, cwd=tmp_path)
    assert ended.status == 2
    assert said in ended.errors
    assert "Traceback" not in ended.errors
