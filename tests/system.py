"""A system for a test: the local engine, the fake model server, and a worker.

The engine and the model server run in the test's process, on its event loop. The worker is a process of its
own (`with_worker_process`) or a task beside them (`with_worker_task`). They communicate over real sockets.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import aiohttp
import anyio
from aiohttp import web
from Crypto.PublicKey import RSA

from lib.backend import Backend
from lib.life.running_worker import RunningWorker
from lib.life.stop import Stop
from lib.local.engine import LocalEngine
from lib.local.processes import free_port
from lib.local.serving import serve_engine
from lib.runtime.settings import CarrierKind, Settings
from lib.server import serve
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.worker import READY_LINE, Setup, build
from tests.guard import GUARD_S
from tests.keys import new_key

ROOT = Path(__file__).parent.parent
CONTAINER_ID = 4711
MASTER_TOKEN = "master-token"
# Workers report with a pause of about a second, for which most tests would wait. Worker processes do.
REPORT_PAUSE_S = 0.02
# Who carries requests in tests that don't choose: the suite runs once with each.
CARRIER = cast(CarrierKind, os.environ.get("CARRIER", "direct"))


@lru_cache(maxsize=1)
def engine_key() -> RSA.RsaKey:
    return new_key()


class PortLease:
    """A free port that stays reserved until `close`: bound and never listened on.

    It is bound at all addresses, as a worker process binds it: other tests connect from 127.0.0.2 and up.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self.port: int = self._held.enter_context(free_port())

    def close(self) -> None:
        self._held.close()


@dataclass
class WorkerProcess:
    """A worker process; its output goes to `log`."""

    process: asyncio.subprocess.Process
    log: Path

    def output(self) -> str:
        return self.log.read_text()

    async def final_output(self) -> str:
        """Stop it, and return all that it has written: a running one may not have written its last lines."""
        if self.process.returncode is None:
            self.terminate()
            await self.exit_status()
        return self.output()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def memory_kib(self) -> int:
        return self._memory_kib("VmRSS")

    def peak_memory_kib(self) -> int:
        """Its peak since its start, in KiB."""
        return self._memory_kib("VmHWM")

    def _memory_kib(self, name: str) -> int:
        fields = Path(f"/proc/{self.process.pid}/status").read_text().split("\n")
        return next(int(line.split()[1]) for line in fields if line.startswith(name))

    async def exit_status(self) -> int:
        with anyio.fail_after(GUARD_S):
            return await self.process.wait()


@dataclass
class System:
    """An engine, a fake model server and a worker. `url` is the worker's, `model_log` the model's."""

    engine: LocalEngine
    engine_url: str
    model: MaliciousModel
    http: aiohttp.ClientSession
    url: str
    loopback_url: str
    model_log: Path
    worker: WorkerProcess | None = None
    backend: Backend | None = None
    running: RunningWorker | None = None
    stop: Stop | None = None
    exit_status: int | None = None

    def auth(self, cost: float = 1.0, **signed: Any) -> dict[str, Any]:
        """`auth_data` signed by the engine for this worker."""
        everything: dict[str, Any] = {"url": self.url, "cost": cost, **signed}
        return self.engine.sign(**everything)

    def bearer(self, cost: float = 1.0, **signed: Any) -> str:
        """The same as a bearer token of header authentication."""
        raw = json.dumps(self.auth(cost, **signed)).encode()
        return "vast." + base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def header(self, cost: float = 1.0, **signed: Any) -> dict[str, str]:
        """The same as the header of a request."""
        return {"Authorization": f"Bearer {self.bearer(cost, **signed)}"}

    def envelope(
        self, workload: float = 1.0, data: dict[str, Any] | None = None, **signed: Any
    ) -> dict[str, Any]:
        payload = {"workload": workload, "data": data or {}}
        return {"auth_data": self.auth(workload, **signed), "payload": payload}

    def post(
        self, path: str, workload: float = 1.0, data: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """POST a signed request to the worker's `path`; an aiohttp request context manager."""
        return self.http.post(self.url + path, json=self.envelope(workload, data), **options)

    async def call(self, path: str, workload: float = 1.0, **options: Any) -> tuple[int, bytes]:
        """Status and body of the answer to a signed request."""
        async with self.post(path, workload, **options) as answer:
            return answer.status, await answer.read()

    @property
    def last_report(self) -> Any:
        return self.engine.worker(CONTAINER_ID).last

    @property
    def totals(self) -> Any:
        return self.engine.worker(CONTAINER_ID).totals

    async def ready(self) -> None:
        """Return once the worker has reported that it is ready."""
        await self._told(lambda: self.last_report is not None and self.last_report.loadtime > 0)

    async def reported(self, served: float = 0.0, error_msg: str = "") -> None:
        """Return once reports add up to `served`, nothing is in flight and the last error is `error_msg`."""
        await self._told(
            lambda: (
                self.last_report is not None
                and self.totals.cur_perf >= served
                and self.last_report.num_requests_working == 0
                and self.last_report.error_msg == error_msg
            )
        )

    async def errored(self) -> str:
        """Return the reported error message once there is one."""
        await self._told(lambda: self.last_report is not None and self.last_report.error_msg)
        return self.last_report.error_msg

    async def _told(self, predicate: Callable[[], object]) -> None:
        """Return once `predicate` is true; otherwise fail with what the worker reported and wrote."""
        try:
            await self.engine.wait_for(predicate, GUARD_S)
        except TimeoutError:
            wrote = ""
            if self.worker is not None:
                wrote = (
                    f"; its exit status: {self.worker.process.returncode}; its log:\n{self.worker.output()}"
                )
            raise AssertionError(f"the worker's last report: {self.last_report}{wrote}") from None

    def write_log(self, text: str = READY_LINE + "\n") -> None:
        with self.model_log.open("a") as f:
            f.write(text)


@asynccontextmanager
async def engine_and_model_server(tmp_path: Path, scheme: Any = "full") -> AsyncGenerator[System, None]:
    """Run an engine and a fake model server; reserve the ports for a worker."""
    leases = (PortLease(), PortLease())
    engine = LocalEngine(scheme, key=engine_key())
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with (
            serve_engine(engine) as engine_url,
            malicious_model() as model,
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=GUARD_S)) as http,
        ):
            yield System(
                engine,
                engine_url,
                model,
                http,
                f"http://127.0.0.1:{leases[0].port}",
                f"http://127.0.0.1:{leases[1].port}",
                tmp_path / "model.log",
            )
    finally:
        for lease in leases:
            lease.close()


def environment(system: System, setup: Setup, extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of the system's worker process: the variables of an instance."""
    port, loopback_port = system.url.rsplit(":", 1)[1], system.loopback_url.rsplit(":", 1)[1]
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CONTAINER_ID": str(CONTAINER_ID),
        "PUBLIC_IPADDR": "127.0.0.1",
        "WORKER_PORT": port,
        "WORKER_HTTP_PORT": loopback_port,
        f"VAST_TCP_PORT_{port}": port,
        "REPORT_ADDR": system.engine_url,
        "MASTER_TOKEN": MASTER_TOKEN,
        "WORKSPACE_DIR": str(system.model_log.parent),
        "BENCHMARK_TARGET_S": "1",
        "TEST_MODEL_URL": system.model.url,
        "TEST_WORKER": json.dumps(asdict(setup)),
        **(extra or {}),
    }


@asynccontextmanager
async def worker_process(
    system: System,
    tmp_path: Path,
    setup: Setup,
    env: dict[str, str] | None = None,
    name: str = "worker.log",
    module: str = "tests.fakes.worker",
    errors: int | None = None,
) -> AsyncGenerator[WorkerProcess, None]:
    """Run a worker process (`python -m module`) for the system's model server; end it with the block.

    Its standard error goes to the file `errors`, by default to its log.
    """
    log = tmp_path / name
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            cwd=tmp_path,
            env=environment(system, setup, env),
            stdout=output,
            stderr=output if errors is None else errors,
        )
    worker = WorkerProcess(process, log)
    try:
        yield worker
    finally:
        if process.returncode is None:
            worker.terminate()
            with anyio.move_on_after(GUARD_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def restarted(system: System, tmp_path: Path, setup: Setup) -> AsyncGenerator[WorkerProcess, None]:
    """Run a worker process in place of one that has ended, from the moment when it has reported as ready."""
    before = system.totals.reports
    async with worker_process(system, tmp_path, setup) as worker:
        await system.engine.wait_for(
            lambda: system.totals.reports > before and system.last_report.loadtime > 0, GUARD_S
        )
        yield worker


@asynccontextmanager
async def with_worker_process(
    tmp_path: Path,
    setup: Setup | None = None,
    env: dict[str, str] | None = None,
    *,
    scheme: Any = "full",
    wait: bool = True,
    module: str = "tests.fakes.worker",
) -> AsyncGenerator[System, None]:
    """Run a system with a worker process. Yields it once the worker is ready, or without waiting for that."""
    setup = setup or Setup(health="/health")
    async with (
        engine_and_model_server(tmp_path, scheme) as system,
        worker_process(system, tmp_path, setup, env, module=module) as worker,
    ):
        system.worker = worker
        if wait:
            await system.ready()
        yield system


@asynccontextmanager
async def with_worker_task(
    tmp_path: Path,
    setup: Setup | None = None,
    *,
    scheme: Any = "full",
    wait: bool = True,
    make: Callable[[str, Setup], tuple[Backend, Sequence[web.AbstractRouteDef]]] = build,
    **settings: Any,
) -> AsyncGenerator[System, None]:
    """Run a system with a worker task, in this process. Yields it as `with_worker_process` does.

    `settings` replace those of the system; `make` makes the worker for a model server's URL and a `Setup`.
    The worker is stopped at the end of the block unless the test has stopped it; then `exit_status` is set.
    """
    setup = setup or Setup(health="/health")
    async with engine_and_model_server(tmp_path, scheme) as system:
        system.backend, routes = make(system.model.url, setup)
        everything = replace(
            Settings(
                container_id=CONTAINER_ID,
                public_url=system.url,
                report_addrs=(system.engine_url,),
                carrier=CARRIER,
            ),
            worker_port=int(system.url.rsplit(":", 1)[1]),
            worker_http_port=int(system.loopback_url.rsplit(":", 1)[1]),
            workspace_dir=tmp_path,
            **{"master_token": MASTER_TOKEN, "max_report_pause_s": REPORT_PAUSE_S, **settings},
        )
        system.model.api_key = everything.model_api_key
        system.stop, listening = Stop(), anyio.Event()

        def started(running: RunningWorker) -> None:
            system.running = running
            listening.set()

        async def run() -> None:
            assert system.backend is not None
            assert system.stop is not None
            system.exit_status = await serve(
                system.backend,
                routes,
                everything,
                system.stop,
                directory=tmp_path,
                started=started,
                host="127.0.0.1",
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            with anyio.fail_after(GUARD_S):
                await listening.wait()
            if wait:
                await system.ready()
            yield system
            if not system.stop.asked.is_set():
                system.stop.ask()
