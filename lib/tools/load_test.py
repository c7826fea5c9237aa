"""A load test: requests that leave on time, or so many at once.

Owns when each request leaves and how it is timed. How a worker is found and called is in route_client.py,
what is counted in load_tally.py, the command line in load_command.py.

At a rate, the loop is open: one that waits for answers slows down with the server it measures, and hides
what it should show. For the same reason every time counts from when a request was due, not from when this
process got round to it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, cast

import aiohttp
import anyio

from lib.client import EngineError, NoWorker, RouteClient, Target
from lib.request.lanes import WorkloadCounter
from lib.runtime.clock import Clock, SystemClock, sleep, time_limit
from lib.tools.load_tally import Sample, Tally

# A request that isn't done after so many seconds is counted as timed out.
DEFAULT_TIMEOUT_S = 600.0
# So much of an answer is kept, in bytes.
MAX_EXCERPT_BYTES = 200


@dataclass(frozen=True)
class Plan:
    """Requests on the worker's route `path`, each given `timeout_s` seconds.

    They leave at `rps` a second, or, with `concurrency`, so that so many are in flight; as many as `count`
    and for as long as `duration_s` allow, whichever ends first. None is no limit. Raises `ValueError` for a
    plan that never ends, and unless just one of rate and concurrency is given.
    """

    target: Target
    path: str
    count: int | None
    rps: float | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    _: KW_ONLY
    concurrency: int | None = None
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if (self.rps is None) == (self.concurrency is None):
            raise ValueError("either rps or concurrency is needed")
        if self.count is None and self.duration_s is None:
            raise ValueError("count or duration_s is needed")


class LoadTest:
    """Runs a plan with payloads from `make_payload`.

    While it runs, `sent` counts the requests that have left, `tally` has those that ended, and `states` are
    the workers' states as the engine last told them, as long as nobody is ready; else None. `on_sample` is
    called after each request.
    """

    def __init__(
        self,
        plan: Plan,
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
        return self.sent - self.tally.ended

    @property
    def elapsed_s(self) -> float:
        """Seconds from the start to the end, or until now."""
        if self._started_s is None:
            return 0.0
        until_s = self.clock.monotonic() if self._stopped_s is None else self._stopped_s
        return until_s - self._started_s

    async def run(self) -> None:
        """Return when every request has ended."""
        # No pool's limit may hold back a request, and no cookie may tie it to a worker.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
            client = RouteClient(http, self.plan.target, clock=self.clock)
            self._started_s = self.clock.monotonic()
            try:
                if self.plan.rps is not None:
                    await self._at_rate(client, self.plan.rps)
                elif self.plan.concurrency is not None:
                    await self._so_many_at_once(client, self.plan.concurrency)
            finally:
                self._stopped_s = self.clock.monotonic()

    async def _at_rate(self, client: RouteClient, rps: float) -> None:
        async with anyio.create_task_group() as requests:
            for number in itertools.count():
                due_s = number / rps
                if not self._goes_on(due_s):
                    break
                await sleep(self.clock, max(0.0, due_s - self.elapsed_s))
                self.sent += 1
                requests.start_soon(self._request, client, due_s)

    async def _so_many_at_once(self, client: RouteClient, concurrency: int) -> None:
        async with anyio.create_task_group() as lanes:
            for _ in range(min(concurrency, self.plan.count or concurrency)):
                lanes.start_soon(self._one_after_another, client)

    async def _one_after_another(self, client: RouteClient) -> None:
        while self._goes_on(now_s := self.elapsed_s):
            self.sent += 1
            await self._request(client, now_s)

    def _goes_on(self, now_s: float) -> bool:
        """Whether the plan has another request, at this time."""
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
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:  # no OSError in Python 3.10
                sample.result, sample.excerpt = _where(sample) + _kind(e), str(e)
        if limit.cancelled_caught:
            sample.result = _where(sample) + "timed out"
        sample.ended_s = self.elapsed_s - due_s
        self.tally.add(sample)
        if self._on_sample:
            self._on_sample(sample)

    async def _exchange(self, client: RouteClient, payload: Any, sample: Sample) -> None:
        worker = await client.route(sample.workload, limit_s=self.plan.timeout_s, on_wait=self._note_states)
        self.states = None
        sample.worker = worker.url
        sample.routed_s = self.elapsed_s - sample.due_s
        async with client.call(worker, self.plan.path, client_json(payload)) as response:
            head = await self._read(response, sample)
            if not 200 <= response.status < 300:
                sample.result = f"HTTP {response.status}"
        sample.excerpt = head.decode(errors="replace")

    async def _read(self, response: aiohttp.ClientResponse, sample: Sample) -> bytes:
        """The answer's beginning; its chunks are timed when their first byte is here."""
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
            if len(head) < MAX_EXCERPT_BYTES:
                head += data[: MAX_EXCERPT_BYTES - len(head)]
        return head

    def _note_states(self, states: Any) -> None:
        self.states = states


def _where(sample: Sample) -> str:
    return "" if sample.worker else "engine: "


def _kind(error: Exception) -> str:
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
    """What makes a request's payload: a class's `for_test`, each time anew, or the one instance given."""
    if isinstance(payload, type):
        return cast(Any, payload).for_test
    return lambda: payload


def client_json(payload: Any) -> Mapping[str, Any]:
    """The JSON that a client sends: what the class's `from_json_msg` reads, by default its fields.

    It is not `generate_payload_json`, unless there is nothing else: that is what the model server gets.
    """
    if isinstance(payload, Mapping):
        return cast("Mapping[str, Any]", payload)
    if dataclasses.is_dataclass(payload):
        # Fields that clients don't set (`init=False`) are the worker's own.
        own = {field.name for field in dataclasses.fields(payload) if not field.init}
        everything = dataclasses.asdict(cast(Any, payload))
        return {name: value for name, value in everything.items() if name not in own}
    return payload.generate_payload_json()
