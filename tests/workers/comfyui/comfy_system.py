"""The comfyui worker between the local engine and a fake model server, all over real sockets.

The engine runs in the test's process; the model server and the worker are processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from lib.local.engine import LocalEngine
from tests.fakes.worker import Setup
from tests.system import GUARD_S, ROOT, System, WorkerProcess, engine_and_model_server, worker_process

COMFYUI = "tests.workers.comfyui.fake_comfyui"
APIS = "tests.workers.comfyui.fake_apis"
SERVER = "workers.comfyui.server"
# The result of a saved benchmark, so that most tests need not measure.
PERF = 50.0


@dataclass
class FakeServer:
    """A fake model server as a process, and the calls by which a test controls it."""

    http: aiohttp.ClientSession
    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def steer(self, **what: Any) -> None:
        async with self.http.post(self.url + "/test/steer", json=what) as answer:
            assert answer.status == 200

    async def until(self, what: str, count: int = 1) -> dict[str, Any]:
        """Wait until the fake's list `what` has at least `count` items; return its state."""
        return await self._get(f"/test/until/{what}?count={count}")

    async def until_no(self, what: str) -> dict[str, Any]:
        """Wait until the fake's list `what` is empty; return its state."""
        return await self._get(f"/test/until/{what}?count=0&most")

    async def state(self) -> dict[str, Any]:
        return await self._get("/test/state")

    async def view(self, output: dict[str, Any]) -> bytes:
        """The content of a file, read without the worker."""
        query = {name: output[name] for name in ("filename", "subfolder", "type")}
        async with self.http.get(self.url + "/view", params=query) as answer:
            assert answer.status == 200
            return await answer.read()

    async def _get(self, path: str) -> dict[str, Any]:
        with anyio.fail_after(GUARD_S):
            async with self.http.get(self.url + path) as answer:
                return await answer.json()


@dataclass
class BaseSystem:
    """The engine and the ports for a worker, which are those of `system`. Nothing else runs yet."""

    system: System
    tmp_path: Path

    @property
    def engine(self) -> LocalEngine:
        return self.system.engine

    @property
    def engine_url(self) -> str:
        return self.system.engine_url

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.system.http

    @property
    def url(self) -> str:
        return self.system.url

    @property
    def loopback_url(self) -> str:
        return self.system.loopback_url

    @property
    def last_report(self) -> Any:
        return self.system.last_report

    def envelope(self, payload: dict[str, Any], cost: float = 100.0) -> dict[str, Any]:
        return {"auth_data": self.system.auth(cost), "payload": payload}

    def post(self, path: str, payload: dict[str, Any], **options: Any) -> Any:
        """POST a signed request to the worker; an aiohttp request context manager."""
        return self.http.post(self.url + path, json=self.envelope(payload), **options)

    async def call(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer to a signed request."""
        async with self.post(path, payload) as answer:
            return answer.status, json.loads(await answer.read())

    def view(self, query: dict[str, str], **headers: str) -> Any:
        """GET a file through the worker, authenticated by a header."""
        signed = self.system.header(0.0)
        return self.http.get(self.url + "/view", params=query, headers={**signed, **headers})

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of the answer to a GET, authenticated by a header."""
        async with self.http.get(self.url + path, headers=self.system.header(0.0)) as answer:
            return answer.status, json.loads(await answer.read())

    async def generate(self, graph: dict[str, Any], **more: Any) -> tuple[int, Any]:
        return await self.call("/generate/sync", {"input": {"workflow_json": graph, **more}})

    async def ready(self) -> None:
        await self.system.ready()

    async def engine_got(self, *statuses: str) -> None:
        """Wait until the engine has completions of as many requests as `statuses`, and check theirs."""
        await self.engine.wait_for(lambda: len(self.engine.finished) >= len(statuses), GUARD_S)
        assert [f.request.status for f in self.engine.finished] == list(statuses)


@asynccontextmanager
async def base_system(tmp_path: Path) -> AsyncGenerator[BaseSystem, None]:
    """The engine and the ports for a worker."""
    async with engine_and_model_server(tmp_path) as here:
        yield BaseSystem(here, tmp_path)


@asynccontextmanager
async def model_server(
    here: BaseSystem, module: str = COMFYUI, *arguments: str, name: str = "model.log"
) -> AsyncGenerator[FakeServer, None]:
    log = here.tmp_path / name
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        "--log",
        str(log),
        *arguments,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with anyio.fail_after(GUARD_S):
            port = int(await process.stdout.readline())
        yield FakeServer(here.http, process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def worker(
    here: BaseSystem, env: dict[str, str], measured: bool = True
) -> AsyncGenerator[WorkerProcess, None]:
    """The worker's process, in its own folder. `measured`: it has a saved result and runs no benchmark."""
    folder = here.tmp_path / "worker"
    folder.mkdir(exist_ok=True)
    if measured:
        (folder / ".has_benchmark").write_text(str(PERF))
    async with worker_process(here.system, folder, Setup(), env, module=SERVER) as running:
        yield running


@dataclass
class ComfySystem(BaseSystem):
    """A `BaseSystem` with a ready worker in front of `model`."""

    model: FakeServer = field(kw_only=True)
    worker: WorkerProcess = field(kw_only=True)


@asynccontextmanager
async def native_system(
    tmp_path: Path, env: dict[str, str] | None = None, *, measured: bool = True
) -> AsyncGenerator[ComfySystem, None]:
    """The whole system with a fake ComfyUI. The worker is ready at the beginning of the block."""
    async with base_system(tmp_path) as here, model_server(here) as model:
        own = {"COMFYUI_DIALECT": "native", "MODEL_SERVER_URL": model.url, "MODEL_LOG": str(model.log)}
        async with worker(here, {**own, **(env or {})}, measured) as process:
            await here.ready()
            yield ComfySystem(**vars(here), model=model, worker=process)
