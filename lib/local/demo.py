"""`pyworker demo`: the whole system on this machine, and one request of each kind through it.

Owns the demo's story. The local engine lives in this process; the model server and the worker are processes
(hello_world.py). How things look is in screen.py.
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
from lib.local.processes import Child, ChildFailed, Interrupted, signals_asked, while_running
from lib.local.screen import Screen
from lib.local.serving import serve_engine

CLIENT_MODULE = "workers.hello_world.client"
LOAD_TEST_MODULE = "workers.hello_world.test_load"

# As fast as a person can just about follow.
TOKENS_PER_S = 250
PROMPT = "The White Rabbit"
WHOLE_TOKENS = 40
STREAMED_TOKENS = 150

READY_LIMIT_S = 60.0
REQUEST_LIMIT_S = 30.0
POLL_S = 0.1
_STATUS_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True)
class Stage:
    """Everything that runs, and where."""

    engine: LocalEngine
    engine_url: str
    system: HelloWorld

    @property
    def worker(self) -> Child:
        return self.system.worker

    @property
    def record(self) -> WorkerRecord:
        """What the engine knows of the worker."""
        return self.engine.worker(WORKER_ID)


def demo(environ: Mapping[str, str], *, once: bool = False, screen: Screen | None = None) -> None:
    """Run the demo until it is interrupted, or only until everything was shown `once`.

    `environ` is what the processes inherit. Raises `ChildFailed`, and `Interrupted` when a signal came
    before everything was shown.
    """
    with tempfile.TemporaryDirectory(prefix="pyworker-demo-") as directory:
        asyncio.run(_demo(environ, once, screen or Screen(), Path(directory)))


async def _demo(environ: Mapping[str, str], once: bool, screen: Screen, directory: Path) -> None:
    stop = _signals()
    async with _stage(environ, directory) as stage:
        await while_running(_show(stage, screen), stage.system.children, stop)
        if once:
            return
        _show_what_next(stage, screen)
        try:
            await while_running(anyio.sleep_forever(), stage.system.children, stop)
        except Interrupted:
            screen.line()
            screen.line("Stopping the worker, the model server and the engine.")


def _signals() -> asyncio.Future[int]:
    """What becomes the number of the first signal that asks for an end."""
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def ask(signum: int) -> None:
        if not stop.done():
            stop.set_result(signum)

    signals_asked(ask)
    return stop


@asynccontextmanager
async def _stage(environ: Mapping[str, str], directory: Path) -> AsyncGenerator[Stage, None]:
    """Engine, model server and worker, each on ports of its own; ended in the opposite order."""
    engine = LocalEngine(endpoint=LOCAL_NAME)
    async with (
        serve_engine(engine) as engine_url,
        hello_world(engine_url, environ, directory, TOKENS_PER_S) as system,
    ):
        yield Stage(engine, engine_url, system)


async def _show(stage: Stage, screen: Screen) -> None:
    """The story, from starting up to what the engine was told."""
    screen.title("PyWorker demo: an engine, a model server and a worker, all on this machine")
    screen.item("engine", f"{stage.engine_url}  stands in for the serverless engine")
    screen.item(
        "model server", f"{stage.system.model_url}  generates {TOKENS_PER_S} tokens/s, by a Markov chain"
    )
    screen.item("worker", f"{stage.system.worker_url}  checks, queues, forwards, streams and reports")
    async with aiohttp.ClientSession() as http:
        await _await_ready(stage, screen, http)
        client = RouteClient(http, Target(stage.engine_url, LOCAL_NAME, "demo"))
        try:
            with anyio.fail_after(REQUEST_LIMIT_S):
                whole = await _ask(stage, screen, client)
                streamed = await _stream(stage, screen, client)
        except TimeoutError as e:
            raise ChildFailed(f"no answer within {REQUEST_LIMIT_S:g} s", stage.worker) from e
        except (EngineError, NoWorker, aiohttp.ClientError) as e:
            raise ChildFailed(f"a request failed: {e}", stage.worker) from e
    await _show_reports(stage, screen, {whole, streamed})


async def _await_ready(stage: Stage, screen: Screen, http: aiohttp.ClientSession) -> None:
    """Return once the engine has been told that the worker is ready; a line for each state on the way."""
    shown = 0
    ready = False
    with anyio.move_on_after(READY_LIMIT_S):
        while not ready:
            ready = stage.record.state == "ready"
            last = stage.record.last
            if last is not None and last.error_msg:
                raise ChildFailed(f"the worker reports an error: {last.error_msg}", stage.worker)
            for state, reason in (await _states(stage, http))[shown:]:
                screen.item("", f"{state} ({reason})")
                shown += 1
            await anyio.sleep(0 if ready else POLL_S)
    last = stage.record.last
    if not ready or last is None:
        raise ChildFailed(f"the worker was not ready within {READY_LIMIT_S:g} s", stage.worker)
    screen.item("", f"the engine knows, {last.loadtime:.1f} s after its start: {last.max_perf:.0f} tokens/s")


async def _states(stage: Stage, http: aiohttp.ClientSession) -> list[tuple[str, str]]:
    """The worker's own account of its states and what led to each; none while it doesn't listen."""
    try:
        async with http.get(f"{stage.system.loopback_url}/status", timeout=_STATUS_TIMEOUT) as answer:
            status: dict[str, Any] = await answer.json()
    except aiohttp.ClientError:
        return []
    return [(change["state"], change["reason"]) for change in status["timeline"]]


async def _ask(stage: Stage, screen: Screen, client: RouteClient) -> int:
    """One request, its answer whole; gives its `request_idx`."""
    worker = await _route(stage, screen, client, "/generate", WHOLE_TOKENS)
    async with client.call(worker, "/generate", _payload(WHOLE_TOKENS)) as response:
        body = await response.read()
        if response.status != 200:
            _refused(stage, response, body)
    screen.begin(PROMPT)
    for token in _field(stage, body, "response").split(" "):
        screen.token(" " + token if token else "")
    screen.end()
    return worker.request_idx


async def _stream(stage: Stage, screen: Screen, client: RouteClient) -> int:
    """One request, its answer printed as it comes; gives its `request_idx`."""
    worker = await _route(stage, screen, client, "/generate_stream", STREAMED_TOKENS)
    async with client.call(worker, "/generate_stream", _payload(STREAMED_TOKENS)) as response:
        if response.status != 200:
            _refused(stage, response, await response.read())
        screen.begin(PROMPT)
        async for line in response.content:
            screen.token(_field(stage, line, "token"))
        screen.end()
    return worker.request_idx


async def _route(stage: Stage, screen: Screen, client: RouteClient, path: str, tokens: int) -> RouteAnswer:
    worker = await client.route(tokens, limit_s=REQUEST_LIMIT_S)
    how = "as it comes" if path.endswith("stream") else "whole"
    screen.title(f"Request {worker.request_idx}: POST {path}, {tokens} tokens, the answer {how}")
    return worker


def _payload(tokens: int) -> Mapping[str, Any]:
    return {"prompt": PROMPT, "max_response_tokens": tokens}


def _field(stage: Stage, body: bytes, name: str) -> str:
    try:
        return str(json.loads(body)[name])
    except (ValueError, KeyError, TypeError) as e:
        raise ChildFailed(f"the answer has no {name!r}: {body[:200]!r}", stage.worker) from e


def _refused(stage: Stage, response: aiohttp.ClientResponse, body: bytes) -> NoReturn:
    text = body[:200].decode(errors="replace")
    raise ChildFailed(f"{response.url.path} was answered with {response.status}: {text}", stage.worker)


async def _show_reports(stage: Stage, screen: Screen, request_idxs: set[int]) -> None:
    """What the engine was told, once it was told of these requests and nothing is in flight."""
    try:
        await stage.engine.wait_for(lambda: _told(stage, request_idxs), REQUEST_LIMIT_S)
    except TimeoutError as e:
        raise ChildFailed("the engine was not told of every request", stage.worker) from e
    last, totals = stage.record.last, stage.record.totals
    assert last is not None
    screen.title(f"What the worker told the engine, in {totals.reports} reports (loads in tokens)")
    screen.item("requests", f"{last.num_requests_received} received, {last.num_requests_working} in flight")
    screen.item("new_load", f"{totals.new_load:g} accepted")
    screen.item("cur_load", f"{last.cur_load:g} in flight")
    screen.item("cur_perf", f"{totals.cur_perf:g} served")
    screen.item("max_perf", f"{last.max_perf:.0f} a second, measured by the benchmark")
    for finished in (received.request for received in stage.engine.finished):
        worked_s = finished.work_completed_at - finished.work_started_at
        screen.item(f"request {finished.request_idx}", f"{finished.status} after {worked_s:.2f} s of work")


def _told(stage: Stage, request_idxs: set[int]) -> bool:
    last = stage.record.last
    finished = {received.request.request_idx for received in stage.engine.finished}
    served = stage.record.totals.cur_perf >= WHOLE_TOKENS + STREAMED_TOKENS
    return last is not None and last.num_requests_working == 0 and served and request_idxs <= finished


def _show_what_next(stage: Stage, screen: Screen) -> None:
    python = shlex.quote(sys.executable)
    screen.title(f"All of it runs on. Watch it in a browser: {stage.engine_url}/")
    screen.line("Send a request from another terminal, or a hundred:")
    screen.line()
    screen.command(f'{python} -m {CLIENT_MODULE} --engine {stage.engine_url} "Alice was"')
    screen.command(f"{python} -m {LOAD_TEST_MODULE} --engine {stage.engine_url} -n 100 -rps 2")
    screen.line()
    screen.line("What the worker says of itself, and the logs:")
    screen.line()
    screen.command(f"curl {stage.system.loopback_url}/status")
    screen.command(f"tail -f {shlex.quote(str(stage.worker.log))} {shlex.quote(str(stage.system.model.log))}")
    screen.line()
    screen.line("Ctrl-C ends it.")
