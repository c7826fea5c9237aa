"""A scenario of some minutes in virtual time: the totals of engine, workers and clients agree at its end.

Three workers of different speed serve a load that rises and falls. One worker hangs and recovers, the engine
is restarted without its memory, one worker dies. Everything runs in this process, over real sockets.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp
import anyio
import pytest
from Crypto.PublicKey import RSA

from lib.backend import Backend
from lib.client import LOCAL_NAME, RouteClient, Target
from lib.life.stop import Stop
from lib.local.engine import LocalEngine
from lib.local.faults import Fault
from lib.local.serving import serve_engine
from lib.metrics import Outcome
from lib.runtime.clock import Clock, sleep
from lib.runtime.settings import Settings
from lib.server import serve
from tests.fakes.model_server import MaliciousModel, Received
from tests.fakes.worker import Setup, build
from tests.keys import new_key
from tests.system import MASTER_TOKEN, PortLease, engine_key
from tests.virtual_time import in_virtual_time

# Workload/s, by the worker's id.
SPEEDS = {1: 100.0, 2: 200.0, 3: 400.0}
DIES, HANGS = 1, 2
COSTS = (300, 700)
MAX_QUEUE_TIME_S = 15.0
MODEL_TIMEOUT_S = 20.0
SLOW_ENGINE_S = 0.3
# How long a client looks for a worker, and its pause between tries.
PATIENCE_S = 120.0
RETRY_S = 1.0

# The scenario, in seconds since the first request: the load at each of these times, as a fraction of the
# capacity of all three workers.
LOAD = ((0.0, 0.5), (40.0, 1.0), (120.0, 1.0), (160.0, 0.8), (320.0, 0.8), (360.0, 0.3))
HANG_S = (115.0, 190.0)
RESTART_S, AWAY_S = 150.0, 5.0
DEATH_S = 210.0
# When shares are compared: while all workers are healthy, and once the engine has noticed death and recovery.
# Shares are proportional to throughput only while no worker is idle; idle ones get equal shares.
ALL_WELL_S = (20.0, 110.0)
TWO_LEFT_S = (250.0, 320.0)
SHARE_TOLERANCE = 0.06
# After this time every worker has reported everything.
SETTLED_S = 10.0
# Time limit of the scenario, in virtual seconds.
GUARD_S = 1000.0


@dataclass(kw_only=True)
class TimedModel(MaliciousModel):
    """A model server that does `speed` workload/s on a single request."""

    clock: Clock
    speed: float

    def hang(self) -> None:
        """Answer nothing, health checks included."""
        self.health_stalls = True
        self.hold()

    def wake(self) -> None:
        self.health_stalls = False
        self.release()

    async def _do_echo(self, request: Received, writer: asyncio.StreamWriter) -> bool:
        await sleep(self.clock, request.json()["workload"] / self.speed)
        await self._released.wait()
        return await super()._do_echo(request, writer)


@dataclass(frozen=True)
class WorkloadSums:
    """Sums of workload: accepted and not withdrawn, refused, served."""

    new_load: float
    rej_load: float
    cur_perf: float


@dataclass
class SimulatedInstance:
    """An instance: a worker in front of a model server, with one request at a time."""

    id: int
    url: str
    model: TimedModel
    backend: Backend
    stop: Stop = field(default_factory=Stop)
    running_scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)
    exit_status: int | None = None

    @property
    def acknowledged(self) -> WorkloadSums:
        """The sums that the engine has acknowledged to the worker."""
        snapshot = self.backend.metrics.snapshot()
        new_load, rej_load, cur_perf = snapshot.marks
        return WorkloadSums(
            new_load - snapshot.new_load, rej_load - snapshot.rej_load, cur_perf - snapshot.cur_perf
        )

    @property
    def recorded(self) -> WorkloadSums:
        """The sums in the worker's ledger, acknowledged or not."""
        ledger = self.backend.metrics
        return WorkloadSums(
            ledger.accepted_load - ledger.withdrawn_load, ledger.rejected_load, ledger.served_load
        )

    @property
    def unacknowledged(self) -> tuple[int, ...]:
        """The finished requests that the engine has not acknowledged."""
        return tuple(finished.request_idx for finished in self.backend.metrics.finished()[0])

    async def die(self) -> None:
        """End the worker without a drain, a last report, or another answer of its model server.

        Its ports are closed immediately, its connections soon after, when `serve` returns.
        """
        self.model.hang()
        self.running_scope.cancel()
        await self.gone.wait()
        await self.model.stop()


@asynccontextmanager
async def with_instance(
    worker_id: int, engine_url: str, clock: Clock, directory: Path
) -> AsyncGenerator[SimulatedInstance, None]:
    """Run an instance; a worker that is still alive at the end is stopped in order."""
    leases = (PortLease(), PortLease())
    settings = Settings(
        container_id=worker_id,
        public_url=f"http://127.0.0.1:{leases[0].port}",
        report_addrs=(engine_url,),
        worker_port=leases[0].port,
        worker_http_port=leases[1].port,
        master_token=MASTER_TOKEN,
        model_timeout_s=MODEL_TIMEOUT_S,
    )
    model = TimedModel(clock=clock, speed=SPEEDS[worker_id])
    model.wake()
    await model.start()
    setup = Setup(
        health="/health",
        handler={"max_queue_time": MAX_QUEUE_TIME_S},
        backend={"allow_parallel_requests": False, "max_perf": model.speed, "clock": clock},
    )
    backend, routes = build(model.url, setup)
    instance = SimulatedInstance(worker_id, settings.public_url, model, backend)

    async def run() -> None:
        with instance.running_scope:
            instance.exit_status = await serve(
                backend, routes, settings, instance.stop, directory=directory, host="127.0.0.1"
            )
        instance.gone.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield instance
            instance.stop.ask()
    finally:
        await model.stop()
        for lease in leases:
            lease.close()


class EngineHost:
    """Runs engines at one address, one after another; `engines` has the oldest first."""

    def __init__(self, clock: Clock, keys: Iterable[RSA.RsaKey]) -> None:
        self.engines: list[LocalEngine] = []
        self.lease = PortLease()
        self.url = f"http://127.0.0.1:{self.lease.port}"
        self._clock = clock
        self._keys = iter(keys)
        self._serving = AsyncExitStack()

    @property
    def engine(self) -> LocalEngine:
        return self.engines[-1]

    async def start(self) -> None:
        """Start an engine without its predecessor's memory and with a key of its own."""
        first_reqnum = int(self._clock.wall() * 1000)  # as `run_engine` does
        self.engines.append(LocalEngine(clock=self._clock, key=next(self._keys), first_reqnum=first_reqnum))
        await self._serving.enter_async_context(serve_engine(self.engine, port=self.lease.port))

    async def stop(self) -> None:
        await self._serving.aclose()

    def reported_by(self, worker_id: int) -> WorkloadSums:
        """The sums of this worker's reports to all engines."""
        totals = [engine.worker(worker_id).totals for engine in self.engines]
        return WorkloadSums(
            sum(t.new_load for t in totals), sum(t.rej_load for t in totals), sum(t.cur_perf for t in totals)
        )

    def outcomes_of(self, worker_id: int) -> Counter[str]:
        """The number of this worker's requests with each outcome, as reported to all engines."""
        finished = (f for engine in self.engines for f in engine.finished)
        return Counter(f.request.status for f in finished if f.worker_id == worker_id)


@dataclass
class Request:
    """A client's request and its history; `came_s` is in seconds since the first one.

    `url` is the worker it was sent to, "" while the engine routes it; `cut` has the URLs of failed tries.
    """

    came_s: float
    cost: float
    request_idx: int = 0
    url: str = ""
    status: int | None = None
    error: str = ""
    cut: list[str] = field(default_factory=list[str])


class Clients:
    """Sends requests to the workers chosen by the engine; retries until there is an answer."""

    def __init__(self, http: aiohttp.ClientSession, engine_url: str, clock: Clock) -> None:
        target = Target(engine_url, LOCAL_NAME, LOCAL_NAME)
        self._route = RouteClient(http, target, poll_s=RETRY_S, clock=clock)
        self._clock = clock
        self._changed = asyncio.Condition()
        self.requests: list[Request] = []

    async def send(self, request: Request) -> None:
        self.requests.append(request)
        while request.status is None:
            try:
                await self._try(request)
            except aiohttp.ClientError:
                request.cut.append(request.url)
                await sleep(self._clock, RETRY_S)
        async with self._changed:
            self._changed.notify_all()

    async def one_more_answer(self, worker: SimulatedInstance) -> None:
        """Return once `worker` has answered one more request."""
        before = len(self.answered(worker, 200))
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.answered(worker, 200)) > before)

    def answered(self, worker: SimulatedInstance, status: int) -> list[Request]:
        """The requests that `worker` answered with `status`."""
        return [r for r in self.requests if r.url == worker.url and r.status == status]

    async def _try(self, request: Request) -> None:
        request.url = ""
        worker = await self._route.route(request.cost, request_idx=request.request_idx, limit_s=PATIENCE_S)
        request.request_idx, request.url = worker.request_idx, worker.url
        async with self._route.call(worker, "/echo", {"workload": request.cost}) as answer:
            request.error = (await answer.json()).get("error", "")
            request.status = answer.status


def arrivals() -> Generator[tuple[float, float], None, None]:
    """The time of each request, in seconds since the first one, and its cost, following `LOAD`."""
    dice, now_s = random.Random(6), 0.0
    per_s = sum(SPEEDS.values()) / (sum(COSTS) / 2)
    for (start_s, before), (end_s, after) in pairwise(LOAD):
        while now_s < end_s:
            yield now_s, float(dice.randint(*COSTS))
            now_s += 1 / per_s / (before + (after - before) * (now_s - start_s) / (end_s - start_s))


@dataclass
class Cluster:
    """The engine, the instances and the clients, with what was recorded during the scenario."""

    clock: Clock
    host: EngineHost
    instances: dict[int, SimulatedInstance]
    clients: Clients
    open_at_restart: int = 0
    dead_acknowledged: WorkloadSums | None = None
    dead_unacknowledged: tuple[int, ...] = ()

    @property
    def living(self) -> Sequence[SimulatedInstance]:
        return [m for m in self.instances.values() if m.id != DIES]


class Scenario:
    """Runs the scenario: each of its tasks waits for its time."""

    def __init__(self, endpoint: Cluster) -> None:
        self._endpoint = endpoint
        self._began_s = endpoint.clock.monotonic()

    async def run(self) -> None:
        async with anyio.create_task_group() as threads:
            for thread in (self._load, self._hang, self._restart, self._death):
                threads.start_soon(thread)

    async def _at(self, time_s: float) -> None:
        clock = self._endpoint.clock
        await sleep(clock, self._began_s + time_s - clock.monotonic())

    async def _load(self) -> None:
        async with anyio.create_task_group() as requests:
            for time_s, cost in arrivals():
                await self._at(time_s)
                requests.start_soon(self._endpoint.clients.send, Request(time_s, cost))

    async def _hang(self) -> None:
        model = self._endpoint.instances[HANGS].model
        await self._at(HANG_S[0])
        model.hang()
        await self._at(HANG_S[1])
        model.wake()

    async def _restart(self) -> None:
        host = self._endpoint.host
        await self._at(RESTART_S)
        self._endpoint.open_at_restart = len(host.engine.open_requests)
        await host.stop()
        await sleep(self._endpoint.clock, AWAY_S)
        await host.start()

    async def _death(self) -> None:
        """Kill the worker between an answer and the message that reports its request as finished.

        This is a moment after the answer, so that no report is in flight that the engine has and the worker
        doesn't know of.
        """
        endpoint, dying = self._endpoint, self._endpoint.instances[DIES]
        await self._at(DEATH_S)
        while not endpoint.dead_unacknowledged:
            await endpoint.clients.one_more_answer(dying)
            await sleep(endpoint.clock, 0.05)
            endpoint.dead_acknowledged, endpoint.dead_unacknowledged = (
                dying.acknowledged,
                dying.unacknowledged,
            )
        await dying.die()


async def run_scenario(clock: Clock, directory: Path) -> Cluster:
    """Run the scenario and stop the living workers in order; return the endpoint."""
    host = EngineHost(clock, (engine_key(), new_key()))
    async with AsyncExitStack() as stack:
        stack.callback(host.lease.close)
        stack.push_async_callback(host.stop)
        await host.start()
        # Until its restart the engine is slow, so that more happens at the workers during a report.
        host.engine.faults.reports = Fault(delay_s=SLOW_ENGINE_S)
        # A pooled connection could belong to an engine that is gone.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        instances = {
            worker_id: await stack.enter_async_context(with_instance(worker_id, host.url, clock, directory))
            for worker_id in SPEEDS
        }
        endpoint = Cluster(clock, host, instances, Clients(http, host.url, clock))
        with anyio.fail_after(GUARD_S):
            await host.engine.wait_for(lambda: all(host.engine.worker(n).state == "ready" for n in SPEEDS))
            await Scenario(endpoint).run()
            await sleep(clock, SETTLED_S)
            assert_everything_is_reported(endpoint)
    return endpoint


def cost_of(requests: Iterable[Request]) -> float:
    return sum(request.cost for request in requests)


def assert_every_mishap_happened(endpoint: Cluster) -> None:
    """Check that each failure of the scenario had an effect."""
    host, hung = endpoint.host, endpoint.instances[HANGS]
    cut = {url for request in endpoint.clients.requests for url in request.cut}
    assert cut == {"", endpoint.instances[DIES].url}
    assert endpoint.open_at_restart > 0
    assert len(endpoint.clients.answered(hung, 504)) > 0
    assert len(endpoint.clients.answered(hung, 429)) > 0
    assert any("health check" in report.message.error_msg for report in host.engine.worker(HANGS).reports)
    assert [host.engine.worker(worker_id).state for worker_id in SPEEDS] == ["stopped", "ready", "ready"]


def assert_everything_is_reported(endpoint: Cluster) -> None:
    """Check that the living workers have reported everything, and that no request is open."""
    for worker in endpoint.living:
        last = endpoint.host.engine.worker(worker.id).last
        assert last is not None
        assert (last.cur_load, last.num_requests_working, last.working_request_idxs) == (0.0, 0, ())
        assert worker.acknowledged == worker.recorded
        assert worker.unacknowledged == ()
    assert len(endpoint.host.engine.open_requests) == 0


def assert_every_request_has_its_answer(clients: Clients) -> None:
    refusals = {429: ("no slot came free", "the wait would be"), 504: ("the model server took too long",)}
    for request in clients.requests:
        if request.status != 200:
            assert request.status in refusals, request
            assert request.error.startswith(refusals[request.status]), request


def assert_totals_are_the_same(endpoint: Cluster) -> None:
    """Compare the sums at the engines, at the workers and at the clients.

    For the worker that died, only what the engine had acknowledged can be compared: its last requests were
    not reported, and its clients may have their answers or not. Requests that were cut count where they were
    retried.
    """
    assert endpoint.host.reported_by(DIES) == endpoint.dead_acknowledged
    for worker in endpoint.living:
        assert endpoint.host.reported_by(worker.id) == worker.recorded
        outcomes = worker.backend.metrics.outcomes
        assert endpoint.host.outcomes_of(worker.id) == {o.status: count for o, count in outcomes.items()}
        served, late, refused = (endpoint.clients.answered(worker, status) for status in (200, 504, 429))
        assert worker.recorded == WorkloadSums(cost_of(served + late), cost_of(refused), cost_of(served))
        assert outcomes == Counter(
            {Outcome.SERVED: len(served), Outcome.ERRORED: len(late), Outcome.REJECTED: len(refused)}
        )


def assert_shares_are_the_throughputs(endpoint: Cluster, span_s: tuple[float, float], ids: set[int]) -> None:
    """Check that the requests of this time were shared among these workers in proportion to their speed."""
    ids_by_url = {worker.url: worker.id for worker in endpoint.instances.values()}
    came = [r for r in endpoint.clients.requests if span_s[0] <= r.came_s < span_s[1]]
    shares = {
        worker_id: count / len(came) for worker_id, count in Counter(ids_by_url[r.url] for r in came).items()
    }
    all_speeds = sum(SPEEDS[worker_id] for worker_id in ids)
    expected = {worker_id: SPEEDS[worker_id] / all_speeds for worker_id in ids}
    assert shares == pytest.approx(expected, abs=SHARE_TOLERANCE)


def test_totals_and_shares_agree_after_failures_and_restarts(tmp_path: Path) -> None:
    endpoint = in_virtual_time(lambda clock: run_scenario(clock, tmp_path))
    assert_every_mishap_happened(endpoint)
    assert_every_request_has_its_answer(endpoint.clients)
    assert_totals_are_the_same(endpoint)
    assert_shares_are_the_throughputs(endpoint, ALL_WELL_S, set(SPEEDS))
    assert_shares_are_the_throughputs(endpoint, TWO_LEFT_S, {worker.id for worker in endpoint.living})
    assert [worker.exit_status for worker in endpoint.living] == [0, 0]
