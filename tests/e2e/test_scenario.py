"""Some minutes in the life of an endpoint, scripted, in virtual time: what all of it adds up to in the end.

Three workers of different speed; load that rises and falls; one worker hangs and comes back, the engine is
restarted with nothing of its memory, one worker dies. Everything runs in this process, over real sockets.
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
from tests.system import MASTER_TOKEN, PortLease, engine_key
from tests.virtual_time import in_virtual_time

# Workload/s, by the worker's id.
SPEEDS = {1: 100.0, 2: 200.0, 3: 400.0}
DIES, HANGS = 1, 2
COSTS = (300, 700)
MAX_QUEUE_TIME_S = 15.0
MODEL_TIMEOUT_S = 20.0
SLOW_ENGINE_S = 0.3
# How long a client looks for a worker, and its pause before it tries again.
PATIENCE_S = 120.0
RETRY_S = 1.0

# The script, in seconds since the first request: the load at each of these times, as a part of what all three
# workers can do.
LOAD = ((0.0, 0.5), (40.0, 1.0), (120.0, 1.0), (160.0, 0.8), (320.0, 0.8), (360.0, 0.3))
HANG_S = (115.0, 190.0)
RESTART_S, AWAY_S = 150.0, 5.0
DEATH_S = 210.0
# When shares are looked at: while all are well, and once the engine has noticed who died and who came back.
# A worker's share is its throughput's where there is work for all; idle ones get the same number each.
ALL_WELL_S = (20.0, 110.0)
TWO_LEFT_S = (250.0, 320.0)
SHARE_TOLERANCE = 0.06
# After this long every worker has told all that there is to tell.
SETTLED_S = 10.0
# Guards what never ends, in virtual seconds.
GUARD_S = 1000.0


@dataclass(kw_only=True)
class TimedModel(MaliciousModel):
    """A model server that does `speed` workload/s, on a request by itself."""

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
class Account:
    """Sums of workload: let in and not taken off again, refused, served."""

    new_load: float
    rej_load: float
    cur_perf: float


@dataclass
class Machine:
    """An instance: a worker in front of a model server that is given one request at a time."""

    id: int
    url: str
    model: TimedModel
    backend: Backend
    stop: Stop = field(default_factory=Stop)
    power: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    gone: anyio.Event = field(default_factory=anyio.Event)
    exit_status: int | None = None

    @property
    def acknowledged(self) -> Account:
        """What the worker knows that the engine knows."""
        told = self.backend.metrics.snapshot()
        new_load, rej_load, cur_perf = told.marks
        return Account(new_load - told.new_load, rej_load - told.rej_load, cur_perf - told.cur_perf)

    @property
    def done(self) -> Account:
        """What is in the worker's ledger, whoever knows."""
        ledger = self.backend.metrics
        return Account(ledger.accepted_load - ledger.withdrawn_load, ledger.rejected_load, ledger.served_load)

    @property
    def untold(self) -> tuple[int, ...]:
        """The requests that have ended, of which the engine hasn't acknowledged that."""
        return tuple(finished.request_idx for finished in self.backend.metrics.finished()[0])

    async def die(self) -> None:
        """The worker ends where it stands: no draining, no last report, no answer more of its model server.

        Its ports are closed at once; what is connected to them is cut soon after, as `serve` leaves it.
        """
        self.model.hang()
        self.power.cancel()
        await self.gone.wait()
        await self.model.stop()


@asynccontextmanager
async def machine(
    worker_id: int, engine_url: str, clock: Clock, directory: Path
) -> AsyncGenerator[Machine, None]:
    """An instance, on inside the block; a worker that is still alive at its end is stopped in order."""
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
    here = Machine(worker_id, settings.public_url, model, backend)

    async def run() -> None:
        with here.power:
            here.exit_status = await serve(
                backend, routes, settings, here.stop, directory=directory, host="127.0.0.1"
            )
        here.gone.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield here
            here.stop.ask()
    finally:
        await model.stop()
        for lease in leases:
            lease.close()


class EngineHost:
    """An engine at one address; `engines` are those that were there, the oldest first."""

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
        """One that knows nothing of those before it; as in life, it has a key of its own."""
        first_reqnum = int(self._clock.wall() * 1000)  # as `run_engine` does
        self.engines.append(LocalEngine(clock=self._clock, key=next(self._keys), first_reqnum=first_reqnum))
        await self._serving.enter_async_context(serve_engine(self.engine, port=self.lease.port))

    async def stop(self) -> None:
        await self._serving.aclose()

    def told_by(self, worker_id: int) -> Account:
        """All that this worker's reports add up to, whichever engine took them."""
        totals = [engine.worker(worker_id).totals for engine in self.engines]
        return Account(
            sum(t.new_load for t in totals), sum(t.rej_load for t in totals), sum(t.cur_perf for t in totals)
        )

    def endings_of(self, worker_id: int) -> Counter[str]:
        """How many requests of this worker's came to each end, as the engines were told."""
        finished = (f for engine in self.engines for f in engine.finished)
        return Counter(f.request.status for f in finished if f.worker_id == worker_id)


@dataclass
class Request:
    """A client's request with all that it met; `came_s` is in seconds since the first one.

    `url` is the worker that it is with, "" while it is with the engine; `cut` is where a connection ended
    without an answer, or didn't begin.
    """

    came_s: float
    cost: float
    request_idx: int = 0
    url: str = ""
    status: int | None = None
    error: str = ""
    cut: list[str] = field(default_factory=list[str])


class Clients:
    """Sends requests where the engine says, again and again until there is an answer."""

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

    async def one_more_answer(self, worker: Machine) -> None:
        """Return once `worker` has answered a request that it has not answered yet."""
        before = len(self.answered(worker, 200))
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.answered(worker, 200)) > before)

    def answered(self, worker: Machine, status: int) -> list[Request]:
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
    """When each request comes, in seconds since the first one, and its cost: as much as `LOAD` says."""
    dice, now_s = random.Random(6), 0.0
    per_s = sum(SPEEDS.values()) / (sum(COSTS) / 2)
    for (start_s, before), (end_s, after) in pairwise(LOAD):
        while now_s < end_s:
            yield now_s, float(dice.randint(*COSTS))
            now_s += 1 / per_s / (before + (after - before) * (now_s - start_s) / (end_s - start_s))


@dataclass
class Endpoint:
    """All who take part, and what is noted of them on the way."""

    clock: Clock
    host: EngineHost
    machines: dict[int, Machine]
    clients: Clients
    open_at_restart: int = 0
    dead_acknowledged: Account | None = None
    dead_untold: tuple[int, ...] = ()

    @property
    def living(self) -> Sequence[Machine]:
        return [m for m in self.machines.values() if m.id != DIES]


class Play:
    """The script on its stage; each thread of it waits for its own time."""

    def __init__(self, stage: Endpoint) -> None:
        self._stage = stage
        self._began_s = stage.clock.monotonic()

    async def run(self) -> None:
        async with anyio.create_task_group() as threads:
            for thread in (self._load, self._hang, self._restart, self._death):
                threads.start_soon(thread)

    async def _at(self, time_s: float) -> None:
        clock = self._stage.clock
        await sleep(clock, self._began_s + time_s - clock.monotonic())

    async def _load(self) -> None:
        async with anyio.create_task_group() as requests:
            for time_s, cost in arrivals():
                await self._at(time_s)
                requests.start_soon(self._stage.clients.send, Request(time_s, cost))

    async def _hang(self) -> None:
        model = self._stage.machines[HANGS].model
        await self._at(HANG_S[0])
        model.hang()
        await self._at(HANG_S[1])
        model.wake()

    async def _restart(self) -> None:
        host = self._stage.host
        await self._at(RESTART_S)
        self._stage.open_at_restart = len(host.engine.open_requests)
        await host.stop()
        await sleep(self._stage.clock, AWAY_S)
        await host.start()

    async def _death(self) -> None:
        """It comes between an answer and the message that would tell of its request's end.

        A moment after the answer: then no report is under way, which the engine would have and the worker
        not know of.
        """
        stage, dying = self._stage, self._stage.machines[DIES]
        await self._at(DEATH_S)
        while not stage.dead_untold:
            await stage.clients.one_more_answer(dying)
            await sleep(stage.clock, 0.05)
            stage.dead_acknowledged, stage.dead_untold = dying.acknowledged, dying.untold
        await dying.die()


async def played(clock: Clock, directory: Path) -> Endpoint:
    """The endpoint when the play is over, with its living workers stopped in order."""
    host = EngineHost(clock, (engine_key(), RSA.generate(1024)))
    async with AsyncExitStack() as stack:
        stack.callback(host.lease.close)
        stack.push_async_callback(host.stop)
        await host.start()
        # Until its restart the engine is slow: more happens at the workers while it is told of something.
        host.engine.faults.reports = Fault(delay_s=SLOW_ENGINE_S)
        # A connection that is kept may turn out to be to one that is no more.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        machines = {
            worker_id: await stack.enter_async_context(machine(worker_id, host.url, clock, directory))
            for worker_id in SPEEDS
        }
        stage = Endpoint(clock, host, machines, Clients(http, host.url, clock))
        with anyio.fail_after(GUARD_S):
            await host.engine.wait_for(lambda: all(host.engine.worker(n).state == "ready" for n in SPEEDS))
            await Play(stage).run()
            await sleep(clock, SETTLED_S)
            assert_all_is_told(stage)
    return stage


def cost_of(requests: Iterable[Request]) -> float:
    return sum(request.cost for request in requests)


def assert_all_happened(stage: Endpoint) -> None:
    """The script was played: each of its mishaps was felt."""
    host, hung = stage.host, stage.machines[HANGS]
    cut = {url for request in stage.clients.requests for url in request.cut}
    assert cut == {"", stage.machines[DIES].url}
    assert stage.open_at_restart > 0
    assert len(stage.clients.answered(hung, 504)) > 0
    assert len(stage.clients.answered(hung, 429)) > 0
    assert any("health check" in report.message.error_msg for report in host.engine.worker(HANGS).reports)
    assert [host.engine.worker(worker_id).state for worker_id in SPEEDS] == ["stopped", "ready", "ready"]


def assert_all_is_told(stage: Endpoint) -> None:
    """Nothing that the living did waits for being told, and nothing is open."""
    for worker in stage.living:
        last = stage.host.engine.worker(worker.id).last
        assert last is not None
        assert (last.cur_load, last.num_requests_working, last.working_request_idxs) == (0.0, 0, ())
        assert worker.acknowledged == worker.done
        assert worker.untold == ()
    assert len(stage.host.engine.open_requests) == 0


def assert_every_request_has_its_answer(clients: Clients) -> None:
    refusals = {429: ("no slot came free", "the wait would be"), 504: ("the model server took too long",)}
    for request in clients.requests:
        if request.status != 200:
            assert request.status in refusals, request
            assert request.error.startswith(refusals[request.status]), request


def assert_totals_are_the_same(stage: Endpoint) -> None:
    """At the engines, at the workers and at the clients.

    Of the one that died the engine knows what it had acknowledged until then, which is all that can be
    compared: what the worker did in its last moments it told nobody, and its clients may have an answer of
    it or not. Its requests that were cut count where they were tried again.
    """
    assert stage.host.told_by(DIES) == stage.dead_acknowledged
    for worker in stage.living:
        assert stage.host.told_by(worker.id) == worker.done
        outcomes = worker.backend.metrics.outcomes
        assert stage.host.endings_of(worker.id) == {o.status: count for o, count in outcomes.items()}
        served, late, refused = (stage.clients.answered(worker, status) for status in (200, 504, 429))
        assert worker.done == Account(cost_of(served + late), cost_of(refused), cost_of(served))
        assert outcomes == Counter(
            {Outcome.SERVED: len(served), Outcome.ERRORED: len(late), Outcome.REJECTED: len(refused)}
        )


def assert_shares_are_the_throughputs(stage: Endpoint, span_s: tuple[float, float], ids: set[int]) -> None:
    """Of the requests that came in that time each of these workers had its part, and no other any."""
    ids_by_url = {worker.url: worker.id for worker in stage.machines.values()}
    came = [r for r in stage.clients.requests if span_s[0] <= r.came_s < span_s[1]]
    shares = {
        worker_id: count / len(came) for worker_id, count in Counter(ids_by_url[r.url] for r in came).items()
    }
    all_speeds = sum(SPEEDS[worker_id] for worker_id in ids)
    expected = {worker_id: SPEEDS[worker_id] / all_speeds for worker_id in ids}
    assert shares == pytest.approx(expected, abs=SHARE_TOLERANCE)


def test_a_life_with_mishaps_adds_up(tmp_path: Path) -> None:
    stage = in_virtual_time(lambda clock: played(clock, tmp_path))
    assert_all_happened(stage)
    assert_every_request_has_its_answer(stage.clients)
    assert_totals_are_the_same(stage)
    assert_shares_are_the_throughputs(stage, ALL_WELL_S, set(SPEEDS))
    assert_shares_are_the_throughputs(stage, TWO_LEFT_S, {worker.id for worker in stage.living})
    assert [worker.exit_status for worker in stage.living] == [0, 0]
