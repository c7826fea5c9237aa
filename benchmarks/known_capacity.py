"""Measures how true and how quick a worker's benchmark is, with model servers of known capacity.

usage: python -m benchmarks.known_capacity [NAME…]

Each server of known_servers.py is started, and then a worker for it without a saved result, as a process of
its own and without an engine; one after the other. The machine must be idle.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio

from benchmarks.known_servers import SERVERS, JobServer
from benchmarks.processes import ChildProcess, ProcessFailed, free_ports, python, running

# Seconds until a worker is ready, and between two looks at it.
READY_LIMIT_S = 900.0
POLL_S = 0.1
# A worker has begun to listen within this time.
LISTEN_LIMIT_S = 60.0
# A server that came too late for this part of its steps had too little CPU time for its known capacity.
LATE_PART = 0.01
LOADED_LINE = "Application startup complete.\n"
_CONCURRENCY = re.compile(r"benchmark: .*?(?:concurrency (\d+)|(\d+) (?:requests )?in flight)")
_HEADING = (
    f"{'server':8} {'capacity':>9} {'said':>9} {'said/cap.':>9} {'ready s':>8} {'at once':>8} "
    f"{'most':>5} {'late':>6}"
)


@dataclass(frozen=True)
class Said:
    """A worker's result in workload/s, or 0 with the `error` that it reported.

    `ready_s` is the time from the worker's start. `most_at_once` is the largest number of requests that the
    server had, and `late` the part of the server's time that was lost.
    """

    name: str
    perf: float
    ready_s: float
    concurrency: int | None
    most_at_once: int
    late: float
    error: str

    def row(self) -> str:
        capacity = SERVERS[self.name].capacity
        concurrency = "?" if self.concurrency is None else self.concurrency
        notes = [self.error] if self.error else []
        if self.late > LATE_PART:
            notes.append("the server had too little CPU time")
        return (
            f"{self.name:8} {capacity:9,.1f} {self.perf:9,.1f} {self.perf / capacity:9.3f} "
            f"{self.ready_s:8.1f} {concurrency:>8} {self.most_at_once:5} {self.late:6.1%} {'; '.join(notes)}"
        ).rstrip()


def worker_command(name: str) -> list[str]:
    """The command line of the worker for server `name`.

    vLLM's worker has the end of text ignored; answers end early with the one that can't.
    """
    if isinstance(SERVERS[name], JobServer):
        return python("known_jobs_worker", name)
    module = "workers.openai.server" if name == "early" else "workers.vllm.server"
    return [sys.executable, "-m", module]


async def measured(name: str, folder: Path) -> Said:
    """Start server `name` and a worker for it, in folders inside `folder`; return the worker's result.

    Raises `ProcessFailed`.
    """
    folders = [folder / f"{name}_{part}" for part in ("server", "worker")]
    for made in folders:
        made.mkdir()
    server_folder, worker_folder = folders
    log = worker_folder / "model.log"
    log.write_text(LOADED_LINE)
    port, http_port = free_ports(2)
    async with running(python("known_servers", name), server_folder) as server:
        model_url = f"http://127.0.0.1:{int((await server.read_line()).split()[1])}"
        env = {
            "ENGINE": "none",
            "WORKER_PORT": str(port),
            "WORKER_HTTP_PORT": str(http_port),
            "BENCHMARK_DIR": str(worker_folder),
            "MODEL_SERVER_URL": model_url,
            "LOG_LEVEL": "INFO",
        }
        if "workers.vllm.server" in worker_command(name):
            env["MODEL_LOG"] = str(log)
        began_s = time.monotonic()
        async with (
            running(worker_command(name), worker_folder, env) as worker,
            aiohttp.ClientSession() as http,
        ):
            status = await _ended(http, f"http://127.0.0.1:{http_port}/status", worker, began_s)
            ready_s = time.monotonic() - began_s
            facts = await _json(http, f"{model_url}/known")
            return Said(
                name,
                status["max_perf"],
                ready_s,
                _concurrency(worker.errors.read_text(errors="replace")),
                facts["most_at_once"],
                facts.get("late_s", 0.0) / max(facts.get("stepping_s", 0.0), 1.0),
                status["error_msg"],
            )


async def _ended(http: aiohttp.ClientSession, url: str, worker: ChildProcess, began_s: float) -> Any:
    """Wait until the worker is ready, or has an error; return its status. Raises `ProcessFailed`."""
    while time.monotonic() - began_s < READY_LIMIT_S:
        if worker.process.returncode is not None:
            raise await worker.failure(f"ended with status {worker.process.returncode}")
        try:
            status = await _json(http, url)
        except aiohttp.ClientConnectionError:
            if time.monotonic() - began_s > LISTEN_LIMIT_S:
                raise await worker.failure(f"not listened within {LISTEN_LIMIT_S:g} s") from None
        else:
            if status["state"] == "ready" or status["error_msg"]:
                return status
        await anyio.sleep(POLL_S)
    raise await worker.failure(f"not become ready within {READY_LIMIT_S:g} s")


async def _json(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(url) as answer:
        return await answer.json()


def _concurrency(log: str) -> int | None:
    """The concurrency in the last line about one in a worker's log."""
    found = _CONCURRENCY.findall(log)
    return int(found[-1][0] or found[-1][1]) if found else None


async def main(names: Sequence[str]) -> None:
    print(_HEADING, flush=True)
    with tempfile.TemporaryDirectory(prefix="known-capacity-") as folder:
        for name in names:
            print((await measured(name, Path(folder))).row(), flush=True)


def _run(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in SERVERS]:
        sys.exit(f"no server is called {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    # Like Ctrl-C, so that no process is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        anyio.run(partial(main, names))
    except ProcessFailed as e:
        sys.exit(f"the measurement can't go on: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _run(sys.argv[1:] or list(SERVERS))
