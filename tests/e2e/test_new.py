"""The first steps of a new author: `pyworker new`, its test, `run --local`, a request, `status`."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.local.processes import free_port
from lib.tools.scaffold import make_worker
from tests.fakes.command import command, done


@pytest.fixture
def ports() -> Generator[dict[str, str], None, None]:
    """Free ports for the model server and the worker, as variables."""
    with ExitStack() as stack:
        model, worker, loopback = (str(stack.enter_context(free_port())) for _ in range(3))
        url = f"http://127.0.0.1:{model}"
        yield {"MODEL_SERVER_URL": url, "WORKER_PORT": worker, "WORKER_HTTP_PORT": loopback}


def saved_benchmarks(folder: Path) -> list[str]:
    """The folders in which a benchmark's result was saved."""
    return [p.parent.name for p in folder.rglob(".pyworker_benchmark.json")]


async def test_a_new_worker_passes_its_own_test(tmp_path: Path) -> None:
    made = await done("new", "storyteller", cwd=tmp_path)
    assert (made.status, made.errors) == (0, "")
    assert "pyworker run storyteller/worker.py --local" in made.output
    words = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "storyteller")
    tested = await done(*words, cwd=tmp_path, env={"PYTEST_ADDOPTS": ""})  # this run may ask for coverage
    assert tested.status == 0, tested.output
    assert "2 passed" in tested.output
    assert not saved_benchmarks(tmp_path)

    again = await done("new", "storyteller", cwd=tmp_path)
    assert (again.status, again.output) == (2, "")
    assert again.errors.startswith("pyworker new: storyteller exists already")


async def test_a_new_worker_runs_locally_and_answers(tmp_path: Path, ports: dict[str, str]) -> None:
    make_worker("storyteller", tmp_path)
    model_port = ports["MODEL_SERVER_URL"].rsplit(":", 1)[1]
    async with (
        command("python", "storyteller/model_server.py", "--port", model_port, cwd=tmp_path) as model,
        command("run", "storyteller/worker.py", "--local", cwd=tmp_path, env=ports) as worker,
    ):
        await model.until("Running on")
        await worker.until("The worker is ready. It takes POST /generate, POST /generate_stream.")
        await worker.until("pyworker request /generate_stream ")
        assert f"worker        http://127.0.0.1:{ports['WORKER_PORT']}\n" in worker.output
        assert f"its status    http://127.0.0.1:{ports['WORKER_HTTP_PORT']}/status\n" in worker.output
        found = re.search(r"engine +(http://127.0.0.1:\d+)", worker.output)
        assert found is not None

        suggested = re.findall(r"^  pyworker (request .*)$", worker.output, re.MULTILINE)
        assert [shlex.split(line)[1] for line in suggested] == ["/generate", "/generate_stream"]
        for line in suggested:
            assert f" --engine {found[1]}" in line or line.endswith(" -l")
            assert (await done(*shlex.split(line), cwd=tmp_path)).status == 0

        payload = '{"prompt": "Once", "max_words": 3}'
        asked = await done("request", "/generate_stream", payload, "--engine", found[1], cwd=tmp_path)
        assert (asked.status, asked.errors) == (0, "")
        assert [set(json.loads(line)) for line in asked.output.splitlines()] == [{"word"}] * 3

        wrong = await done("request", "generat", "{}", "--engine", found[1], cwd=tmp_path)
        assert (wrong.status, wrong.output) == (1, '{"error": "POST /generat: not found"}\n')
        assert "/generat answered 404 Not Found\n" in wrong.errors
        assert "routes are POST /generate, POST /generate_stream" in wrong.errors

        shown = await done("status", cwd=tmp_path, env=ports)
        assert (shown.status, shown.errors) == (0, "")
        for text in (
            ": ready for ",
            "POST /generate_stream",
            "; healthy",
            "3 served",
            "200 OK",
        ):
            assert text in shown.output
        raw = await done("status", "--json", "--port", ports["WORKER_HTTP_PORT"], cwd=tmp_path)
        routes = {each["route"] for each in json.loads(raw.output)["slowest"]}
        assert routes == {"POST /generate", "POST /generate_stream"}

        checked = await done("check", "storyteller", cwd=tmp_path, env=ports)
        assert checked.status == 0, checked.output
        assert "ok       health check" in checked.output
        assert "ok       request       answered 200 after" in checked.output

        worker.process.send_signal(signal.SIGINT)
        assert (await worker.end()).status == 0
    assert saved_benchmarks(tmp_path) == ["storyteller"]


async def test_a_request_without_an_engine_says_how_to_start_one(tmp_path: Path) -> None:
    asked = await done("request", "/generate", "{}", "--engine", "http://127.0.0.1:1", cwd=tmp_path)
    assert (asked.status, asked.output) == (1, "")
    assert asked.errors == (
        "pyworker request: nothing listens at 127.0.0.1:1: start the worker with "
        "pyworker run WORKER --local\n"
    )
