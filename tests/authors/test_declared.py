"""A declared worker as its author runs it: a script, a process, an exit status."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from tests.event_loop import until
from tests.fakes.worker import Setup
from tests.system import (
    GUARD_S,
    ROOT,
    System,
    WorkerProcess,
    engine_and_model_server,
    worker_process,
)

IMPORTS = "from lib.worker import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig\n"


async def answer_of(system: System, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
    envelope = {"auth_data": system.auth(), "payload": payload}
    async with system.http.post(system.url + path, json=envelope) as answer:
        return answer.status, await answer.json()


async def run_script(tmp_path: Path, text: str, **env: str) -> tuple[int, str]:
    """Run a `worker.py` that ends by itself; return its exit status and output."""
    script = tmp_path / "worker.py"
    script.write_text(IMPORTS + text)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    with anyio.fail_after(GUARD_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_declared_worker_from_start_to_stop(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        env = {"MODEL_LOG": str(system.model_log)}
        async with worker_process(system, tmp_path, Setup(), env, module="tests.authors.declared") as worker:
            system.write_log()
            await system.ready()
            sent = [r.json() for r in system.model.requests]
            assert {"prompt": "Once", "max_tokens": 16} in sent
            assert {"prompt": "upon", "max_tokens": 8} in sent
            assert system.last_report.max_perf > 0

            status, seen = await answer_of(system, "/echo", {"prompt": "hi", "max_tokens": "3", "more": 1})
            assert (status, json.loads(seen["body"])) == (200, {"prompt": "hi", "max_tokens": 3})
            assert await answer_of(system, "/shout", {"text": "hi", "times": 2}) == (200, {"result": "HI HI"})
            await system.reported(served=103.0)

            status, problems = await answer_of(system, "/echo", {})
            assert (status, problems) == (422, {"payload": {"prompt": "missing parameter"}})
            status, problems = await answer_of(system, "/shout", {"txt": "hi"})
            assert status == 422
            assert problems == {"payload": {"text": "missing parameter"}}

            system.write_log("CUDA error: out of memory\n")
            assert await system.errored() == "CUDA error: out of memory"
            worker.terminate()
            assert await worker.exit_status() == 0


@pytest.mark.parametrize(
    ("declaration", "problems"),
    [
        (
            'WorkerConfig(handlers=[HandlerConfig("/a", max_queue_tim=3), HandlerConfig("/a")])',
            [
                "2 handlers have the route POST /a",
                "handler '/a': no field 'max_queue_tim': did you mean 'max_queue_time'?",
                "handler '/a': there is neither a remote_function nor a model_server_url",
            ],
        ),
        (
            'WorkerConfig(model_server_url="http://model", model_server_port=70000, benchmark_route="/b")',
            [
                "model_server_port 70000 is not a port, 1 to 65535",
                "benchmark_route '/b' is the route of no handler: there are /",
                "nothing shows when the model is loaded",
            ],
        ),
    ],
)
async def test_a_declaration_that_cannot_work_is_one_message_and_status_2(
    tmp_path: Path, declaration: str, problems: list[str]
) -> None:
    status, output = await run_script(tmp_path, f"Worker({declaration}).run()\n")
    assert status == 2
    assert "Traceback" not in output
    assert output.startswith("cannot start:\n  - ")
    for problem in problems:
        assert f"  - {problem}" in output


@asynccontextmanager
async def typed_worker(tmp_path: Path) -> AsyncGenerator[tuple[System, WorkerProcess], None]:
    """The worker of typed.py, ready."""
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, Setup(), module="tests.authors.typed") as worker,
    ):
        await system.ready()
        yield system, worker


async def test_code_that_blocks_the_event_loop_is_told_with_its_line(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    async with typed_worker(tmp_path) as (system, worker):
        call = asyncio.create_task(answer_of(system, "/blocks", {"until": str(stop)}))
        await until(lambda: "the event loop has been blocked for 2 s" in worker.output())
        stop.touch()
        assert await call == (200, {"result": "done"})
        assert "in blocks: wait_for(until)" in worker.output()


async def test_payload_classes_of_typed_fields_are_sent_as_json(tmp_path: Path) -> None:
    frame = {"colour": "red", "width": 2.5}
    wrong = {"colour": "must be one of 'red'", "wide": "unknown parameter: did you mean 'width'?"}
    async with typed_worker(tmp_path) as (system, _):
        posted: list[tuple[str, dict[str, Any], int, Any]] = [
            ("/picture", {"at": "2026-01-02", "frames": [frame], "more": 1}, 404, None),
            (
                "/picture",
                {"frames": [{}]},
                422,
                {"at": "missing parameter", "frames": {"0": {"colour": "missing parameter"}}},
            ),
            ("/frame", frame, 404, None),
            ("/frame", {"colour": 1, "wide": 2}, 422, wrong),
        ]
        for path, payload, status, problems in posted:
            envelope = {"auth_data": system.auth(), "payload": payload}
            async with system.http.post(system.url + path, json=envelope) as answer:
                assert answer.status == status
                if problems:
                    assert await answer.json() == {"payload": problems}
        sent = {request.path: request.json() for request in system.model.requests}
        assert sent["/picture"] == {"at": "2026-01-02", "frames": [frame]}
        assert sent["/frame"] == frame


async def test_missing_variables_are_status_2(tmp_path: Path) -> None:
    declared = 'Worker(WorkerConfig(handlers=[HandlerConfig("/a", remote_function=lambda: 1)]))'
    for run in (f"{declared}.run()\n", f"import asyncio\nasyncio.run({declared}.run_async())\n"):
        status, output = await run_script(tmp_path, run, CONTAINER_ID="", PUBLIC_IPADDR="")
        assert (status, "Traceback" in output) == (2, False)
        assert "PUBLIC_IPADDR" in output


ON_A_LOOP_OF_THE_AUTHORS = """
import asyncio

async def main():
    worker = Worker(WorkerConfig(handlers=[HandlerConfig("/double", remote_function=lambda n: 2 * n)]))
    await worker.run_async(host="127.0.0.1")
    print("the author's loop goes on")

asyncio.run(main())
"""
START_SERVER_ASYNC = ON_A_LOOP_OF_THE_AUTHORS.replace(
    'worker.run_async(host="127.0.0.1")',
    'start_server_async(worker.backend, worker.routes, host="127.0.0.1")',
).replace("import asyncio", "import asyncio\nfrom lib.server import start_server_async")


@pytest.mark.parametrize("script", [ON_A_LOOP_OF_THE_AUTHORS, START_SERVER_ASYNC], ids=["run", "start"])
async def test_a_worker_serves_on_the_running_loop(tmp_path: Path, script: str) -> None:
    (tmp_path / "on_a_loop.py").write_text(IMPORTS + script)
    async with engine_and_model_server(tmp_path) as system:
        async with worker_process(system, tmp_path, Setup(), module="on_a_loop") as worker:
            await system.ready()
            assert await answer_of(system, "/double", {"n": 21}) == (200, {"result": 42})
            async with worker_process(system, tmp_path, Setup(), name="2.log", module="on_a_loop") as second:
                assert await second.exit_status() == 3
                assert "is taken by process" in second.output()
                assert "Traceback" not in second.output()
            worker.terminate()
            assert await worker.exit_status() == 0
        assert "the author's loop goes on\n" in worker.output()


STUCK = """
import threading

def stuck():
    threading.Event().wait()

Worker(WorkerConfig(handlers=[HandlerConfig("/stuck", remote_function=stuck)])).run(host="127.0.0.1")
"""


async def test_a_process_with_a_stuck_function_ends(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(IMPORTS + STUCK)
    async with engine_and_model_server(tmp_path) as system:
        env = {"DRAIN_TIMEOUT_S": "0.01"}
        async with worker_process(system, tmp_path, Setup(), env, module="stuck") as worker:
            await system.ready()
            asked = asyncio.create_task(answer_of(system, "/stuck", {}))
            await system.engine.wait_for(lambda: system.last_report.num_requests_working == 1)
            worker.terminate()
            assert await worker.exit_status() == 0
            with pytest.raises(aiohttp.ClientError):
                await asked
        assert [f.request.status for f in system.engine.finished] == ["Error"]
