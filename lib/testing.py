"""Runs a worker for its author's tests: `async with trial("worker.py") as worker: await worker.post(…)`.

Owns the worker's process and signed requests to it. The local engine, the ports and the variables are in
lib/local/local_worker_env.py.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lib.client import LOCAL_NAME, RouteClient, Target
from lib.local.local_worker_env import WORKER_ID, LocalInstance, local_instance
from lib.local.processes import Child, ChildFailed, python_module, while_running
from lib.tools.request_style import FilePart, RequestStyle

__all__ = ["Trial", "trial"]

# Seconds: model servers for tests load, run the benchmark and answer quickly.
READY_LIMIT_S = 60.0
REQUEST_LIMIT_S = 60.0
BENCHMARK_TARGET_S = 1.0


@dataclass(frozen=True)
class Trial:
    """A running worker. It reports to `instance.engine`; its log file is `child.log`."""

    instance: LocalInstance
    child: Child
    http: aiohttp.ClientSession

    async def post(self, route: str, payload: Mapping[str, Any], cost: float = 1.0) -> tuple[int, bytes]:
        """Send a signed request; return the answer's status and body."""
        client = self._client()
        worker = await client.route(cost, limit_s=REQUEST_LIMIT_S)
        async with client.call(worker, route, payload) as answer:
            return answer.status, await answer.read()

    async def lines(
        self, route: str, payload: Mapping[str, Any], cost: float = 1.0
    ) -> AsyncGenerator[bytes, None]:
        """Send a signed request; yield the lines of its streamed answer as they arrive.

        Raises `aiohttp.ClientResponseError` for an error status.
        """
        client = self._client()
        worker = await client.route(cost, limit_s=REQUEST_LIMIT_S)
        async with client.call(worker, route, payload) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                yield line

    async def upload(
        self,
        route: str,
        files: Mapping[str, str | Path],
        fields: Mapping[str, Any] | None = None,
        cost: float = 1.0,
    ) -> tuple[int, bytes]:
        """Send a form with `files`, whose paths are by the names of their fields; return status and body.

        `fields` are further fields of the form. A file whose field is "" is the whole body instead, and
        `fields` are the query. The request is authenticated by a header. Raises `OSError` for a file that
        can't be read.
        """
        style = RequestStyle(files=[FilePart(name, Path(path)) for name, path in files.items()])
        client = self._client()
        worker = await client.route(cost, limit_s=REQUEST_LIMIT_S)
        async with style.call(client, worker, route, fields or {}) as answer:
            return answer.status, await answer.read()

    def _client(self) -> RouteClient:
        return RouteClient(self.http, Target(self.instance.engine_url, LOCAL_NAME, LOCAL_NAME))


def trial(worker: str | Path, **variables: str) -> AbstractAsyncContextManager[Trial]:
    """Run the worker in the file `worker`, with `variables` added to its environment; yield it when ready.

    Raises `ChildFailed`, with the last lines of its log, if it fails or isn't ready within a minute.
    """
    return _trial(os.path.abspath(worker), variables)


@asynccontextmanager
async def _trial(target: str, variables: Mapping[str, str]) -> AsyncGenerator[Trial, None]:
    inherited = os.environ  # noqa: TID251 - passed to the worker, not read here
    with tempfile.TemporaryDirectory(prefix="pyworker-trial-") as directory:
        environ = {
            **inherited,
            "BENCHMARK_DIR": directory,
            "BENCHMARK_TARGET_S": f"{BENCHMARK_TARGET_S:g}",
            **variables,
        }
        log = Path(directory) / "worker.log"
        async with (
            local_instance(environ, 0, (0, 0)) as instance,
            python_module(
                "worker", "lib.tools.cli", "run", target, environ=instance.environ, log=log
            ) as child,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_LIMIT_S)) as http,
        ):
            await _wait_until_ready(instance, child)
            yield Trial(instance, child, http)


async def _wait_until_ready(instance: LocalInstance, child: Child) -> None:
    engine = instance.engine
    no_signal: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    reported = engine.wait_for(lambda: engine.worker(WORKER_ID).state in ("ready", "error"), READY_LIMIT_S)
    try:
        await while_running(reported, [child], no_signal)
    except TimeoutError as e:
        raise ChildFailed(f"the worker was not ready within {READY_LIMIT_S:g} s", child) from e
    last = engine.worker(WORKER_ID).last
    if last is not None and last.error_msg:
        raise ChildFailed(f"the worker reports an error: {last.error_msg}", child)
