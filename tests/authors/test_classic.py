"""A worker written against the class API runs unmodified."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.worker import Setup
from tests.system import System, engine_and_model_server, worker_process

READY = "infer server has started\n"


@asynccontextmanager
async def classic_worker(tmp_path: Path) -> AsyncGenerator[System, None]:
    """Run the worker of classic.py as a process; yield the system once it is ready."""
    async with engine_and_model_server(tmp_path) as system:
        system.write_log(READY)
        env = {"MODEL_LOG": str(system.model_log)}
        async with worker_process(system, tmp_path, Setup(), env, module="tests.authors.classic") as worker:
            system.worker = worker
            await system.ready()
            yield system


async def answer_of(system: System, path: str, payload: dict[str, Any], **headers: str) -> tuple[int, bytes]:
    envelope = {"auth_data": system.auth(), "payload": payload}
    async with system.http.post(system.url + path, json=envelope, headers=headers) as answer:
        return answer.status, await answer.read()


async def test_a_classic_worker_runs_unmodified(tmp_path: Path) -> None:
    async with classic_worker(tmp_path) as system:
        benchmarks = [r for r in system.model.requests if r.method == "POST"]
        assert all(r.path == "/base/echo" for r in benchmarks)
        assert benchmarks[0].json() == {"prompt": "word " * 7, "max_response_tokens": 50, "temperature": 0.7}
        assert system.last_report.max_perf > 0

        status, body = await answer_of(system, "/generate", {"prompt": "hi", "max_response_tokens": 9})
        assert status == 200
        sent = json.loads(json.loads(body)["body"])
        assert sent == {"prompt": "hi", "max_response_tokens": 9, "temperature": 0.7}

        status, body = await answer_of(system, "/generate", {"prompt": "hi"})
        assert (status, json.loads(body)) == (422, {"payload": {"max_response_tokens": "missing parameter"}})

        system.model.release()
        status, body = await answer_of(system, "/generate_stream", {"prompt": "hi", "max_response_tokens": 5})
        assert (status, body) == (200, b"data: [DONE]\n\n")

        status, body = await answer_of(system, "/duck", {"text": "four"})
        assert (status, json.loads(json.loads(body)["body"])) == (200, {"text": "four"})

        status, body = await answer_of(system, "/dict", {"path": "/binary", "body": {"any": ["thing"]}})
        assert (status, len(body)) == (200, 1024 * 1024)
        assert system.model.requests[-1].json() == {"any": ["thing"]}
        # 9 tokens, 5 tokens, 4 letters, and 100 for the payload that can't count.
        await system.reported(served=118.0)


async def test_a_handler_that_reads_the_body_gets_it_uncompressed(tmp_path: Path) -> None:
    async with classic_worker(tmp_path) as system:
        payload = {"prompt": "hi", "max_response_tokens": 1}
        status, _ = await answer_of(system, "/generate", payload, **{"Accept-Encoding": "gzip"})
        assert status == 200
        assert system.model.requests[-1].header("Accept-Encoding") is None


async def test_bare_routes_and_the_session_to_the_model_server_work(tmp_path: Path) -> None:
    async with classic_worker(tmp_path) as system:
        async with system.http.get(system.url + "/ping") as answer:
            assert await answer.text() == "author's pong"
        async with system.http.get(system.url + "/where") as answer:
            assert (await answer.json())["url"] == system.url
        async with system.http.get(system.url + "/model-health") as answer:
            assert await answer.json() == {"status": 200, "path": "/base/health"}
