"""The comfyui worker between the local engine and a stand-in for its model server, all over real sockets.

The engine lives in the test's process; the model server and the worker are processes of their own.
"""

from __future__ import annotations

import asyncio
import base64
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

from lib.local.engine import LocalEngine, serve_engine
from tests.rig import CONTAINER_ID, GUARD_S, MASTER_TOKEN, ROOT, PortLease, WorkerProcess, engine_key

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
    engine: LocalEngine
    engine_url: str
    http: aiohttp.ClientSession
    url: str
    loopback_url: str
    tmp_path: Path
    leases: list[PortLease] = field(default_factory=list[PortLease])

    def envelope(self, payload: dict[str, Any], cost: float = 100.0) -> dict[str, Any]:
        auth: dict[str, Any] = self.engine.sign(url=self.url, cost=cost)
        return {"auth_data": auth, "payload": payload}

    def post(self, path: str, payload: dict[str, Any], **options: Any) -> Any:
        """POST a signed request to the worker; an aiohttp request context manager."""
        return self.http.post(self.url + path, json=self.envelope(payload), **options)

    async def call(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of the answer to a signed request."""
        async with self.post(path, payload) as answer:
            return answer.status, json.loads(await answer.read())

    def view(self, query: dict[str, str], **headers: str) -> Any:
        """GET a file through the worker, authenticated by a header."""
        auth = json.dumps(self.engine.sign(url=self.url, cost=0.0)).encode()
        headers["X-Vast-Auth"] = base64.urlsafe_b64encode(auth).decode()
        return self.http.get(self.url + "/view", params=query, headers=headers)

    async def generate(self, graph: dict[str, Any], **more: Any) -> tuple[int, Any]:
        return await self.call("/generate/sync", {"input": {"workflow_json": graph, **more}})

    @property
    def last_report(self) -> Any:
        return self.engine.worker(CONTAINER_ID).last

    async def ready(self) -> None:
        await self.engine.wait_for(
            lambda: self.last_report is not None and self.last_report.loadtime > 0, GUARD_S
        )

    async def told(self, *statuses: str) -> None:
        """Return once the engine was told of as many requests as `statuses`, which are theirs."""
        await self.engine.wait_for(lambda: len(self.engine.finished) >= len(statuses), GUARD_S)
        assert [f.request.status for f in self.engine.finished] == list(statuses)


@asynccontextmanager
async def stand(tmp_path: Path) -> AsyncGenerator[Stand, None]:
    """The engine, and the ports for a worker."""
    leases = [PortLease(), PortLease()]
    urls = [f"http://127.0.0.1:{lease.port}" for lease in leases]
    engine = LocalEngine("full", key=engine_key())
    limit = aiohttp.ClientTimeout(total=GUARD_S)
    try:
        async with serve_engine(engine) as engine_url, aiohttp.ClientSession(timeout=limit) as http:
            yield Stand(engine, engine_url, http, urls[0], urls[1], tmp_path, leases)
    finally:
        for lease in leases:
            lease.close()


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
    """The worker's process; `rated`: it has a benchmark's result and runs none."""
    folder = here.tmp_path / "worker"
    folder.mkdir(exist_ok=True)
    if rated:
        (folder / ".has_benchmark").write_text(str(RATED))
    port, loopback = here.url.rsplit(":", 1)[1], here.loopback_url.rsplit(":", 1)[1]
    log = here.tmp_path / "worker.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            SERVER,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""),
                "CONTAINER_ID": str(CONTAINER_ID),
                "PUBLIC_IPADDR": "127.0.0.1",
                "WORKER_PORT": port,
                "WORKER_HTTP_PORT": loopback,
                f"VAST_TCP_PORT_{port}": port,
                "REPORT_ADDR": here.engine_url,
                "MASTER_TOKEN": MASTER_TOKEN,
                **env,
            },
            stdout=output,
            stderr=output,
        )
    running = WorkerProcess(process, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            running.terminate()
        with anyio.move_on_after(GUARD_S, shield=True):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


@dataclass
class Rig(Stand):
    """A `Stand` with a worker that is ready, before `model`."""

    model: Model = field(kw_only=True)
    worker: WorkerProcess = field(kw_only=True)


@asynccontextmanager
async def native_rig(
    tmp_path: Path, env: dict[str, str] | None = None, *, rated: bool = True
) -> AsyncGenerator[Rig, None]:
    """Everything, with a stock ComfyUI; the worker is ready at the beginning of the block."""
    async with stand(tmp_path) as here, model_server(here) as model:
        own = {"COMFYUI_DIALECT": "native", "MODEL_SERVER_URL": model.url, "MODEL_LOG": str(model.log)}
        async with worker(here, {**own, **(env or {})}, rated) as process:
            await here.ready()
            yield Rig(**vars(here), model=model, worker=process)
