"""The comfyui worker between the local engine and a stand-in for its model server, all over real sockets.

The engine lives in the test's process; the model server and the worker are processes of their own.
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
from tests.system import GUARD_S, ROOT, WorkerProcess, engine_and_model_server, worker_process
from tests.system import System as Peers

COMFYUI = "tests.workers.comfyui.fake_comfyui"
APIS = "tests.workers.comfyui.fake_apis"
SERVER = "workers.comfyui.server"
# A saved benchmark in the worker's folder: tests that don't measure begin at once.
RATED = 50.0


@dataclass
class Model:
    """A stand-in process for the model server, and what a test steers it by."""

    http: aiohttp.ClientSession
    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def steer(self, **what: Any) -> None:
        async with self.http.post(self.url + "/test/steer", json=what) as answer:
            assert answer.status == 200

    async def until(self, what: str, count: int = 1) -> dict[str, Any]:
        """The stand-in's state, once its list `what` has at least `count` items."""
        return await self._get(f"/test/until/{what}?count={count}")

    async def until_no(self, what: str) -> dict[str, Any]:
        return await self._get(f"/test/until/{what}?count=0&most")

    async def state(self) -> dict[str, Any]:
        return await self._get("/test/state")

    async def view(self, output: dict[str, Any]) -> bytes:
        """The file itself, asked for without the worker."""
        query = {name: output[name] for name in ("filename", "subfolder", "type")}
        async with self.http.get(self.url + "/view", params=query) as answer:
            assert answer.status == 200
            return await answer.read()

    async def _get(self, path: str) -> dict[str, Any]:
        with anyio.fail_after(GUARD_S):
            async with self.http.get(self.url + path) as answer:
                return await answer.json()


@dataclass
class Stand:
    """The engine, and the ports for a worker, which are those of `peers`."""

    peers: Peers
    tmp_path: Path

    @property
    def engine(self) -> LocalEngine:
        return self.peers.engine

    @property
    def engine_url(self) -> str:
        return self.peers.engine_url

    @property
    def http(self) -> aiohttp.ClientSession:
        return self.peers.http

    @property
    def url(self) -> str:
        return self.peers.url

    @property
    def loopback_url(self) -> str:
        return self.peers.loopback_url

    @property
    def last_report(self) -> Any:
        return self.peers.last_report

    def envelope(self, payload: dict[str, Any], cost: float = 100.0) -> dict[str, Any]:
        return {"auth_data": self.peers.auth(cost), "payload": payload}

    def post(self, path: str, payload: dict[str, Any], **options: Any) -> Any:
        """POST a signed request to the worker; an aiohttp request context manager."""
        return self.http.post(self.url + path, json=self.envelope(payload), **options)

    async def call(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer to a signed request."""
        async with self.post(path, payload) as answer:
            return answer.status, json.loads(await answer.read())

    def view(self, query: dict[str, str], **headers: str) -> Any:
        """GET a file through the worker, authenticated by a header."""
        signed = self.peers.header(0.0)
        return self.http.get(self.url + "/view", params=query, headers={**signed, **headers})

    async def generate(self, graph: dict[str, Any], **more: Any) -> tuple[int, Any]:
        return await self.call("/generate/sync", {"input": {"workflow_json": graph, **more}})

    async def ready(self) -> None:
        await self.peers.ready()

    async def told(self, *statuses: str) -> None:
        """Return once the engine was told of as many requests as `statuses`, which are theirs."""
        await self.engine.wait_for(lambda: len(self.engine.finished) >= len(statuses), GUARD_S)
        assert [f.request.status for f in self.engine.finished] == list(statuses)


@asynccontextmanager
async def stand(tmp_path: Path) -> AsyncGenerator[Stand, None]:
    """The engine, and the ports for a worker."""
    async with engine_and_model_server(tmp_path) as here:
        yield Stand(here, tmp_path)


@asynccontextmanager
async def model_server(
    here: Stand, module: str = COMFYUI, *arguments: str, name: str = "model.log"
) -> AsyncGenerator[Model, None]:
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
        yield Model(here.http, process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def worker(here: Stand, env: dict[str, str], rated: bool = True) -> AsyncGenerator[WorkerProcess, None]:
    """The worker's process, in a folder of its own; `rated`: it has a benchmark's result and runs none."""
    folder = here.tmp_path / "worker"
    folder.mkdir(exist_ok=True)
    if rated:
        (folder / ".has_benchmark").write_text(str(RATED))
    async with worker_process(here.peers, folder, Setup(), env, module=SERVER) as running:
        yield running


@dataclass
class System(Stand):
    """A `Stand` with a worker that is ready, before `model`."""

    model: Model = field(kw_only=True)
    worker: WorkerProcess = field(kw_only=True)


@asynccontextmanager
async def native_rig(
    tmp_path: Path, env: dict[str, str] | None = None, *, rated: bool = True
) -> AsyncGenerator[System, None]:
    """Everything, with a stock ComfyUI; the worker is ready at the beginning of the block."""
    async with stand(tmp_path) as here, model_server(here) as model:
        own = {"COMFYUI_DIALECT": "native", "MODEL_SERVER_URL": model.url, "MODEL_LOG": str(model.log)}
        async with worker(here, {**own, **(env or {})}, rated) as process:
            await here.ready()
            yield System(**vars(here), model=model, worker=process)
