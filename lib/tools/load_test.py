"""A load test: requests that leave on time, whatever becomes of those before them.

Owns the schedule, the measuring and the summary. How a worker is found and called is in route_client.py.

The loop is open: one that waits for answers slows down with the server it measures, and hides what it
should show. For the same reason every time counts from when a request was due, not from when this process
got round to it.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import anyio

from lib.clock import Clock, SystemClock, sleep
from lib.tools.route_client import EngineError, NoWorker, RouteClient, Target
from lib.workload import WorkloadCounter

# A request that isn't done after so many seconds is counted as timed out.
DEFAULT_TIMEOUT_S = 600.0
# So much of an answer is kept, in bytes, and shown in a summary, in characters.
MAX_EXCERPT_BYTES = 200
MAX_EXCERPT_SHOWN = 100
PERCENTILES = (50, 90, 95, 99)

OK = "ok"


@dataclass(frozen=True)
class Plan:
    """`count` requests on the worker's route `path`, `rps` a second, each given `timeout_s` seconds."""

    target: Target
    path: str
    count: int
    rps: float
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass
class Sample:
    """One request. Times in seconds: `due_s` from the test's start, the others from when it was due.

    `result` is `OK`, or what kind of failure it was. A time is None for what was never reached.
    """

    due_s: float
    left_s: float
    workload: float
    worker: str = ""
    result: str = OK
    excerpt: str = ""
    routed_s: float | None = None
    first_byte_s: float | None = None
    ended_s: float = 0.0


class LoadTest:
    """Runs a plan with payloads from `make_payload`; `samples` grows as requests end.

    `on_sample` is called after each.
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
        self.samples: list[Sample] = []
        self._make_payload = make_payload
        self._workload = WorkloadCounter("load test")
        self._clock = clock or SystemClock()
        self._on_sample = on_sample
        self._started_s = 0.0

    async def run(self) -> None:
        """Return when every request has ended."""
        # No pool's limit may hold back a request, and no cookie may tie it to a worker.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
            client = RouteClient(http, self.plan.target, clock=self._clock)
            self._started_s = self._clock.monotonic()
            async with anyio.create_task_group() as requests:
                for number in range(self.plan.count):
                    due_s = number / self.plan.rps
                    await sleep(self._clock, max(0.0, due_s - self._since_start_s()))
                    requests.start_soon(self._request, client, due_s)

    def _since_start_s(self) -> float:
        return self._clock.monotonic() - self._started_s

    async def _request(self, client: RouteClient, due_s: float) -> None:
        payload = self._make_payload()
        sample = Sample(due_s, self._since_start_s() - due_s, self._workload.count(payload))
        try:
            with anyio.fail_after(self.plan.timeout_s):
                await self._exchange(client, payload, sample)
        except NoWorker as e:
            sample.result, sample.excerpt = "no worker", str(e)
        except EngineError as e:
            sample.result, sample.excerpt = f"engine HTTP {e.status}", str(e)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            sample.result = _where(sample) + "timed out"
        except aiohttp.ClientError as e:
            sample.result, sample.excerpt = _where(sample) + _kind(e), str(e)
        sample.ended_s = self._since_start_s() - due_s
        self.samples.append(sample)
        if self._on_sample:
            self._on_sample(sample)

    async def _exchange(self, client: RouteClient, payload: Any, sample: Sample) -> None:
        worker = await client.route(sample.workload, limit_s=self.plan.timeout_s)
        sample.worker = worker.url
        sample.routed_s = self._since_start_s() - sample.due_s
        head = b""
        async with client.call(worker, self.plan.path, client_json(payload)) as response:
            async for chunk in response.content.iter_any():
                if sample.first_byte_s is None:
                    sample.first_byte_s = self._since_start_s() - sample.due_s
                head += chunk[: MAX_EXCERPT_BYTES - len(head)]
            if not 200 <= response.status < 300:
                sample.result = f"HTTP {response.status}"
        sample.excerpt = head.decode(errors="replace")


def _where(sample: Sample) -> str:
    return "" if sample.worker else "engine: "


def _kind(error: aiohttp.ClientError) -> str:
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
        return dataclasses.asdict(cast(Any, payload))
    return payload.generate_payload_json()


@dataclass(frozen=True)
class Summary:
    """What a load test has shown. Times in seconds, by percentile; of successful requests only, since a
    refusal is quick and would look good. `late` is how long after its time a request left this process.
    """

    planned: int
    ended: int
    results: Mapping[str, int]
    excerpts: Mapping[str, str]
    workers: Mapping[str, int]
    elapsed_s: float
    ok_per_s: float
    workload_per_s: float
    times: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, samples: Sequence[Sample], planned: int) -> Summary:
        """Sums up `samples`, out of `planned` requests."""
        served = [s for s in samples if s.result == OK]
        elapsed_s = max((s.due_s + s.ended_s for s in samples), default=0.0)
        return cls(
            planned=planned,
            ended=len(samples),
            results=Counter(s.result for s in samples),
            # The first of each kind.
            excerpts={s.result: s.excerpt for s in reversed(samples)},
            workers=Counter(s.worker for s in samples if s.worker),
            elapsed_s=elapsed_s,
            ok_per_s=len(served) / elapsed_s if elapsed_s else 0.0,
            workload_per_s=sum(s.workload for s in served) / elapsed_s if elapsed_s else 0.0,
            times={
                "routing": _distribution([s.routed_s for s in served]),
                "first byte": _distribution([s.first_byte_s for s in served]),
                "last byte": _distribution([s.ended_s for s in served]),
                "late": _distribution([s.left_s for s in samples]),
            },
        )

    @property
    def ok(self) -> int:
        return self.results.get(OK, 0)

    def lines(self) -> list[str]:
        """The summary to be read by people."""
        lines = [
            f"{self.ended} of {self.planned} requests in {self.elapsed_s:.2f} s: "
            f"{self.ok_per_s:.2f} ok/s, {self.workload_per_s:.1f} workload/s"
        ]
        for result, count in sorted(self.results.items(), key=lambda item: (item[0] != OK, -item[1])):
            excerpt = " ".join(self.excerpts[result].split())[:MAX_EXCERPT_SHOWN]
            lines.append(f"  {result:<26}{count:>8}  {excerpt}".rstrip())
        columns = [f"p{q}" for q in PERCENTILES] + ["max"]
        lines.append("  seconds since due         " + "".join(f"{c:>10}" for c in columns))
        for name, times in self.times.items():
            if times:
                lines.append(f"  {name:<26}" + "".join(f"{times[c]:>10.3f}" for c in columns))
        lines.append(f"  workers used              {len(self.workers):>8}")
        lines.extend(f"  {url:<26}{count:>8}" for url, count in sorted(self.workers.items()))
        return lines


def _distribution(times: Sequence[float | None]) -> Mapping[str, float]:
    """Percentiles and maximum of what is not None; empty where nothing is."""
    known = sorted(t for t in times if t is not None)
    if not known:
        return {}
    ranks = {f"p{q}": math.ceil(q / 100 * len(known)) - 1 for q in PERCENTILES}
    return {**{name: known[rank] for name, rank in ranks.items()}, "max": known[-1]}


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` `-n` and `-rps`: how many requests (`args.n`), how many a second (`args.rps`)."""
    parser.add_argument("-n", type=_count, default=1, help="requests in all (default 1)")
    parser.add_argument("-rps", type=_rate, default=1.0, help="requests a second (default 1)")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _rate(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a finite number above 0")
    return number


def run_and_print(plan: Plan, payload: Any) -> int:
    """Run the plan and print its summary, also when it is interrupted; gives the exit status.

    `payload` is what `payload_maker` takes. The status is 0 if any request succeeded.
    """
    test = LoadTest(plan, payload_maker(payload), on_sample=lambda _sample: _progress(test))
    try:
        asyncio.run(test.run())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    summary = Summary.of(test.samples, plan.count)
    print("\n".join(summary.lines()))
    return 0 if summary.ok else 1


def _progress(test: LoadTest) -> None:
    """One line that is written over, and only where somebody looks."""
    if sys.stderr.isatty():
        done = len(test.samples)
        end = "\n" if done == test.plan.count else ""
        print(f"\r{done} of {test.plan.count} done", end=end, file=sys.stderr, flush=True)
