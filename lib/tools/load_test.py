"""A load test: requests at a fixed rate, or at a fixed concurrency.

Owns when each request is sent and how it is timed. How a worker is found and called is in lib/client.py, the
figures are in lib/tools/load_tally.py, the command line is in lib/tools/load_command.py.

At a rate, the load is an open loop: requests are sent on time, however slow the answers are. A loop that
waited for answers would slow down with the server that it measures. For the same reason times count from when
a request was due, not from when it was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import aiohttp
import anyio

from lib.client import EngineError, NoWorker, RouteClient, Target
from lib.fields.client_json import client_json
from lib.metrics import WorkloadCounter
from lib.runtime.clock import Clock, SystemClock, sleep, time_limit
from lib.tools.late_error import LateErrorWatch
from lib.tools.load_tally import Sample, Tally
from lib.tools.request_style import PLAIN, RequestStyle

# A request without a complete answer after this time, in seconds, is counted as timed out.
DEFAULT_TIMEOUT_S = 600.0
# How much of an answer is stored, in bytes.
MAX_EXCERPT_BYTES = 200


@dataclass(frozen=True)
class LoadPlan:
    """The load on the route `path` of the target's workers.

    Requests are sent at `rps` per second, or so that `concurrency` of them are in flight. Sending stops after
    `count` requests or `duration_s` seconds, whichever comes first; None is no limit. A request times out
    after `timeout_s` seconds. `style` is how each request is sent. `waits_for_join` is whether requests wait
    for a worker to join an endpoint that has none.

    Raises `ValueError` unless exactly one of `rps` and `concurrency` is given, and at least one of `count`
    and `duration_s`.
    """

    target: Target
    path: str
    count: int | None
    rps: float | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    _: KW_ONLY
    concurrency: int | None = None
    duration_s: float | None = None
    style: RequestStyle = PLAIN
    waits_for_join: bool = False

    def __post_init__(self) -> None:
        if (self.rps is None) == (self.concurrency is None):
            raise ValueError("exactly one of rps and concurrency is needed")
        if self.count is None and self.duration_s is None:
            raise ValueError("count or duration_s is needed")


class LoadTest:
    """Runs a plan with payloads from `make_payload`.

    `sent` is the number of requests sent, `tally` has the figures of those that ended. `states` are the
    workers' states as the engine last reported them while no worker is ready, else None. `on_sample` is
    called after each request.
    """

    def __init__(
        self,
        plan: LoadPlan,
        make_payload: Callable[[], Any],
        *,
        clock: Clock | None = None,
        on_sample: Callable[[Sample], object] | None = None,
    ) -> None:
        self.plan = plan
        self.clock = clock or SystemClock()
        self.tally = Tally()
        self.sent = 0
        self.states: Any = None
        self._make_payload = make_payload
        self._workload = WorkloadCounter("load test")
        self._on_sample = on_sample
        self._started_s: float | None = None
        self._stopped_s: float | None = None

    @property
    def in_flight(self) -> int:
        """The number of requests that were sent and have not ended."""
        return self.sent - self.tally.ended

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start until the end, or until now; 0.0 before the start."""
        if self._started_s is None:
            return 0.0
        until_s = self.clock.monotonic() if self._stopped_s is None else self._stopped_s
        return until_s - self._started_s

    async def run(self) -> None:
        """Run the plan; return when every request has ended."""
        # A pool's limit would delay requests, and a cookie could tie them to a worker.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
            client = RouteClient(http, self.plan.target, clock=self.clock)
            self._started_s = self.clock.monotonic()
            try:
                if self.plan.rps is not None:
                    await self._at_rate(client, self.plan.rps)
                elif self.plan.concurrency is not None:
                    await self._at_concurrency(client, self.plan.concurrency)
            finally:
                self._stopped_s = self.clock.monotonic()

    async def _at_rate(self, client: RouteClient, rps: float) -> None:
        async with anyio.create_task_group() as requests:
            for number in itertools.count():
                due_s = number / rps
                if not self._has_next(due_s):
                    break
                await sleep(self.clock, max(0.0, due_s - self.elapsed_s))
                self.sent += 1
                requests.start_soon(self._request, client, due_s)

    async def _at_concurrency(self, client: RouteClient, concurrency: int) -> None:
        async with anyio.create_task_group() as lanes:
            for _ in range(min(concurrency, self.plan.count or concurrency)):
                lanes.start_soon(self._lane, client)

    async def _lane(self, client: RouteClient) -> None:
        while self._has_next(now_s := self.elapsed_s):
            self.sent += 1
            await self._request(client, now_s)

    def _has_next(self, now_s: float) -> bool:
        """Whether the plan has another request `now_s` seconds after the start."""
        count, duration_s = self.plan.count, self.plan.duration_s
        return (count is None or self.sent < count) and (duration_s is None or now_s < duration_s)

    async def _request(self, client: RouteClient, due_s: float) -> None:
        payload = self._make_payload()
        sample = Sample(due_s, self.elapsed_s - due_s, self._workload.count(payload))
        with time_limit(self.clock, self.plan.timeout_s) as limit:
            try:
                await self._exchange(client, payload, sample)
            except NoWorker as e:
                sample.result, sample.excerpt = "no worker", str(e)
            except EngineError as e:
                sample.result, sample.excerpt = f"engine HTTP {e.status}", str(e)
            # asyncio.TimeoutError is not an OSError before Python 3.11.
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
                sample.result, sample.excerpt = _where(sample) + _kind(e), str(e)
        if limit.cancelled_caught:
            sample.result = _where(sample) + "timed out"
        sample.ended_s = self.elapsed_s - due_s
        self.tally.add(sample)
        if self._on_sample:
            self._on_sample(sample)

    async def _exchange(self, client: RouteClient, payload: Any, sample: Sample) -> None:
        worker = await client.route(sample.workload, limit_s=self.plan.timeout_s, on_wait=self._set_states)
        self.states = None
        sample.worker = worker.url
        sample.routed_s = self.elapsed_s - sample.due_s
        message = client_json(payload)
        async with self.plan.style.call(client, worker, self.plan.path, message) as response:
            late = LateErrorWatch()
            head = await self._read(response, sample, late)
            if not 200 <= response.status < 300:
                sample.result = f"HTTP {response.status}"
            elif (late_error := late.error()) is not None:
                sample.result = "error after heartbeat"
                head = json.dumps({"error": late_error}).encode()[:MAX_EXCERPT_BYTES]
        sample.excerpt = head.decode(errors="replace")

    async def _read(self, response: aiohttp.ClientResponse, sample: Sample, late: LateErrorWatch) -> bytes:
        """Read the answer and return its beginning; a chunk is timed when its first byte arrives."""
        streamed = response.content_length is None
        chunked = "Transfer-Encoding" in response.headers
        head = b""
        last_s: float | None = None
        begins = True
        async for data, ends in response.content.iter_chunks():
            if data and begins:
                now_s = self.elapsed_s - sample.due_s
                if last_s is None:
                    sample.first_byte_s = now_s
                elif streamed:
                    sample.gaps_s.append(now_s - last_s)
                last_s = now_s
            begins = ends or not chunked
            late.add(data)
            if len(head) < MAX_EXCERPT_BYTES:
                head += data[: MAX_EXCERPT_BYTES - len(head)]
        return head

    def _set_states(self, states: Any) -> None:
        self.states = states


def _where(sample: Sample) -> str:
    """The prefix of a failure's kind: "engine: " if no worker had been called yet."""
    return "" if sample.worker else "engine: "


def _kind(error: Exception) -> str:
    """The kind of a failure (docs/load-test.md, "Summary as JSON")."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # two classes before Python 3.11
        return "timed out"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "answer cut short"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot connect"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed without an answer"
    return type(error).__name__


def payload_maker(payload: Any) -> Callable[[], Any]:
    """Return a function that makes the payload of each request.

    Of a class it is `for_test`; any other `payload` is sent with every request.
    """
    if isinstance(payload, type):
        return cast(Any, payload).for_test
    return lambda: payload
