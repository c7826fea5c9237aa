"""Names of `Backend` and its `metrics` on which workers written elsewhere rely: views of the running worker.

Owns what each of them gives. The worker itself uses none (docs/migrating.md, "Names of the backend").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lib.access.signed import SignedRequests
from lib.life.running_worker import RunningWorker
from lib.metrics import Ledger, Outcome
from lib.model.readiness import State
from lib.request.lanes import Lanes, SlotQueue
from lib.request.own_requests import OwnCall, OwnRequests, RequestMetrics
from lib.request.sessions import Session
from lib.runtime.clock import Clock
from lib.runtime.own_version import own_version
from lib.runtime.settings import Settings, from_environment

log = logging.getLogger(__name__)


class Metrics(Ledger):
    """The ledger, with the names that older workers read and call.

    The methods whose names begin with `_request_` count a request of a route of the author's own; inside a
    handler, around it and in its benchmark they do nothing: the worker counts these itself. Before the worker
    runs, settings are read from the environment.
    """

    def __init__(self, clock: Clock, running: Callable[[], RunningWorker | None]) -> None:
        super().__init__(clock)
        self._running_now = running
        self._own = OwnRequests(self)

    @property
    def id(self) -> int:
        """The instance's id, `CONTAINER_ID`."""
        return self._settings.container_id

    @property
    def url(self) -> str:
        """The worker's public URL."""
        return self._settings.public_url

    @property
    def report_addr(self) -> list[str]:
        """The addresses that reports are sent to, `REPORT_ADDR`."""
        return list(self._settings.report_addrs)

    @property
    def model_metrics(self) -> ModelMetrics:
        """Workloads and requests, as they are when each is read."""
        return ModelMetrics(self, self._running_now)

    @property
    def system_metrics(self) -> SystemMetrics:
        """The loading of the model: whether it is over, and how long it took."""
        return SystemMetrics(self._running_now)

    def abandon_own_requests(self) -> None:
        """End the requests that author code has started as errored: the worker stops."""
        self._own.abandon()

    def _request_start(self, *args: Any, **names: Any) -> None:
        self._own.start(OwnCall(args, names))

    def _request_end(self, *args: Any, **names: Any) -> None:
        self._own.end(OwnCall(args, names))

    def _request_success(self, *args: Any, **names: Any) -> None:
        self._own.set_outcome(OwnCall(args, names), Outcome.SERVED)

    def _request_errored(self, *args: Any, **names: Any) -> None:
        self._own.set_outcome(OwnCall(args, names), Outcome.ERRORED)

    def _request_canceled(self, *args: Any, **names: Any) -> None:
        self._own.set_outcome(OwnCall(args, names), Outcome.CANCELLED)

    def _request_reject(self, *args: Any, **names: Any) -> None:
        self._own.set_outcome(OwnCall(args, names), Outcome.REJECTED)

    @property
    def _settings(self) -> Settings:
        running = self._running_now()
        return from_environment() if running is None else running.settings


class ModelMetrics:
    """Workloads in the author's unit, as totals since the worker's start, and the requests in flight."""

    def __init__(self, ledger: Ledger, running: Callable[[], RunningWorker | None]) -> None:
        self._ledger = ledger
        self._running_now = running

    @property
    def workload_received(self) -> float:
        """The workload of all requests that were accepted."""
        return self._ledger.accepted_load

    @property
    def workload_served(self) -> float:
        """The workload of requests that were served."""
        return self._ledger.served_load

    @property
    def workload_cancelled(self) -> float:
        """The workload of requests that were cancelled, or served without work."""
        return self._ledger.withdrawn_load

    @property
    def workload_rejected(self) -> float:
        """The workload of requests that were rejected."""
        return self._ledger.rejected_load

    @property
    def workload_errored(self) -> float:
        """The workload of requests that were accepted and have errored."""
        ledger = self._ledger
        ended = ledger.served_load + ledger.withdrawn_load
        return max(0.0, ledger.accepted_load - ended - ledger.cur_load)

    @property
    def workload_pending(self) -> float:
        """The workload that waits or is worked on."""
        return self._ledger.cur_load

    workload_processing = cur_load = workload_pending

    @property
    def requests_working(self) -> dict[int, RequestMetrics]:
        """The requests in flight, oldest first, by the engine's numbers, or else by numbers below 0.

        Of several with one number, which are attempts of one request, the oldest has it.
        """
        requests = dict[int, RequestMetrics]()
        for entry in self._ledger.accepted_entries:
            idx = entry.request_idx or 0
            key = idx if idx and idx not in requests else -entry.number
            requests[key] = RequestMetrics(idx, idx, entry.workload, "Started")
        return requests

    @property
    def working_request_idxs(self) -> list[int]:
        """The engine's numbers of the requests in flight."""
        return [idx for entry in self._ledger.accepted_entries if (idx := entry.request_idx)]

    @property
    def wait_time(self) -> float:
        """Seconds that the workload in flight takes at `max_throughput`; 0.0 while that is unknown."""
        perf = self.max_throughput
        return self._ledger.cur_load / perf if perf > 0 else 0.0

    @property
    def max_throughput(self) -> float:
        """The throughput in workload/s; 0.0 until it is known."""
        running = self._running_now()
        return 0.0 if running is None else running.readiness.max_perf

    @property
    def error_msg(self) -> str | None:
        """The error that holds now, or None."""
        running = self._running_now()
        return None if running is None else running.readiness.error_msg or None

    @property
    def is_errored(self) -> bool:
        """Whether the worker is in the state *errored*."""
        running = self._running_now()
        return running is not None and running.readiness.state is State.ERRORED


class SystemMetrics:
    """The loading of the model."""

    def __init__(self, running: Callable[[], RunningWorker | None]) -> None:
        self._running_now = running

    @property
    def model_is_loaded(self) -> bool:
        """Whether all signs that the model is loaded have come, and the benchmark is over."""
        running = self._running_now()
        return running is not None and running.readiness.loaded and running.readiness.measured

    @property
    def model_loading_time(self) -> float | None:
        """Seconds from the process's start to the first time that the worker was ready; None before."""
        running = self._running_now()
        return None if running is None else running.readiness.loadtime_s or None


@dataclass(frozen=True)
class OpenSession:
    """An open session. `lifetime` is in seconds, `expiration` and `created_at` are Unix times."""

    session_id: str
    auth_data: dict[str, Any]
    lifetime: float
    expiration: float
    created_at: float
    on_close_route: str | None
    on_close_payload: dict[str, Any] | None


class OpenSessions(Mapping[str, OpenSession]):
    """The open sessions by their ids, as they are when each is read."""

    def __init__(self, find: Callable[[str], Session | None], ids: Callable[[], list[str]]) -> None:
        self._find = find
        self._ids = ids

    def __getitem__(self, session_id: str) -> OpenSession:
        session = self._find(session_id)
        if session is None:
            raise KeyError(session_id)
        return OpenSession(**session.to_json())

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids())

    def __len__(self) -> int:
        return len(self._ids())


class Slots:
    """The slots of the handlers that are not parallel, with the methods of an `asyncio.Semaphore`.

    `queue` None: no limit. Inside a handler, the request has its slot already: don't take another.
    """

    def __init__(self, queue: SlotQueue | None) -> None:
        self._queue = queue
        self._acquired = 0
        self._has_warned = False

    def locked(self) -> bool:
        """Whether a request would have to wait for a slot."""
        return self._queue is not None and self._queue.is_full

    async def acquire(self) -> bool:
        """Wait for a slot in turn with requests, and take it. Raises `Draining` (503) if the worker stops."""
        if self._queue is not None and not self._queue.try_acquire():
            await self._queue.wait(None)
        self._acquired += 1
        return True

    def release(self) -> None:
        """Give a slot back that `acquire` took. Without one it does nothing, and warns once."""
        if self._queue is None:
            return
        if self._acquired:
            self._acquired -= 1
            self._queue.release()
        elif not self._has_warned:
            self._has_warned = True
            log.warning("backend.sem.release() without acquire(): ignored, it would free a request's slot")

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *raised: object) -> None:
        self.release()


class OlderNames:
    """The attributes of a `Backend` that older workers read. None of them can be set."""

    allow_parallel_requests: bool
    lanes: Lanes
    _running: RunningWorker | None

    @property
    def sessions(self) -> Mapping[str, OpenSession]:
        """The open sessions by their ids; none while the worker doesn't run."""
        running = self._running
        if running is None:
            return {}
        return OpenSessions(running.sessions.find_by_id, running.sessions.ids)

    @property
    def reqnum(self) -> int:
        """The highest number among the requests that were verified; -1 before the first."""
        authenticator = None if self._running is None else self._running.authenticator
        signatures = authenticator.signatures if isinstance(authenticator, SignedRequests) else None
        return -1 if signatures is None else signatures.highest_reqnum

    @property
    def sem(self) -> Slots:
        """The slot of requests that are handled one at a time; with `allow_parallel_requests`, no limit."""
        return self._slots

    @cached_property
    def _slots(self) -> Slots:
        return Slots(None if self.allow_parallel_requests else self.lanes.shared)

    @property
    def report_addr(self) -> str:
        """The addresses that reports are sent to, separated by commas (`REPORT_ADDR`)."""
        return ",".join(self._settings.report_addrs)

    @property
    def mtoken(self) -> str:
        """The instance's token, `MASTER_TOKEN`."""
        return self._settings.master_token

    @property
    def version(self) -> str:
        """The version of this package."""
        return own_version()

    @property
    def _settings(self) -> Settings:
        return from_environment() if self._running is None else self._running.settings
