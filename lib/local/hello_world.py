"""The hello_world worker and its model server as two processes, for the demo, `--autoscale` and tests.

Owns their arguments and environment. Does not own the start and stop of processes (processes.py). Both are
started by module name and called over HTTP, as on an instance.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from lib.local.local_worker_env import WORKER_ID, instance_variables, with_code_path
from lib.local.processes import END_LIMIT_S, Child, free_port, python_module
from lib.runtime.settings import LOOPBACK

MODEL_MODULE = "workers.hello_world.model_server"
WORKER_MODULE = "workers.hello_world.server"

# The model server's speed is fixed, so a short benchmark measures it.
BENCHMARK_TARGET_S = 3

# Variables with these prefixes configure a worker. They are not inherited: they may belong to another worker.
_INSTANCE_VARIABLES = (
    *("AUTH_", "BENCHMARK_", "CONTAINER_ID", "DRAIN_", "LOG_", "MASTER_TOKEN", "MAX_", "MODEL_"),
    *("PUBLIC_IPADDR", "REPORT_ADDR", "REQUEST_BODY_", "SSL_", "UNSECURED", "USE_SSL", "VAST_", "WORKER_"),
)


@dataclass(frozen=True)
class HelloWorld:
    """Both processes and their base URLs; `worker_url` is the worker's public one."""

    model: Child
    worker: Child
    model_url: str
    worker_url: str
    loopback_url: str

    @property
    def children(self) -> tuple[Child, ...]:
        """Both processes."""
        return (self.model, self.worker)


@asynccontextmanager
async def hello_world(
    engine_url: str,
    environ: Mapping[str, str],
    directory: Path,
    tokens_per_s: int,
    *,
    worker_id: int = WORKER_ID,
    variables: Mapping[str, str] | None = None,
    drain_s: int = 1,
) -> AsyncGenerator[HelloWorld, None]:
    """Run both processes on free ports until the context is left.

    Args:
        engine_url: the engine that the worker reports to.
        environ: inherited by both, without the variables that configure a worker.
        directory: for logs and the benchmark result.
        tokens_per_s: the speed of the model server.
        variables: additional environment variables of the worker.
        drain_s: seconds that a stopping worker has to finish its requests.
    """
    inherited = with_code_path({k: v for k, v in environ.items() if not k.startswith(_INSTANCE_VARIABLES)})
    async with AsyncExitStack() as stack:
        model_port, port, loopback_port = (stack.enter_context(free_port()) for _ in range(3))
        model_log = directory / "model_server.log"
        model = await stack.enter_async_context(
            python_module(
                "model server",
                MODEL_MODULE,
                *("--port", str(model_port), "--tokens-per-s", str(tokens_per_s)),
                environ=inherited,
                log=model_log,
            )
        )
        model_url = f"http://{LOOPBACK}:{model_port}"
        worker_environ = {
            **inherited,
            **instance_variables(engine_url, port, loopback_port, directory, worker_id),
            "MODEL_SERVER_URL": model_url,
            "MODEL_LOG": str(model_log),
            "BENCHMARK_TARGET_S": str(BENCHMARK_TARGET_S),
            "DRAIN_TIMEOUT_S": str(drain_s),
            **(variables or {}),
        }
        worker = await stack.enter_async_context(
            python_module(
                "worker",
                WORKER_MODULE,
                environ=worker_environ,
                log=directory / "worker.log",
                end_limit_s=drain_s + END_LIMIT_S,
            )
        )
        scheme = "https" if worker_environ["USE_SSL"] == "true" else "http"
        yield HelloWorld(
            model, worker, model_url, f"{scheme}://{LOOPBACK}:{port}", f"http://{LOOPBACK}:{loopback_port}"
        )
