"""A ready-made worker for a test: its process, the local engine, and a fake of its model server."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from tests.fakes.worker import Setup
from tests.system import GUARD_S, ROOT, System, WorkerProcess, engine_and_model_server, worker_process

# The result of a saved benchmark, so that most tests need not measure.
PERF = 1000.0


@dataclass
class WorkerSystem:
    """The worker of `system`, and the fake model server at `model_url`."""

    system: System
    worker: WorkerProcess
    model_url: str

    def post(self, path: str, payload: Any, cost: float = 1.0) -> Any:
        """POST a signed request to the worker's `path`; an aiohttp request context manager."""
        envelope = json.dumps({"auth_data": self.system.auth(cost), "payload": payload}).encode()
        return self.system.http.post(self.system.url + path, data=io.BytesIO(envelope))

    async def call(self, path: str, payload: Any) -> tuple[int, Any]:
        """Status and JSON of the answer to a signed request."""
        async with self.post(path, payload) as answer:
            return answer.status, json.loads(await answer.read())

    async def received(self) -> list[dict[str, Any]]:
        """The requests to the fake server (`GET /received`), oldest first, without health checks."""
        async with self.system.http.get(self.model_url + "/received") as answer:
            return await answer.json()

    async def last_message(self) -> Any:
        return json.loads((await self.received())[-1]["body"])

    async def client_left(self) -> None:
        """Wait until a client has disconnected from a stream of the fake server (`GET /left`)."""
        async with self.system.http.get(self.model_url + "/left"):
            pass

    async def run(self, module: str, *args: str) -> tuple[int, str]:
        """Run `python -m module` with the system's engine; return its exit status and output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", module, "--engine", self.system.engine_url),
            *args,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        with anyio.fail_after(GUARD_S):
            output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


@asynccontextmanager
async def fake_server(module: str, log: Path, *options: str) -> AsyncGenerator[str, None]:
    """Run the fake server `module` as a process that writes `log`; yield its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", module, "--log", str(log), *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        with anyio.fail_after(GUARD_S):
            found = re.search(r"http://\S+", (await process.stdout.readline()).decode())
        assert found
        yield found.group()
    finally:
        if process.returncode is None:
            process.terminate()
        with anyio.fail_after(GUARD_S):
            await process.communicate()


@asynccontextmanager
async def worker_system(
    tmp_path: Path,
    name: str,
    fake_server_of: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    measured: bool = True,
    scheme: Any = "full",
) -> AsyncGenerator[WorkerSystem, None]:
    """The worker `workers.NAME.server` as a process, ready at the beginning of the block.

    The fake server is that of the worker `fake_server_of`, by default `name`, with `options` as its
    arguments. The worker runs its benchmark unless `measured`.
    """
    if measured:
        (tmp_path / ".has_benchmark").write_text(str(PERF))
    log = tmp_path / "model.log"
    async with (
        fake_server(f"tests.workers.{fake_server_of or name}.fake_server", log, *options) as model_url,
        engine_and_model_server(tmp_path, scheme) as system,
    ):
        variables = {"MODEL_SERVER_URL": model_url, "MODEL_LOG": str(log), **(env or {})}
        worker_module = f"workers.{name}.server"
        async with worker_process(system, tmp_path, Setup(), variables, module=worker_module) as worker:
            system.worker = worker
            await system.ready()
            yield WorkerSystem(system, worker, model_url)
