"""The workers in front of real model servers: `pytest -m real`, with the servers' commands in variables.

`REAL_VLLM`, `REAL_LLAMA` and `REAL_OPENAI` are the command lines of a vLLM server, of a llama.cpp server
(llama-server or llama-cpp-python), and of another server (`transformers serve`). They run in the foreground
and contain `{port}` and `{log}`. Tests of a server without a command are skipped. A tiny model on a CPU
suffices.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import (
    ROOT,
    PortLease,
    System,
    WorkerProcess,
    engine_and_model_server,
    worker_process,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

# Seconds. Servers take time to load, and three failed health checks take half a minute.
LOADING_S = 180.0
NOTICED_S = 60.0
MODEL_TIMEOUT_S = 15.0
# Seconds that a cut stream may take to end: the model's time limit and a margin.
ENDED_S = MODEL_TIMEOUT_S + 10.0


@dataclass(frozen=True)
class Kind:
    """A real server: the variable with its command, its worker, and the worker's settings.

    `lenient`: it accepts fields that are not part of OpenAI's API, and ends its streams with `[DONE]`.
    """

    variable: str
    worker: str
    env: dict[str, str]
    lenient: bool = True


KINDS = [
    Kind("REAL_OPENAI", "openai", {}, lenient=False),
    Kind("REAL_VLLM", "vllm", {}),
    # llama-cpp-python has no /health and logs another line than llama-server.
    Kind(
        "REAL_LLAMA",
        "llama",
        {
            "MODEL_HEALTH_ENDPOINT": "/v1/models",
            "MODEL_LOAD_LOG_MSG": "server is listening on\nApplication startup complete.",
        },
    ),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.worker)
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param.variable not in os.environ:
        pytest.skip(f"no {request.param.variable}: the command of a real server, with {{port}} and {{log}}")
    return request.param


class RealServer:
    """The model server's process, which can be restarted with the same port and log."""

    def __init__(self, command: str, log: Path) -> None:
        self._lease = PortLease()
        self.log = log
        self.url = f"http://127.0.0.1:{self._lease.port}"
        self._command = [part.format(port=self._lease.port, log=log) for part in shlex.split(command)]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)

    def signal(self, number: signal.Signals) -> None:
        """Send SIGTERM to the main process, as a process manager does, other signals to the process group."""
        assert self._process is not None
        if number is signal.SIGTERM:
            self._process.send_signal(number)
        else:
            os.killpg(self._process.pid, number)

    async def end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            await self._process.wait()
        self._lease.close()


@dataclass
class RealSystem:
    """A real model server, its worker, and the engine of `system`."""

    system: System
    server: RealServer
    worker: WorkerProcess

    async def client(self, kind: Kind, *args: str) -> str:
        """Run the example client; return its output."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                f"workers.{kind.worker}.client",
                "--engine",
                self.system.engine_url,
                *args,
            ),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        with anyio.fail_after(GUARD_S):
            output, _ = await process.communicate()
        assert process.returncode == 0, output
        return output.decode()

    def complete(self, **request: Any) -> Any:
        # A tiny model generates noise, which may end early or contain no complete character for a while. The
        # bias makes it repeat one token.
        message = {"prompt": "Hello", "max_tokens": 8, "logit_bias": {"40": 100}, **request}
        envelope = {"auth_data": self.system.auth(8.0), "payload": {"input": message}}
        timeout = aiohttp.ClientTimeout(total=GUARD_S)
        return self.system.http.post(self.system.url + "/v1/completions", json=envelope, timeout=timeout)


@asynccontextmanager
async def real_system(kind: Kind, tmp_path: Path, **env: str) -> AsyncGenerator[RealSystem, None]:
    """Start a real server and its worker; wait until the worker is ready."""
    server = RealServer(os.environ[kind.variable], tmp_path / "model.log")
    variables = {
        "MODEL_SERVER_URL": server.url,
        "MODEL_LOG": str(server.log),
        "BENCHMARK_TIME_LIMIT_S": "20",
        **kind.env,
        **env,
    }
    try:
        async with (
            engine_and_model_server(tmp_path) as system,
            worker_process(
                system, tmp_path, Setup(), variables, module=f"workers.{kind.worker}.server"
            ) as worker,
        ):
            await server.start()
            await system.engine.wait_for(
                lambda: system.last_report is not None and system.last_report.loadtime > 0, LOADING_S
            )
            yield RealSystem(system, server, worker)
    finally:
        await server.end()


async def test_the_worker_survives_the_death_of_the_model_server(kind: Kind, tmp_path: Path) -> None:
    async with real_system(kind, tmp_path) as real:
        await check_readiness_and_benchmark(real, tmp_path)
        await check_answers_and_streams(real, kind)
        await check_a_killed_server_is_reported(real)
        await real.server.start()
        await real.system.engine.wait_for(lambda: real.system.last_report.error_msg == "", LOADING_S)
        async with real.complete() as answer:
            assert answer.status == 200
        assert "Traceback" not in real.worker.output()


async def check_readiness_and_benchmark(real: RealSystem, tmp_path: Path) -> None:
    output = real.worker.output()
    assert "loading → benchmarking" in output
    saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
    assert real.system.last_report.max_perf == saved["perf"] > 0


async def check_answers_and_streams(real: RealSystem, kind: Kind) -> None:
    strict = [] if kind.lenient else ["--strict"]
    output = await real.client(kind, *strict, "--tokens", "16", "completion", "chat", "stream")
    shown = [line for line in output.splitlines() if line.startswith("# ")]
    assert shown == ["# completion", "# chat", "# stream"]
    async with real.complete(max_tokens=64, stream=True) as answer:
        assert answer.content_type == "text/event-stream"
        events = (await answer.read()).strip().split(b"\n\n")
    assert len(events) > 8
    assert events[-1] == b"data: [DONE]" or not kind.lenient
    async with real.complete(max_tokens=-1) as answer:
        assert answer.status == 422
    async with real.complete(prompt=[[]], max_tokens=8) as answer:
        assert 400 <= answer.status < 600


async def check_a_killed_server_is_reported(real: RealSystem) -> None:
    """Kill the server during a stream: the stream is cut, the next request is 502, the error is reported."""
    async with real.complete(max_tokens=1500, stream=True) as answer:
        await answer.content.readany()
        real.server.signal(signal.SIGKILL)
        # A busy server may have sent everything by then. A cut stream must not look complete.
        with suppress(aiohttp.ClientPayloadError):
            assert b'"finish_reason":"' in await answer.read()
    async with real.complete() as answer:
        assert answer.status == 502
    await real.system.engine.wait_for(lambda: real.system.last_report.error_msg, NOTICED_S)
    assert "health check failed" in real.system.last_report.error_msg


async def test_a_stream_ends_when_the_model_server_stops(kind: Kind, tmp_path: Path) -> None:
    async with real_system(kind, tmp_path, MODEL_TIMEOUT_S=str(MODEL_TIMEOUT_S)) as real:
        await check_a_client_can_leave_a_silent_stream(real)
        await check_a_silent_stream_is_cut(real)
        async with real.complete() as answer:
            assert answer.status == 200
        # Servers react differently to SIGTERM. In each case, the client's stream ends.
        await end_of_a_stream(real, signal.SIGTERM)
        await real.system.engine.wait_for(lambda: real.system.last_report.num_requests_working == 0, GUARD_S)


async def check_a_client_can_leave_a_silent_stream(real: RealSystem) -> None:
    async with real.complete(max_tokens=1900, stream=True) as answer:
        await answer.content.readany()
        real.server.signal(signal.SIGSTOP)
        await real.system.engine.wait_for(lambda: real.system.last_report.num_requests_working == 1, GUARD_S)
    await real.system.engine.wait_for(lambda: real.system.last_report.num_requests_working == 0, GUARD_S)
    real.server.signal(signal.SIGCONT)


async def check_a_silent_stream_is_cut(real: RealSystem) -> None:
    """The worker cuts a silent stream at its time limit. A stream may end before the server is stopped."""
    for _ in range(5):
        how = await end_of_a_stream(real, signal.SIGSTOP)
        real.server.signal(signal.SIGCONT)
        if how == "was cut":
            return
    pytest.fail("every stream ended before the server could be stopped")


async def end_of_a_stream(real: RealSystem, number: signal.Signals) -> str:
    """Signal the model server during a stream; return how the stream ends. `pytest -s` prints it."""
    async with real.complete(max_tokens=1900, stream=True) as answer:
        began = time.monotonic()
        rest = await answer.content.readany()
        real.server.signal(number)
        with anyio.fail_after(ENDED_S):
            try:
                while piece := await answer.content.readany():
                    rest = (rest + piece)[-400:]
                how = f"ended with {rest!r}"
            except aiohttp.ClientPayloadError:
                how = "was cut"
    sys.stderr.write(f"\n{number.name}: after {time.monotonic() - began:.1f} s the stream {how}\n")
    return how
