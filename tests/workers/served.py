"""A ready-made worker for a test: the local engine, a stand-in for its model server, its own process."""

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

# Of the benchmark only its result is of interest here: kept in the worker's directory, it need not be run.
PERF = 1000.0


@dataclass
class Served:
    """The worker behind `system`, and the stand-in that it serves at `model_url`."""

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
        """What has come to the stand-in (`GET /received`), the oldest first; health checks not counted."""
        async with self.system.http.get(self.model_url + "/received") as answer:
            return await answer.json()

    async def last_message(self) -> Any:
        return json.loads((await self.received())[-1]["body"])

    async def client_left(self) -> None:
        """Return once a client of the stand-in has left before the end of a stream (`GET /left`)."""
        async with self.system.http.get(self.model_url + "/left"):
            pass

    async def run(self, module: str, *args: str) -> tuple[int, str]:
        """Exit status and output of `python -m module`, told of the system's engine."""
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
async def stand_in(module: str, log: Path, *options: str) -> AsyncGenerator[str, None]:
    """The stand-in `module` as a process that writes `log` and prints its URL, which is given here."""
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
async def served(
    tmp_path: Path,
    name: str,
    stand_in_of: str | None = None,
    *,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    measured: bool = True,
    scheme: Any = "full",
) -> AsyncGenerator[Served, None]:
    """The worker `workers.NAME.server` as a process, ready at the beginning of the block.

    The stand-in is that of the worker `stand_in_of`, by default its own, with `options` as its arguments.
    Unless `measured`, the worker runs its benchmark.
    """
    if measured:
        (tmp_path / ".has_benchmark").write_text(str(PERF))
    log = tmp_path / "model.log"
    async with (
        stand_in(f"tests.workers.{stand_in_of or name}.stand_in", log, *options) as model_url,
        engine_and_model_server(tmp_path, scheme) as system,
    ):
        variables = {"MODEL_SERVER_URL": model_url, "MODEL_LOG": str(log), **(env or {})}
        worker_module = f"workers.{name}.server"
        async with worker_process(system, tmp_path, Setup(), variables, module=worker_module) as worker:
            system.worker = worker
            await system.ready()
            yield Served(system, worker, model_url)
