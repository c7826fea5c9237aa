"""Runs the workers in docs/writing-a-worker.md and docs/migrating.md, and checks what the guides say."""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import json
import mimetypes
import runpy
import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from PIL import Image

from lib.backend import Backend
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
    """Run the worker in `folder`/`name`, with `env` in its environment, and the guides' model server."""
    log = folder / "model.log"
    log.write_text(READY)
    async with guide_model() as model:
        variables = {"MODEL_SERVER_URL": model.url, "MODEL_LOG": str(log), **env}
        async with trial(folder / name, **variables) as worker:
            yield worker, model


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """A folder with the files of docs/writing-a-worker.md."""
    GUIDE.write_files(tmp_path)
    return tmp_path


async def answer(worker: Trial, route: str, payload: dict[str, Any], cost: float = 1.0) -> tuple[int, Any]:
    status, body = await worker.post(route, payload, cost)
    return status, json.loads(body)


def signed_header(worker: Trial) -> dict[str, str]:
    """Headers that authenticate a request (docs/protocol.md, "Header authentication")."""
    auth = worker.instance.engine.sign(url=worker.instance.worker_url)
    return {"X-Vast-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}


async def finished(worker: Trial, *statuses: str) -> None:
    """Wait until the engine knows of this many finished requests, and check their statuses."""
    engine = worker.instance.engine
    await engine.wait_for(lambda: len(engine.finished) >= len(statuses))
    assert [f.request.status for f in engine.finished] == list(statuses)


async def served(worker: Trial, workload: float) -> None:
    """Wait until this workload has been reported as served, and check that it is not more."""
    record = worker.instance.engine.worker(WORKER_ID)
    await worker.instance.engine.wait_for(lambda: record.totals.cur_perf >= workload)
    assert record.totals.cur_perf == workload


def names_in(file: Path) -> dict[str, Any]:
    """The names that the module `file` defines."""
    return runpy.run_path(str(file))


def test_every_file_is_python(guide: Path) -> None:
    files = sorted(guide.glob("*.py"))
    assert len(files) >= 13
    for file in files:
        ast.parse(file.read_text())


async def test_the_declared_worker(guide: Path) -> None:
    async with running(guide, "text.py") as (worker, model):
        assert worker.instance.engine.worker(WORKER_ID).last is not None
        payload = {"prompt": "Alice was tired", "max_tokens": 100}
        assert await model.until("POST /generate") == payload  # the benchmark's
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
        assert model.received[-1][1] == {"prompt": "Hi", "max_tokens": 3}
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


async def test_custom_answers(guide: Path) -> None:
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
        assert await answer(worker, "/watched", {"prompt": "Hi"}) == (200, {"response": " ".join(WORDS)})
        for prompt, count in (("Hi", 4), ("fail", 5)):
            lines = worker.lines("/watched", {"prompt": prompt, "stream": True})
            assert len([line async for line in lines]) == count
        await finished(worker, "Success", "Error", "Error", "Success", "Success", "Error")


async def test_python_functions(guide: Path) -> None:
    async with running(guide, "functions.py") as (worker, _):
        assert await answer(worker, "/shout", {"text": "hi", "times": 2}) == (200, {"result": "HI HI"})
        assert await answer(worker, "/shout", {"txt": "hi"}) == (
            422,
            {"payload": {"text": "missing parameter"}},
        )
        lines = [json.loads(line) async for line in worker.lines("/words", {"count": 5})]
        assert [line["word"] for line in lines] == [*WORDS, WORDS[0]]
        last = worker.instance.engine.worker(WORKER_ID).last
        assert last is not None
        assert last.max_perf == 100.0
        await served(worker, 102.0)


async def test_types(guide: Path) -> None:
    picture = {"prompt": "a fox", "size": 1024, "styles": ["ink"]}
    drawn = {"result": {"prompt": "a fox", "pixels": 1024**2}}
    wrong = {"size": "must be one of 256, 1024", "styles": {"0": "must be one of 'oil', 'ink'"}}
    answers: list[tuple[str, dict[str, Any], int, Any]] = [
        ("/draw", picture, 200, drawn),
        ("/draw", {"picture": picture}, 200, drawn),
        ("/draw", {"size": 3, "styles": ["pen"]}, 422, {**wrong, "prompt": "missing parameter"}),
        ("/draw", {"prompt": " "}, 422, {"prompt": "is empty"}),
        ("/draw", {**picture, "stlyes": []}, 422, {"stlyes": "unknown parameter: did you mean 'styles'?"}),
        ("/scale", {"pictures": [picture], "factor": 2, "more": 1}, 200, {"result": [2048.0]}),
        ("/scale", {"pictures": [{}]}, 422, {"pictures": {"0": {"prompt": "missing parameter"}}}),
    ]
    async with running(guide, "typed.py") as (worker, _):
        for route, payload, status, said in answers:
            assert await answer(worker, route, payload) == (
                status,
                {"payload": said} if status == 422 else said,
            )


async def test_uploads_parameters_and_long_jobs(guide: Path) -> None:
    async with running(guide, "uploads.py") as (worker, _):
        url = worker.instance.worker_url
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("file", b"x" * 160_000, filename="a.wav")
        async with worker.http.post(
            f"{url}/transcribe", data=form, headers=signed_header(worker)
        ) as response:
            transcribed = await response.json()
        assert transcribed["type"] == "multipart/form-data"
        assert transcribed["bytes"] > 160_000
        async with worker.http.get(f"{url}/voices/a%20b?limit=7", headers=signed_header(worker)) as response:
            assert await response.json() == {"path": "/voices/a b", "query": {"limit": "7"}}
        assert (await answer(worker, "/render", {"prompt": "Hi"}))[0] == 200
        await served(worker, transcribed["bytes"] / 16_000 + 7.0 + 100.0)


async def test_the_commands_for_uploads(guide: Path) -> None:
    (guide / "sound.wav").write_bytes(b"x" * 16_000)
    async with running(guide, "uploads.py") as (worker, model):
        printed: list[str] = []
        for line in GUIDE.block("script", "uploads").splitlines():
            _, *words = shlex.split(line)
            assert words[-1] == "-l"
            ended = await done(*words[:-1], "--engine", worker.instance.engine_url, cwd=guide)
            assert (ended.status, words[0] == "request" and ended.errors) in {(0, ""), (0, False)}, ended
            printed.append(ended.output)
        form, whole, voice = map(json.loads, printed[:3])
        assert form["type"] == "multipart/form-data"
        assert whole == {"bytes": 16_000, "type": mimetypes.guess_type("sound.wav")[0]}
        assert voice == {"path": "/voices/alto", "query": {"limit": "3"}}
        assert printed[3].startswith("20 of 20 requests")
        parts = [body for request, body in model.received if request == "POST /transcribe"]
        assert [b'name="file"; filename="sound.wav"' in body for body in parts] == [True, False, *[True] * 20]

        status, body = await worker.upload("/transcribe", {"file": guide / "sound.wav"}, {"language": "en"})
        assert (status, json.loads(body)["type"]) == (200, "multipart/form-data")
        assert b'name="language"' in model.received[-1][1]


async def test_uploads_to_a_function(guide: Path) -> None:
    async with running(guide, "thumbnails.py") as (worker, _):
        picture, large, text = (guide / name for name in ("picture.png", "large.bin", "text.png"))
        Image.new("RGB", (300, 200)).save(picture)
        large.write_bytes(b"x" * 20_000_001)
        text.write_bytes(b"text")
        status, body = await worker.upload("/thumbnail", {"image": picture}, {"width": "30"})
        assert (status, Image.open(io.BytesIO(body)).size) == (200, (30, 20))
        refusals: list[tuple[dict[str, Path], dict[str, str], Any]] = [
            ({"image": picture}, {"width": "wide"}, {"width": "must be an integer"}),
            ({"image": text}, {}, {"image": "must be an image"}),
            ({"picture": picture}, {}, {"image": "missing file"}),
            ({"": picture}, {}, {"body": "must be multipart/form-data with a boundary"}),
        ]
        for files, fields, problem in refusals:
            status, body = await worker.upload("/thumbnail", files, fields)
            assert (status, json.loads(body)) == (422, {"payload": problem})
        status, body = await worker.upload("/thumbnail", {"image": large})
        assert (status, b"the most that is accepted" in body) == (422, True)
        last = worker.instance.engine.worker(WORKER_ID).last
        assert last is not None
        assert last.max_perf > 0


@pytest.mark.parametrize("kind", ["script", "python"])
async def test_header_authentication_by_hand(kind: str, guide: Path) -> None:
    """Run the examples of docs/protocol.md."""
    (guide / "sound.wav").write_bytes(b"x" * 1000)
    protocol = document("protocol")
    async with running(guide, "uploads.py") as (worker, _):
        engine = worker.instance.engine_url
        if kind == "script":
            text = protocol.block(kind, "upload with curl").replace("http://127.0.0.1:8081", engine)
            words = ("bash", "-c", text)
        else:
            source = protocol.block(kind, "upload")
            words = ("python", "-c", source.replace("Target(LOCAL_ENGINE,", f'Target("{engine}",'))
        assert engine in words[2]
        finished = await done(*words, cwd=guide)
        assert finished.status == 0, finished.errors
        assert json.loads(finished.output)["type"] == "multipart/form-data"


async def test_several_calls_a_websocket_and_custom_routes(guide: Path) -> None:
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
        assert "DELETE /jobs/one" not in [request for request, _ in model.received]
        await model.stop()
        for route in ("/job", "/socket"):
            assert (await answer(worker, route, {"prompt": "one"}))[0] == 502


async def test_the_work_stops_when_its_client_leaves(guide: Path) -> None:
    async with running(guide, "classes.py") as (worker, model):
        for route, prompt, started, stopped in (
            ("/job", "endless", "GET /jobs/endless", "DELETE /jobs/endless"),
            ("/lend", "one", "POST /held", "POST /give_back"),
        ):
            request = asyncio.create_task(worker.post(route, {"prompt": prompt}))
            await model.until(started)
            request.cancel()
            await model.until(stopped)
        await finished(worker, "Cancelled", "Cancelled")


async def test_cleanup_completes_when_its_caller_is_cancelled_repeatedly(guide: Path) -> None:
    names = names_in(guide / "classes.py")
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


async def test_cleanup_completes_in_a_cancelled_scope(guide: Path) -> None:
    names = names_in(guide / "classes.py")
    turns: list[int] = []

    async def work() -> None:
        for turn in range(5):
            await asyncio.sleep(0)
            turns.append(turn)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await names["to_its_end"](work())
    assert turns == [0, 1, 2, 3, 4]


async def test_a_handlers_resources_and_checks(guide: Path) -> None:
    async with running(guide, "lifetime.py") as (worker, _):
        assert await answer(worker, "/count", {"text": "down the rabbit hole"}) == (200, {"words": 4})
        await served(worker, 20.0)
    word_counter = names_in(guide / "lifetime.py")["WordCounter"]
    assert word_counter().problems() == []
    assert word_counter(threads=0).problems() == ["threads is 0, and must be at least 1"]


async def test_a_model_server_found_at_run_time(guide: Path) -> None:
    async with guide_model() as model:
        (guide / "url").write_text(model.url)
        async with trial(guide / "found.py", MODEL_URL_FILE=str(guide / "url")) as worker:
            await model.until("GET /health")
            assert await answer(worker, "/generate", {"prompt": "Hi"}) == (200, {"response": " ".join(WORDS)})


async def test_middlewares(guide: Path) -> None:
    async with running(guide, "middlewares.py") as (worker, model):
        assert await answer(worker, "/generate", {"prompt": ""}) == (200, {"response": ""})
        assert "POST /generate" not in [request for request, _ in model.received]
        assert await answer(worker, "/generate", {"prompt": "Hi"}) == (200, {"response": " ".join(WORDS)})
        await served(worker, 100.0)
        assert worker.instance.engine.worker(WORKER_ID).totals.new_load == 100.0


TRACED = """
import runpy, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(sys.stderr)))
trace.set_tracer_provider(provider)
runpy.run_path("tracing.py", run_name="__main__")
"""


async def test_the_opentelemetry_observer(guide: Path) -> None:
    (guide / "traced.py").write_text(TRACED.replace("tracing.py", str(guide / "tracing.py")))
    async with running(guide, "traced.py") as (worker, _):
        assert (await answer(worker, "/generate", {"prompt": "fail"}))[0] == 500
        await finished(worker, "Error")
        log = worker.child.log.read_text()
    for part in ('"name": "POST /generate"', '"name": "started"', '"http.response.status_code": 500'):
        assert part in log


async def test_an_authenticator(guide: Path) -> None:
    async with running(guide, "api_key.py", API_KEY="secret") as (worker, _):
        url, payload = f"{worker.instance.worker_url}/hello", {"name": "Alice"}
        async with worker.http.post(url, json=payload, headers={"X-Api-Key": "secret"}) as response:
            assert (response.status, await response.json()) == (200, {"hello": "Alice"})
        async with worker.http.post(url, json=payload, headers={"X-Api-Key": "wrong"}) as response:
            assert (response.status, await response.json()) == (
                401,
                {"error": "the API key is missing or wrong"},
            )
        await served(worker, 1.0)


async def test_a_worker_by_classes_runs_unchanged(tmp_path: Path) -> None:
    MIGRATING.write_files(tmp_path)
    async with running(tmp_path, "old.py") as (worker, model):
        assert await model.until("POST /generate") == {"prompt": "a b c", "max_response_tokens": 20}
        payload = {"prompt": "Hi", "max_response_tokens": 5}
        assert await answer(worker, "/generate", payload) == (200, {"response": " ".join(WORDS)})
        assert await answer(worker, "/generate", {}) == (
            422,
            {"payload": dict.fromkeys(("prompt", "max_response_tokens"), "missing parameter")},
        )
        async with worker.http.get(worker.instance.worker_url + "/ping") as response:
            assert await response.text() == "pong"
        await served(worker, 5.0)


def test_the_quoted_message_of_a_worker_without_a_ready_signal() -> None:
    quoted = "nothing shows when the model is loaded"
    assert f'"{quoted}"' in MIGRATING.prose
    (problem,) = Backend("http://127.0.0.1:5001").config().problems()
    assert problem.startswith(quoted)


async def test_the_command_changes_a_declared_workers_imports(tmp_path: Path) -> None:
    worker = GUIDE.block("file", "text.py")
    original = worker.replace("from lib.worker import", "from vastai.serverless.server.worker import")
    assert worker != original
    (tmp_path / "worker.py").write_text(original)
    assert "pyworker migrate worker.py --write\n" in MIGRATING.text
    migrated = await done("migrate", "worker.py", "--write", cwd=tmp_path)
    assert (migrated.status, migrated.errors) == (0, "")
    assert (tmp_path / "worker.py").read_text() == worker
