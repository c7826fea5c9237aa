"""The Ollama worker as a process, through the local engine, in front of a fake Ollama."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.event_loop import until
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.system import GUARD_S, engine_and_model_server, worker_process
from tests.workers.ollama.fake_server import CRASHED, MODEL, WORD
from tests.workers.worker_system import PERF, WorkerSystem, fake_server, worker_system

CLOSED = ("pull", "push", "create", "copy", "delete", "blobs/sha256:00")


def ollama(
    tmp_path: Path, *options: str, measured: bool = True, env: Mapping[str, str] | None = None
) -> AbstractAsyncContextManager[WorkerSystem]:
    variables = {"MODEL_NAME": MODEL, **(env or {})}
    return worker_system(tmp_path, "ollama", env=variables, options=options, measured=measured)


def asked(prompt: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "options": {"num_predict": tokens}, **fields}


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_whole_and_streamed_answers(tmp_path: Path, carrier: str) -> None:
    async with ollama(tmp_path, env={"CARRIER": carrier}) as here:
        payload = asked("Hello", 3, stream=False, system="Be brief.")
        status, answer = await here.call("/api/generate", {**payload, "keep_alive": 0})
        assert (status, answer["response"], answer["eval_count"]) == (200, WORD * 3, 3)
        assert await here.last_message() == {**payload, "model": MODEL}
        chat = {"messages": [{"role": "user", "content": "Hi"}], "options": {"num_predict": 3}}
        async with here.post("/api/chat", {"input": chat}, 3.0) as response:
            assert response.content_type == "application/x-ndjson"
            lines = [json.loads(line) async for line in response.content]
        assert [line["message"]["content"] for line in lines] == [WORD, WORD, WORD, ""]
        assert [line["done"] for line in lines] == [False, False, False, True]
        await here.system.reported(6.0)
        assert (here.system.totals.cur_perf, here.system.last_report.max_perf) == (6.0, PERF)


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_streams_with_an_error_or_without_an_end_are_errored(tmp_path: Path, carrier: str) -> None:
    async with ollama(tmp_path, env={"CARRIER": carrier}) as here:
        assert await here.call("/api/generate", asked("fail", 3)) == (500, {"error": CRASHED})
        for prompt, end in (("break", CRASHED.encode()), ("cut", b'"done":false}\n')):
            async with here.post("/api/generate", asked(prompt, 3), 3.0) as answer:
                assert answer.status == 200
                assert end in await answer.read()
        async with here.post("/api/generate", asked("Hello", 3), 3.0) as answer:
            await answer.read()
        await here.system.engine.wait_for(lambda: len(here.system.engine.finished) == 4, GUARD_S)
        statuses = [f.request.status for f in here.system.engine.finished]
        assert statuses == ["Error", "Error", "Error", "Success"]
        await here.system.reported(3.0)
        assert here.system.totals.cur_perf == 3.0


async def test_the_models_can_be_read_and_not_changed(tmp_path: Path) -> None:
    async with ollama(tmp_path) as here:
        for path, request, has in (
            ("/api/embed", {"input": ["a", "b"]}, "embeddings"),
            ("/api/embeddings", {"prompt": "a"}, "embedding"),
            ("/api/show", {"verbose": False}, "details"),
        ):
            status, answer = await here.call(path, request)
            assert (status, has in answer) == (200, True)
            assert await here.last_message() == {**request, "model": MODEL}
        for path in ("/api/tags", "/api/ps"):
            assert await here.call(path, {}) == (200, {"models": [{"name": MODEL}]})
        before = await here.received()
        for name in CLOSED:
            async with here.post(f"/api/{name}", {"model": MODEL}) as refused:
                assert refused.status == 404
            async with here.system.http.delete(here.system.url + f"/api/{name}") as refused:
                assert refused.status in (404, 405)
        assert await here.received() == before
        refusal = {"error": "json: cannot unmarshal the options"}
        assert await here.call("/api/chat", {"options": 5}) == (400, refusal)


async def test_a_disconnected_client_ends_the_generation(tmp_path: Path) -> None:
    async with ollama(tmp_path) as here, connected(here.system.url) as client:
        await client.post(
            "/api/generate", {"auth_data": here.system.auth(256.0), "payload": {"prompt": "hang"}}
        )
        assert (await client.head()).status == 200
        await client.chunk()
        client.leave()
        await here.client_left()
        await here.system.reported()
        assert here.system.totals.cur_perf == 0.0


async def test_the_worker_is_ready_once_the_model_is_pulled_and_loaded(tmp_path: Path) -> None:
    async with ollama(tmp_path, "--unpulled", "2") as here:
        loads = [json.loads(r["body"]) for r in await here.received()]
        assert loads == [{"model": MODEL, "keep_alive": -1, "stream": False}] * 3
        log = here.worker.output()
        assert log.count(f"{MODEL} is not loaded yet: HTTP 404: ") == 1
        assert log.index("not found") < log.index("ready")


async def test_the_worker_waits_until_ollama_has_begun(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # nothing listens there
        port = reserved.getsockname()[1]
        (tmp_path / ".has_benchmark").write_text(str(PERF))
        url, log = f"http://127.0.0.1:{port}", tmp_path / "model.log"
        variables = {"MODEL_NAME": MODEL, "MODEL_SERVER_URL": url, "MODEL_LOG": str(log)}
        async with (
            engine_and_model_server(tmp_path) as system,
            worker_process(system, tmp_path, Setup(), variables, module="workers.ollama.server") as worker,
        ):
            system.worker = worker
            await until(lambda: f"{MODEL} is not loaded yet: " in worker.output())
            reserved.close()
            async with fake_server("tests.workers.ollama.fake_server", log, "--port", str(port)):
                await system.ready()


async def test_the_benchmark_streams_and_is_saved(tmp_path: Path) -> None:
    """The model ends its answers after 100 tokens. They are not asked for again."""
    async with ollama(tmp_path, "--eos-after", "100", measured=False) as here:
        load, *messages = [json.loads(r["body"]) for r in await here.received()]
        assert "prompt" not in load
        assert {tuple(m) for m in messages} == {("prompt", "raw", "options", "model")}
        assert all(m["options"] == {"num_predict": 500} for m in messages)
        assert len({m["prompt"] for m in messages}) == len(messages)
    saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
    assert saved["perf"] == here.system.last_report.max_perf > 0


async def test_an_error_line_of_the_log_is_reported(tmp_path: Path) -> None:
    async with ollama(tmp_path) as here:
        with (tmp_path / "model.log").open("a") as log:
            log.write("Error: listen tcp 127.0.0.1:11434: bind: address already in use\n")
        assert "Error: listen tcp" in await here.system.errored()


async def test_the_example_client_and_the_load_test(tmp_path: Path) -> None:
    async with ollama(tmp_path) as here:
        status, output = await here.run("workers.ollama.client", "--tokens", "3", "Hello")
        assert (status, output.splitlines()) == (
            0,
            [" word word word", "", "The same as a chat, streamed:", "", " word word word"],
        )
        status, output = await here.run("workers.ollama.client", "fail")
        assert (status, "HTTP 500" in output) == (1, True)
        status, output = await here.run("workers.ollama.test_load", "-n", "2", "-rps", "1000")
        assert (status, "2 of 2 requests" in output) == (0, True)
