"""An instance on this machine: the local engine and, beside it, a worker's process.

Owns what makes a worker believe that it is on an instance: its ports, its variables and its engine. What is
told of it is beside.py's; what an author tests with it is trial.py's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.local.engine import LocalEngine
from lib.local.processes import free_port
from lib.local.serving import CannotListen, serve_engine
from lib.runtime.clock import SystemClock

HOST = "127.0.0.1"
WORKER_ID = 1
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instance:
    """The engine, and where the worker that is started with `environ` will be."""

    engine: LocalEngine
    engine_url: str
    port: int
    loopback_port: int
    environ: Mapping[str, str]

    @property
    def worker_url(self) -> str:
        """The worker's public URL."""
        return f"http://{HOST}:{self.port}"

    @property
    def loopback_url(self) -> str:
        return f"http://{HOST}:{self.loopback_port}"


@asynccontextmanager
async def local_instance(
    environ: Mapping[str, str], engine_port: int, ports: tuple[int, int]
) -> AsyncGenerator[Instance, None]:
    """The local engine, and an instance's variables added to `environ`, for as long as the block lasts.

    `engine_port` and the worker's two `ports` are had where they are free, and others where not.
    """
    # A worker remembers the highest reqnum it took: an engine that is started anew must not begin below.
    engine = LocalEngine(first_reqnum=int(SystemClock().wall() * 1000))
    async with AsyncExitStack() as stack:
        try:
            engine_url = await stack.enter_async_context(serve_engine(engine, HOST, engine_port))
        except CannotListen:
            engine_url = await stack.enter_async_context(serve_engine(engine, HOST))
        port, loopback_port = (stack.enter_context(free_port(wanted)) for wanted in ports)
        variables = instance_variables(engine_url, port, loopback_port)
        yield Instance(engine, engine_url, port, loopback_port, {**with_code(environ), **variables})


def instance_variables(
    engine_url: str, port: int, loopback_port: int, worker_id: int = WORKER_ID
) -> dict[str, str]:
    """What an instance sets for its worker (launch.md), here without TLS."""
    return {
        "CONTAINER_ID": str(worker_id),
        "PUBLIC_IPADDR": HOST,
        f"VAST_TCP_PORT_{port}": str(port),
        "WORKER_PORT": str(port),
        "WORKER_HTTP_PORT": str(loopback_port),
        "REPORT_ADDR": engine_url,
        "USE_SSL": "false",
    }


def with_code(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` for a process that finds the code which this one runs."""
    places = [environ.get("PYTHONPATH", ""), str(_ROOT)]
    return {**environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
