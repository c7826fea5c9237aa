"""The environment of a worker on this machine: a local engine, free ports, and an instance's variables.

Owns the choice of ports and the variables. Does not own the worker's process, which the caller starts
(lib/tools/run_local.py, lib/testing.py).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.local.engine import LocalEngine, first_reqnum_now
from lib.local.processes import free_port
from lib.local.serving import CannotListen, serve_engine
from lib.local.worker_watch import watched_workers
from lib.runtime.settings import LOOPBACK

WORKER_ID = 1
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class LocalInstance:
    """A running local engine, and the addresses of a worker that is started with `environ`."""

    engine: LocalEngine
    engine_url: str
    port: int
    loopback_port: int
    environ: Mapping[str, str]

    @property
    def worker_url(self) -> str:
        """The worker's public URL."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def loopback_url(self) -> str:
        """The worker's URL on the loopback interface, with `/status` and `/metrics`."""
        return f"http://{LOOPBACK}:{self.loopback_port}"


@asynccontextmanager
async def local_instance(
    environ: Mapping[str, str], engine_port: int, ports: tuple[int, int]
) -> AsyncGenerator[LocalInstance, None]:
    """Run a local engine until the context is left; add an instance's variables to `environ`.

    `engine_port` and the worker's `ports`, public and loopback, are used if they are free; otherwise free
    ones are chosen.
    """
    engine = LocalEngine(first_reqnum=first_reqnum_now())
    async with AsyncExitStack() as stack:
        try:
            engine_url = await stack.enter_async_context(serve_engine(engine, LOOPBACK, engine_port))
        except CannotListen:
            engine_url = await stack.enter_async_context(serve_engine(engine, LOOPBACK))
        await stack.enter_async_context(watched_workers(engine))
        port, loopback_port = (stack.enter_context(free_port(wanted)) for wanted in ports)
        # The engine is new, and must not be told what another one was not.
        workspace = stack.enter_context(tempfile.TemporaryDirectory(prefix="pyworker-workspace-"))
        variables = instance_variables(engine_url, port, loopback_port, Path(workspace))
        yield LocalInstance(engine, engine_url, port, loopback_port, {**with_code_path(environ), **variables})


def instance_variables(
    engine_url: str, port: int, loopback_port: int, workspace: Path, worker_id: int = WORKER_ID
) -> dict[str, str]:
    """The variables that an instance sets for its worker, with TLS off (docs/operating.md, "Environment").

    `workspace` is the folder of the worker's journal.
    """
    return {
        "ENGINE": "vast",
        "CONTAINER_ID": str(worker_id),
        "PUBLIC_IPADDR": LOOPBACK,
        f"VAST_TCP_PORT_{port}": str(port),
        "WORKER_PORT": str(port),
        "WORKER_HTTP_PORT": str(loopback_port),
        "REPORT_ADDR": engine_url,
        "USE_SSL": "false",
        "WORKSPACE_DIR": str(workspace),
    }


def with_code_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` with this project's root on PYTHONPATH, so that processes import the same code."""
    places = [environ.get("PYTHONPATH", ""), str(_ROOT)]
    return {**environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
