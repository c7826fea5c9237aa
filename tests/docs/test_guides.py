"""The workers in docs/writing-a-worker.md and docs/migrating.md run, and do what is said of them."""

from __future__ import annotations

import ast
import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from lib.local.local_worker_env import WORKER_ID
from lib.testing import Trial, trial
from tests.docs.blocks import document
from tests.docs.model_server import WORDS, GuideModel, guide_model
from tests.fakes.command import done

GUIDE = document("writing-a-worker")
MIGRATING = document("migrating")
READY = "model is ready\n"


@asynccontextmanager
async def running(folder: Path, name: str, **env: str) -> AsyncGenerator[tuple[Trial, GuideModel], None]:
    """The worker of the guide's file `name`, in front of the guide's model server."""
    log = folder / "model.log"
    log.write_text(READY)
    async with guide_model() as model:
        variables = {"MODEL_SERVER_URL": model.url, "MODEL_LOG": str(log), **env}
        async with trial(folder / name, **variables) as worker:
            yield worker, model


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """The guide's files."""
    GUIDE.write_files(tmp_path)
    return tmp_path


async def answer(worker: Trial, route: str, payload: dict[str, Any], cost: float = 1.0) -> tuple[int, Any]:
    status, body = await worker.post(route, payload, cost)
    return status, json.loads(body)


def header(worker: Trial) -> dict[str, str]:
    """Header authentication, as the protocol tells it."""
    auth = worker.instance.engine.sign(url=worker.instance.worker_url)
    return {"X-Vast-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}


async def told(worker: Trial, *statuses: str) -> None:
    """Return once the engine was told of as many requests as `statuses`, which are theirs."""
    engine = worker.instance.engine
    await engine.wait_for(lambda: len(engine.finished) >= len(statuses))
    assert [f.request.status for f in engine.finished] == list(statuses)


async def served(worker: Trial, workload: float) -> None:
    """Return once the engine was told that so much was served."""
    record = worker.instance.engine.worker(WORKER_ID)
    await worker.instance.engine.wait_for(lambda: record.totals.cur_perf >= workload)
    assert record.totals.cur_perf == workload


def test_every_file_is_python(guide: Path) -> None:
    files = sorted(guide.glob("*.py"))
    assert len(files) >= 8
    for file in files:
        ast.parse(file.read_text())


async def test_the_declared_worker(guide: Path) -> None:
    async with running(guide, "text.py") as (worker, model):
        assert worker.instance.engine.worker(WORKER_ID).last is not None
        asked = {"prompt": "Alice was tired", "max_tokens": 100}
        assert await model.until("POST /generate") == asked  # the benchmark's
        assert await answer(worker, "/generate", {"prompt": "Hi"}) == (200, {"response": " ".join(WORDS)})
        lines = [json.loads(line) async for line in worker.lines("/generate_stream", {"max_tokens": 7})]
        assert lines == [{"word": word} for word in WORDS]
        await served(worker, 207.0)
        (guide / "model.log").write_text(f"{READY}CUDA error: out of memory\n")
        record = worker.instance.engine.worker(WORKER_ID)
        await worker.instance.engine.wait_for(lambda: record.state == "error")


async def test_its_test_passes(guide: Path) -> None:
    tested = await done("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_text.py", cwd=guide)
    assert "1 passed" in tested.output, tested.output


async def test_the_payload_class_and_the_load_test(guide: Path) -> None:
    async with running(guide, "payload.py") as (worker, model):
        assert len((await model.until("POST /generate"))["prompt"].split()) == 100
        assert await answer(worker, "/generate", {"prompt": " Hi ", "max_tokens": 3, "more": 1}) == (
            200,
            {"response": " ".join(WORDS)},
        )
        assert model.came[-1][1] == {"prompt": "Hi", "max_tokens": 3}
        assert await answer(worker, "/generate", {"max_tokens": "3"}) == (
            422,
            {"payload": {"prompt": "missing parameter", "max_tokens": "must be an integer"}},
        )
        assert await answer(worker, "/generate", {"prompt": "Hi", "max_tokens": 5000}) == (
            422,
            {"payload": {"max_tokens": "must be from 1 to 4096"}},
        )
        engine = worker.instance.engine_url
        loaded = await done("python", "load.py", "--engine", engine, "-n", "3", "-rps", "50", cwd=guide)
        assert loaded.status == 0, loaded.errors
        assert "3 of 3 requests" in loaded.output
        await served(worker, 303.0)


async def test_answers_of_ones_own(guide: Path) -> None:
    async with running(guide, "answer.py") as (worker, _):
        assert await answer(worker, "/generate", {"prompt": "Hi"}) == (
            200,
            {"text": " ".join(WORDS), "model": "my_model"},
        )
        assert await answer(worker, "/generate", {"prompt": "nothing"}) == (
            200,
            {"text": "", "model": "my_model"},
        )
        assert (await answer(worker, "/generate", {"prompt": "fail"}))[0] == 500
        lines = [line async for line in worker.lines("/generate_stream", {"prompt": "fail"})]
        assert len(lines) == 5
        await told(worker, "Success", "Error", "Error", "Error")


async def test_python_functions(guide: Path) -> None:
    async with running(guide, "functions.py") as (worker, _):
        assert await answer(worker, "/shout", {"text": "hi", "times": 2}) == (200, {"result": "HI HI"})
        assert await answer(worker, "/shout", {"txt": "hi"}) == (
            422,
            {"payload": {"text": "missing parameter", "txt": "unknown parameter"}},
        )
        lines = [json.loads(line) async for line in worker.lines("/words", {"count": 5})]
        assert [line["word"] for line in lines] == [*WORDS, WORDS[0]]
        last = worker.instance.engine.worker(WORKER_ID).last
        assert last is not None
        assert last.max_perf == 100.0
        await served(worker, 102.0)


async def test_uploads_parameters_and_long_jobs(guide: Path) -> None:
    async with running(guide, "shapes.py") as (worker, _):
        url = worker.instance.worker_url
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("file", b"x" * 160_000, filename="a.wav")
        async with worker.http.post(f"{url}/transcribe", data=form, headers=header(worker)) as response:
            transcribed = await response.json()
        assert transcribed["type"] == "multipart/form-data"
        assert transcribed["bytes"] > 160_000
        async with worker.http.get(f"{url}/voices/a%20b?limit=7", headers=header(worker)) as response:
            assert await response.json() == {"path": "/voices/a b", "query": {"limit": "7"}}
        assert (await answer(worker, "/render", {"prompt": "Hi"}))[0] == 200
        await served(worker, transcribed["bytes"] / 16_000 + 7.0 + 100.0)


async def test_several_calls_a_websocket_and_routes_of_ones_own(guide: Path) -> None:
    async with running(guide, "classes.py") as (worker, model):
        assert await answer(worker, "/job", {"prompt": "one"}) == (200, {"response": "done"})
        assert await answer(worker, "/socket", {"prompt": "go"}) == (
            200,
            {"response": f"go {' '.join(WORDS)}"},
        )
        assert await answer(worker, "/voices", {"text": "a"}, 3.0) == (
            200,
            {"voices": {"path": "/voices", "query": {"text": "a"}}, "cost": 3.0},
        )
        async with worker.http.get(worker.instance.worker_url + "/about") as response:
            assert await response.json() == {"model": "my_model"}
        async with worker.http.post(worker.instance.worker_url + "/voices", json={}) as response:
            assert response.status == 422
        await served(worker, 201.0)
        assert "DELETE /jobs/one" not in [each for each, _ in model.came]
        await model.stop()
        for route in ("/job", "/socket"):
            assert (await answer(worker, route, {"prompt": "one"}))[0] == 502


async def test_a_client_that_leaves_ends_the_work(guide: Path) -> None:
    async with running(guide, "classes.py") as (worker, model):
        for route, prompt, begun, ended in (
            ("/job", "endless", "GET /jobs/endless", "DELETE /jobs/endless"),
            ("/lend", "one", "POST /held", "POST /give_back"),
        ):
            asking = asyncio.create_task(worker.post(route, {"prompt": prompt}))
            await model.until(begun)
            asking.cancel()
            await model.until(ended)
        await told(worker, "Cancelled", "Cancelled")


async def test_work_goes_to_its_end_however_often_it_is_cancelled(guide: Path) -> None:
    names: dict[str, Any] = {}
    source = (guide / "classes.py").read_text()
    exec(compile(source, "classes.py", "exec"), names)
    ended: list[str] = []
    going, go = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        going.set()
        await go.wait()
        ended.append("work")
        return "done"

    task = asyncio.create_task(names["to_its_end"](work()))
    await going.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]
    assert await names["to_its_end"](work()) == "done"


async def test_work_goes_to_its_end_in_a_scope_that_is_cancelled(guide: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile((guide / "classes.py").read_text(), "classes.py", "exec"), names)
    turns: list[int] = []

    async def work() -> None:
        for turn in range(5):
            await asyncio.sleep(0)
            turns.append(turn)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await names["to_its_end"](work())
    assert turns == [0, 1, 2, 3, 4]


async def test_a_worker_by_classes_runs_as_it_is(tmp_path: Path) -> None:
    MIGRATING.write_files(tmp_path)
    async with running(tmp_path, "old.py") as (worker, model):
        assert await model.until("POST /generate") == {"prompt": "a b c", "max_response_tokens": 20}
        asked = {"prompt": "Hi", "max_response_tokens": 5}
        assert await answer(worker, "/generate", asked) == (200, {"response": " ".join(WORDS)})
        assert await answer(worker, "/generate", {}) == (
            422,
            {"payload": dict.fromkeys(("prompt", "max_response_tokens"), "missing parameter")},
        )
        async with worker.http.get(worker.instance.worker_url + "/ping") as response:
            assert await response.text() == "pong"
        await served(worker, 5.0)


def test_a_declared_workers_import_line_is_changed(tmp_path: Path) -> None:
    here = GUIDE.block("file", "text.py")
    elsewhere = here.replace("from lib.worker import", "from some_sdk.serverless import")
    assert here != elsewhere
    (tmp_path / "worker.py").write_text(elsewhere)
    subprocess.run(["bash", "-c", MIGRATING.block("shell", "import")], cwd=tmp_path, check=True)
    assert (tmp_path / "worker.py").read_text() == here
