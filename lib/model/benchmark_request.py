"""One request of the benchmark: its payload, the call of the model by the handler, and reading the answer.

Owns what counts as success and as progress. When requests are sent is decided in benchmark.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import anyio
from aiohttp import web

from lib.errors import AnswerCut, WorkerError, async_result_or_error, describe_error, result_or_error
from lib.model.benchmark import Attempt, BenchmarkFailed, FlowRequest
from lib.model.caller import ModelCaller, run_to_end
from lib.model.connection import ModelServer
from lib.model.flow import send_alone
from lib.model.relay import body_read_before, broken_answer, is_stream_type, is_streamed
from lib.request.own_requests import IS_COUNTED
from lib.runtime.clock import Clock, time_limit
from lib.runtime.excerpt import without_secret

log = logging.getLogger(__name__)

# The part of the model server's error message that is reported.
MAX_MESSAGE_BYTES = 2000
# Seconds that a handler may take to learn that the benchmark doesn't wait for an answer any more.
LEAVE_LIMIT_S = 5.0


class Benchmarked(Protocol):
    """A handler, as far as the benchmark calls it; `lib.data_types.EndpointHandler` describes each member."""

    @property
    def endpoint(self) -> str | None: ...

    @property
    def benchmark_name(self) -> str: ...

    @property
    def benchmark_method(self) -> str: ...

    @property
    def benchmark_runs(self) -> int: ...

    @property
    def benchmark_concurrency(self) -> int | None: ...

    @property
    def benchmark_warmup(self) -> bool: ...

    def make_benchmark_payload(self) -> Any: ...

    def generate_payload_json(self, payload: Any, /) -> Any: ...

    def call_model(self, model: ModelCaller, payload: Any, /) -> AbstractAsyncContextManager[Any]: ...

    async def on_client_disconnect(self, payload: Any, /) -> None: ...


class _BenchmarkCaller(ModelCaller):
    """Passes on to `job` what the handler notes of its request."""

    def __init__(self, server: ModelServer, method: str, job: FlowRequest, workload: float) -> None:
        super().__init__(server, {}, method=method)
        self.workload = workload
        self._job = job

    def note_progress(self, units: float = 1.0) -> None:
        self._job.note(units)

    def note_workload(self, workload: float) -> None:
        self.workload = workload


@dataclass(frozen=True)
class BenchmarkRequest:
    """Sends the requests of the benchmark of `handler`; `count_workload` counts those of its payloads."""

    handler: Benchmarked
    server: ModelServer
    count_workload: Callable[[Any], float]

    def make_payload(self) -> Any:
        """Make a payload. Raises `BenchmarkFailed` when the handler can't."""
        payload = result_or_error(self.handler.make_benchmark_payload)
        if isinstance(payload, Exception):
            raise BenchmarkFailed(f"make_benchmark_payload raised {payload!r}") from payload
        return payload

    async def send(self, job: FlowRequest) -> Attempt:
        """Send one request and read its answer. Raises `BenchmarkFailed` when its payload can't be made."""
        was_counted = IS_COUNTED.set(True)  # no call of the handler's counts it
        try:
            return await self._send(job)
        finally:
            IS_COUNTED.reset(was_counted)

    async def _send(self, job: FlowRequest) -> Attempt:
        payload = self.make_payload()
        workload = self.count_workload(payload)
        caller = _BenchmarkCaller(self.server, self.handler.benchmark_method, job, workload)
        try:
            result = await async_result_or_error(self._call(caller, payload, job))
        except anyio.get_cancelled_exc_class():
            await self._leave(payload)
            raise
        if isinstance(result, (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError)):
            result = broken_answer(result, answer_out=False)
        if isinstance(result, Exception):
            known = isinstance(result, (WorkerError, AnswerCut))
            message = describe_error(result) if known else repr(result)
            return Attempt(False, workload, without_secret(message, self.server.api_key))
        status, text, source = result
        text = without_secret(text, self.server.api_key)  # some servers repeat a key that they refuse
        ok = 200 <= status < 300
        return Attempt(ok, caller.workload, f"{status}: {text}" if ok else f"{source}{status}: {text}")

    async def failure(self, limit_s: float, clock: Clock) -> str | None:
        """Send one request, outside a benchmark; return how it failed within `limit_s` seconds, or None.

        Raises `BenchmarkFailed` when its payload can't be made.
        """
        with time_limit(clock, limit_s):
            attempt = await send_alone(self.send, clock)
            return None if attempt.ok else f"a benchmark request failed: {attempt.message}"
        return f"a benchmark request had no answer within {limit_s:g} s"

    async def _leave(self, payload: Any) -> None:
        """Tell the handler that nobody waits for the answer any more, as when a client has left."""
        with anyio.move_on_after(LEAVE_LIMIT_S, shield=True):
            error = await async_result_or_error(self.handler.on_client_disconnect(payload))
            if isinstance(error, Exception):
                log.warning("benchmark: on_client_disconnect failed", exc_info=error)

    async def _call(self, caller: ModelCaller, payload: Any, job: FlowRequest) -> tuple[int, str, str]:
        """Send `payload` and read the answer to its last byte.

        Returns its status, the beginning of its body, and "POST URL answered " as the beginning of a message,
        or "" if it is not an answer of the model server.
        """
        async with self.handler.call_model(caller, payload) as answer:
            if isinstance(answer, web.StreamResponse):
                return answer.status, await _text(answer, job), ""
            by_server = isinstance(answer, aiohttp.ClientResponse)
            source = f"{answer.method} {answer.url} answered " if by_server else ""
            return answer.status, await _read(answer, job), source


async def _text(answer: web.StreamResponse, job: FlowRequest) -> str:
    """Read `answer`, which the handler has made, and return its beginning. Its chunks are progress."""
    body: Any = answer.body if isinstance(answer, web.Response) else None
    beginning = bytearray(body[:MAX_MESSAGE_BYTES] if isinstance(body, bytes) else b"")

    def note(chunk: bytes) -> None:
        job.note(len(chunk))
        beginning.extend(chunk[: MAX_MESSAGE_BYTES - len(beginning)])

    await run_to_end(body, note)
    return beginning.decode(errors="replace")


async def _read(answer: aiohttp.ClientResponse, job: FlowRequest) -> str:
    """Read `answer` and return its beginning.

    The progress of a stream of lines is their number, that of other streams their bytes.
    """
    beginning = bytearray()
    is_progress = is_streamed(answer) and answer.status < 300
    has_lines = is_progress and is_stream_type(answer.content_type)
    if (body := body_read_before(answer)) is not None:
        return body[:MAX_MESSAGE_BYTES].decode(errors="replace")
    while chunk := await answer.content.readany():
        if is_progress and (units := chunk.count(b"\n") if has_lines else len(chunk)):
            job.note(units)
        if len(beginning) < MAX_MESSAGE_BYTES:
            beginning += chunk[:MAX_MESSAGE_BYTES]
    return bytes(beginning[:MAX_MESSAGE_BYTES]).decode(errors="replace")
