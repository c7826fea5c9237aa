"""`pyworker demo`: engine, worker and model server on this machine, and one request of each kind.

Owns the demo's steps and its output. The local engine runs in this process. Does not own: the processes of
the worker and the model server (hello_world.py), the layout of the output (screen.py).
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import anyio

from lib.client import LOCAL_NAME, EngineError, NoWorker, RouteAnswer, RouteClient, Target
from lib.local.engine import LocalEngine
from lib.local.fleet import WorkerRecord
from lib.local.hello_world import HelloWorld, hello_world
from lib.local.local_worker_env import WORKER_ID
from lib.local.processes import Child, ChildFailed, Interrupted, on_stop_signal, while_running
from lib.local.screen import Screen
from lib.local.serving import serve_engine
from lib.local.worker_watch import watched_workers

CLIENT_MODULE = "workers.hello_world.client"
LOAD_TEST_MODULE = "workers.hello_world.test_load"

# About as fast as a person can read.
TOKENS_PER_S = 250
PROMPT = "The White Rabbit"
WHOLE_TOKENS = 40
STREAMED_TOKENS = 150

READY_LIMIT_S = 60.0
REQUEST_LIMIT_S = 30.0
POLL_S = 0.1
_STATUS_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True)
class DemoSystem:
    """Everything that the demo runs."""

    engine: LocalEngine
    engine_url: str
    processes: HelloWorld

    @property
    def worker(self) -> Child:
        """The worker's process."""
        return self.processes.worker

    @property
    def record(self) -> WorkerRecord:
        """The engine's record of the worker."""
        return self.engine.worker(WORKER_ID)


def demo(environ: Mapping[str, str], *, once: bool = False, screen: Screen | None = None) -> None:
    """Run the demo until it is interrupted, or with `once` until everything has been shown.

    The processes inherit `environ`. Raises `ChildFailed`, and `Interrupted` for a signal before everything
    has been shown.
    """
    with tempfile.TemporaryDirectory(prefix="pyworker-demo-") as directory:
        asyncio.run(_demo(environ, once, screen or Screen(), Path(directory)))


async def _demo(environ: Mapping[str, str], once: bool, screen: Screen, directory: Path) -> None:
    stop = _stop_signal()
    async with _demo_system(environ, directory) as system:
        await while_running(_show(system, screen), system.processes.children, stop)
        if once:
            return
        _show_what_next(system, screen)
        try:
            await while_running(anyio.sleep_forever(), system.processes.children, stop)
        except Interrupted:
            screen.line()
            screen.line("Stopping the worker, the model server and the engine.")


def _stop_signal() -> asyncio.Future[int]:
    """A future that is set to the number of the first SIGINT, SIGTERM or SIGHUP."""
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def set_signal(signum: int) -> None:
        if not stop.done():
            stop.set_result(signum)

    on_stop_signal(set_signal)
    return stop


@asynccontextmanager
async def _demo_system(environ: Mapping[str, str], directory: Path) -> AsyncGenerator[DemoSystem, None]:
    """Start engine, model server and worker, each on free ports; stop them in reverse order."""
    engine = LocalEngine(endpoint=LOCAL_NAME)
    async with (
        serve_engine(engine) as engine_url,
        watched_workers(engine),
        hello_world(engine_url, environ, directory, TOKENS_PER_S) as processes,
    ):
        yield DemoSystem(engine, engine_url, processes)


async def _show(system: DemoSystem, screen: Screen) -> None:
    """Show the start, two requests, and what the worker reported to the engine."""
    screen.title("PyWorker demo: an engine, a model server and a worker, all on this machine")
    screen.item("engine", f"{system.engine_url}  stands in for the serverless engine")
    screen.item(
        "model server",
        f"{system.processes.model_url}  generates {TOKENS_PER_S} tokens/s with a Markov chain",
    )
    screen.item("worker", f"{system.processes.worker_url}  checks, queues, forwards, streams and reports")
    async with aiohttp.ClientSession() as http:
        await _await_ready(system, screen, http)
        client = RouteClient(http, Target(system.engine_url, LOCAL_NAME, "demo"))
        try:
            with anyio.fail_after(REQUEST_LIMIT_S):
                whole = await _ask(system, screen, client)
                streamed = await _stream(system, screen, client)
        except TimeoutError as e:
            raise ChildFailed(f"no answer within {REQUEST_LIMIT_S:g} s", system.worker) from e
        except (EngineError, NoWorker, aiohttp.ClientError) as e:
            raise ChildFailed(f"a request failed: {e}", system.worker) from e
    await _show_reports(system, screen, {whole, streamed})


async def _await_ready(system: DemoSystem, screen: Screen, http: aiohttp.ClientSession) -> None:
    """Wait until the engine knows that the worker is ready; print a line for each state before that."""
    shown = 0
    ready = False
    with anyio.move_on_after(READY_LIMIT_S):
        while not ready:
            ready = system.record.state == "ready"
            last = system.record.last
            if last is not None and last.error_msg:
                raise ChildFailed(f"the worker reports an error: {last.error_msg}", system.worker)
            for state, reason in (await _states(system, http))[shown:]:
                screen.item("", f"{state} ({reason})")
                shown += 1
            await anyio.sleep(0 if ready else POLL_S)
    last = system.record.last
    if not ready or last is None:
        raise ChildFailed(f"the worker was not ready within {READY_LIMIT_S:g} s", system.worker)
    screen.item("", f"reported ready {last.loadtime:.1f} s after its start: {last.max_perf:.0f} tokens/s")


async def _states(system: DemoSystem, http: aiohttp.ClientSession) -> list[tuple[str, str]]:
    """The states in the worker's `/status`, each with its reason; empty before the worker listens."""
    try:
        async with http.get(f"{system.processes.loopback_url}/status", timeout=_STATUS_TIMEOUT) as answer:
            status: dict[str, Any] = await answer.json()
    except aiohttp.ClientError:
        return []
    return [(change["state"], change["reason"]) for change in status["timeline"]]


async def _ask(system: DemoSystem, screen: Screen, client: RouteClient) -> int:
    """Send a request, print its complete answer, and return its `request_idx`."""
    worker = await _route(screen, client, "/generate", WHOLE_TOKENS)
    async with client.call(worker, "/generate", _payload(WHOLE_TOKENS)) as response:
        body = await response.read()
        if response.status != 200:
            _fail_on_status(system, response, body)
    screen.begin(PROMPT)
    for token in _field(system, body, "response").split(" "):
        screen.token(" " + token if token else "")
    screen.end()
    return worker.request_idx


async def _stream(system: DemoSystem, screen: Screen, client: RouteClient) -> int:
    """Send a request, print its answer as it streams, and return its `request_idx`."""
    worker = await _route(screen, client, "/generate_stream", STREAMED_TOKENS)
    async with client.call(worker, "/generate_stream", _payload(STREAMED_TOKENS)) as response:
        if response.status != 200:
            _fail_on_status(system, response, await response.read())
        screen.begin(PROMPT)
        async for line in response.content:
            screen.token(_field(system, line, "token"))
        screen.end()
    return worker.request_idx


async def _route(screen: Screen, client: RouteClient, path: str, tokens: int) -> RouteAnswer:
    worker = await client.route(tokens, limit_s=REQUEST_LIMIT_S)
    kind = "streamed" if path.endswith("stream") else "complete"
    screen.title(f"Request {worker.request_idx}: POST {path}, {tokens} tokens, {kind} answer")
    return worker


def _payload(tokens: int) -> Mapping[str, Any]:
    return {"prompt": PROMPT, "max_response_tokens": tokens}


def _field(system: DemoSystem, body: bytes, name: str) -> str:
    try:
        return str(json.loads(body)[name])
    except (ValueError, KeyError, TypeError) as e:
        raise ChildFailed(f"the answer has no {name!r}: {body[:200]!r}", system.worker) from e


def _fail_on_status(system: DemoSystem, response: aiohttp.ClientResponse, body: bytes) -> NoReturn:
    text = body[:200].decode(errors="replace")
    raise ChildFailed(f"{response.url.path} was answered with {response.status}: {text}", system.worker)


async def _show_reports(system: DemoSystem, screen: Screen, request_idxs: set[int]) -> None:
    """Print the worker's reports once these requests are reported and nothing is in flight."""
    try:
        await system.engine.wait_for(lambda: _all_reported(system, request_idxs), REQUEST_LIMIT_S)
    except TimeoutError as e:
        raise ChildFailed("the worker did not report every request to the engine", system.worker) from e
    last, totals = system.record.last, system.record.totals
    assert last is not None
    screen.title(f"What the worker reported to the engine, in {totals.reports} reports (loads in tokens)")
    screen.item("requests", f"{last.num_requests_received} received, {last.num_requests_working} in flight")
    screen.item("new_load", f"{totals.new_load:g} accepted")
    screen.item("cur_load", f"{last.cur_load:g} in flight")
    screen.item("cur_perf", f"{totals.cur_perf:g} served")
    screen.item("max_perf", f"{last.max_perf:.0f} per second, measured by the benchmark")
    for finished in (received.request for received in system.engine.finished):
        worked_s = finished.work_completed_at - finished.work_started_at
        screen.item(f"request {finished.request_idx}", f"{finished.status} after {worked_s:.2f} s of work")


def _all_reported(system: DemoSystem, request_idxs: set[int]) -> bool:
    last = system.record.last
    finished = {received.request.request_idx for received in system.engine.finished}
    served = system.record.totals.cur_perf >= WHOLE_TOKENS + STREAMED_TOKENS
    return last is not None and last.num_requests_working == 0 and served and request_idxs <= finished


def _show_what_next(system: DemoSystem, screen: Screen) -> None:
    python = shlex.quote(sys.executable)
    screen.title(f"The demo keeps running. Watch it in a browser: {system.engine_url}/")
    screen.line(f"Send one request from a browser, at {system.engine_url}/docs")
    screen.line("or one, or a hundred, from another terminal:")
    screen.line()
    screen.command(f'{python} -m {CLIENT_MODULE} --engine {system.engine_url} "Alice was"')
    screen.command(f"{python} -m {LOAD_TEST_MODULE} --engine {system.engine_url} -n 100 -rps 2")
    screen.line()
    screen.line("The worker's status, and the logs:")
    screen.line()
    screen.command(f"curl {system.processes.loopback_url}/status")
    screen.command(
        f"tail -f {shlex.quote(str(system.worker.log))} {shlex.quote(str(system.processes.model.log))}"
    )
    screen.line()
    screen.line("Ctrl-C ends it.")
