"""The local engine: a stand-in for the serverless engine, for development and tests on one machine.

Owns the engine's state and what it does with each message. It is no scheduler for production. Paths, bodies
and statuses are in api.py and groups_api.py, workers in fleet.py, endpoints and workergroups in groups.py,
signatures in signer.py, certificates in authority.py, listening in serving.py.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import uuid
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from Crypto.PublicKey import RSA

from lib.errors import Unauthorized
from lib.local.authority import Authority, IssuedCertificate
from lib.local.engine_logs import EngineLog, LogLevel
from lib.local.faults import FaultKind, Faults
from lib.local.fleet import Fleet, WorkerRecord
from lib.local.groups import Endpoint, Groups, Workergroup
from lib.local.messages import RouteQuery, wrong_endpoint_name
from lib.local.open_requests import OpenRequests
from lib.local.plan import Plan, plan
from lib.local.signer import Scheme, Signer
from lib.runtime.clock import Clock, SystemClock
from lib.wire import DeleteRequests, FinishedRequest, WorkerStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_ENDPOINT = "local"
DEFAULT_REPORT_LIMIT = 1000
MAX_FINISHED = 100_000
# What endpoints have for a key where any is let in.
ANY_KEY = "local"
# Of a long list, so many say enough in a line.
MAX_SHOWN = 20
# Guards a test that waits for what never comes, in seconds of real time.
WAIT_LIMIT_S = 10.0


@dataclass(frozen=True)
class ReceivedFinish:
    """A finished request that a worker told of; `received_at` in Unix seconds."""

    worker_id: int
    mtoken: str
    request: FinishedRequest
    received_at: float


@dataclass(frozen=True)
class Autoscale:
    """How many workers of an endpoint are kept running here, how many should be, and how many may."""

    endpoint: str
    most: int
    running: int
    wanted: int


class LocalEngine:
    """The state of one engine and what it does; `app` gives it to clients and workers over HTTP.

    Its methods are called on the event loop that serves it. Raises `ValueError` for an empty `api_key` or
    an endpoint's name that no path could carry.

    Args:
        scheme: the form of the signatures that `/route/` gives (protocol.md §2).
        api_key: the only key that is let in; None lets in any but the empty one.
        endpoint: the name of the endpoint that workers join whose report address has no `/e/NAME`.
        clock: for delays and for telling when a worker has been silent for too long.
        key: the RSA key to sign with; None has one made, off the event loop, when the app starts.
        report_limit: how many reports of each worker are kept; totals count them all.
        first_reqnum: where the `reqnum` of each worker starts.
    """

    def __init__(
        self,
        scheme: Scheme = "full",
        api_key: str | None = None,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        clock: Clock | None = None,
        key: RSA.RsaKey | None = None,
        report_limit: int = DEFAULT_REPORT_LIMIT,
        first_reqnum: int = 1,
    ) -> None:
        if what := wrong_endpoint_name(endpoint):
            raise ValueError(f"endpoint {what}")
        if api_key == "":
            raise ValueError("api_key must not be empty: leave it out to let in any key")
        self.scheme: Scheme = scheme
        self.endpoint = endpoint
        self.clock: Clock = clock or SystemClock()
        self.signer = Signer(key)
        self.authority = Authority(self.clock)
        self.certificates: list[IssuedCertificate] = []
        self.faults = Faults()
        self.fleet = Fleet(self.clock, report_limit)
        self.groups = Groups()
        self.groups.add_endpoint(Endpoint(0, endpoint, self.clock.wall()))
        self.autoscale: Autoscale | None = None
        self.requests_seen: Counter[FaultKind] = Counter()
        self._api_key = api_key
        self._open_requests = OpenRequests()
        self._endpoint_logs: defaultdict[int, EngineLog] = defaultdict(EngineLog)
        self._group_logs: defaultdict[int, EngineLog] = defaultdict(EngineLog)
        self._finished: deque[ReceivedFinish] = deque(maxlen=MAX_FINISHED)
        self._first_reqnum = first_reqnum
        self._reqnums: Counter[str] = Counter()
        self._arrived = asyncio.Event()

    # What it knows

    @property
    def public_key(self) -> str:
        """PEM text, as `/pubkey/` gives it."""
        return self.signer.public_key

    @property
    def finished(self) -> list[ReceivedFinish]:
        """Every entry of `/delete_requests/` as it came, the oldest first; at most the latest 100,000."""
        return list(self._finished)

    @property
    def workers(self) -> dict[int, WorkerRecord]:
        """Every worker that ever reported, by id."""
        return self.fleet.workers

    def worker(self, worker_id: int) -> WorkerRecord:
        """A worker's reports and totals; of one that never reported, none and zeros."""
        return self.fleet.worker(worker_id)

    @property
    def api_key(self) -> str:
        """A key that is let in: the only one, or any."""
        return self._api_key or ANY_KEY

    @property
    def open_requests(self) -> OpenRequests:
        """What was routed or is waiting for a worker, and has neither ended nor been given up."""
        self._give_up_what_is_lost()
        return self._open_requests

    def plan_of(self, endpoint: Endpoint) -> Plan:
        """What an autoscaler would want now; by the parameters of the endpoint and of its oldest group."""
        group = self._oldest_group(endpoint) or Workergroup(0, endpoint.id, endpoint.created_at)
        return plan(self.fleet.members(endpoint.name), group.over(endpoint.scaling), group.test_workers)

    def log_of(self, thing: Endpoint | Workergroup) -> EngineLog:
        """What was noted of an endpoint, or of a workergroup."""
        logs = self._endpoint_logs if isinstance(thing, Endpoint) else self._group_logs
        return logs[thing.id]

    def members(self, group: Workergroup) -> list[WorkerRecord]:
        """The workers of a group: those of its endpoint, where it is the oldest one there."""
        endpoint = self.groups.endpoint(group.endpoint_id)
        return self.fleet.members(endpoint.name) if self._oldest_group(endpoint) == group else []

    async def wait_for(self, predicate: Callable[[], T], limit_s: float = WAIT_LIMIT_S) -> T:
        """What `predicate` gives as soon as that is true; it is asked again after each message.

        Raises `TimeoutError` after `limit_s` seconds of real time, a guard rather than a pace.
        """
        with anyio.fail_after(limit_s):
            while not (value := predicate()):
                await self._arrived.wait()
        return value

    # What it does

    def authenticate(self, api_key: str) -> None:
        """Raises `Unauthorized` for an empty key, and for another than the one that was asked for."""
        if not api_key:
            raise Unauthorized("no API key: send api_key, or Authorization: Bearer")
        if self._api_key is not None and not hmac.compare_digest(_bytes(api_key), _bytes(self._api_key)):
            raise Unauthorized("wrong API key")

    def count(self, kind: FaultKind) -> None:
        """A request of this kind has arrived, whatever becomes of it; `requests_seen` counts them."""
        self.requests_seen[kind] += 1
        self.wake()

    def wake(self) -> None:
        """Something has changed: whoever is in `wait_for` looks again."""
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def note(self, level: LogLevel, endpoint: Endpoint, text: str) -> None:
        """A line for the log of an endpoint, and of its workers' group."""
        now = self.clock.wall()
        self.log_of(endpoint).add(level, now, text)
        if group := self._oldest_group(endpoint):
            self.log_of(group).add(level, now, text)

    def take_report(self, endpoint_name: str, message: WorkerStatus) -> None:
        """A report of a worker, which joins the endpoint with it."""
        endpoint = self.groups.join(endpoint_name, self.clock.wall())
        known = self.worker(message.id)
        before, starts = known.state, known.starts
        worker = self.fleet.take_report(endpoint_name, message)
        if worker.starts > starts > 0:
            self.note("info0", endpoint, f"worker {worker.id} was started anew")
            self._give_up(worker, "was started anew")
        if worker.state != before:
            log.info("worker %d of %s: %s", worker.id, endpoint_name, worker.state)
            why = f": {message.error_msg}" if message.error_msg else ""
            self.note("info0", endpoint, f"worker {worker.id} is {worker.state}{why}")
        self.note("debug", endpoint, f"report of worker {worker.id}: {json.dumps(_shown(message))}")
        self.wake()

    def take_finished(self, message: DeleteRequests) -> None:
        """Requests that a worker has finished: each is kept, and no longer open."""
        now = self.clock.wall()
        endpoint = self.groups.named(self.worker(message.worker_id).endpoint)
        for request in message.requests:
            self._finished.append(ReceivedFinish(message.worker_id, message.mtoken, request, now))
            self.close(request.request_idx)
            if endpoint:
                told = f"request {request.request_idx}: {request.status} at worker {message.worker_id}"
                self.note("trace", endpoint, told)
        self.wake()

    def close(self, request_idx: int) -> None:
        """A request has come to its end, or will come to none; nothing happens if it is not open."""
        self._unroute(request_idx)
        self._open_requests.close(request_idx)
        self.wake()

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Its workergroups and what is known of its workers go too; one that reports again makes it anew."""
        for worker in self.fleet.members(endpoint.name):
            self._give_up(worker, "was removed with its endpoint")
        for group in self.groups.workergroups_of(endpoint):
            self._group_logs.pop(group.id, None)
        self._endpoint_logs.pop(endpoint.id, None)
        self.fleet.forget(endpoint.name)
        self.groups.remove_endpoint(endpoint)
        log.info("endpoint %s was removed", endpoint.name)
        self.wake()

    def retire(self, worker_id: int) -> None:
        """A worker is about to be ended: it gets no more requests."""
        self.worker(worker_id).retired = True
        self.wake()

    def expect(self, worker_id: int) -> None:
        """A worker that was retired is about to be started anew."""
        self.worker(worker_id).retired = False

    def route(self, query: RouteQuery, avoid: Collection[str] = ()) -> dict[str, Any]:
        """The answer of `/route/` (protocol.md §1): signed for a worker, or without `url` if none is ready.

        A retry of an open `request_idx` moves its cost from the worker that it was routed to before, and goes
        to another one if it can: that one may be dead, and not yet known to be. An endpoint that no worker
        has joined yet is one without a ready worker. No worker whose URL is in `avoid` is picked.
        """
        self._give_up_what_is_lost()
        request_idx = self._open_requests.open(self.clock.monotonic(), query.request_idx)
        before = self._unroute(request_idx)
        others = {*avoid, before.last.url} if before and before.last else avoid
        worker = self.fleet.pick(query.endpoint, others) or self.fleet.pick(query.endpoint, avoid)
        if worker is None or worker.last is None:
            states = self.fleet.states(query.endpoint)
            told = "no worker is ready"
            answer: dict[str, Any] = {
                "endpoint": query.endpoint,
                "status": states,
                "request_idx": request_idx,
            }
        else:
            worker.pending[request_idx] = query.cost
            worker.routed += 1
            self._open_requests.route(request_idx, worker.id)
            told = f"to worker {worker.id}, which then has a load of {worker.estimated_load:g}"
            answer = self._signed(worker.last.url, query.cost, query.endpoint, request_idx)
        if endpoint := self.groups.named(query.endpoint):
            self.note("trace", endpoint, f"request {request_idx} of cost {query.cost:g}: {told}")
        self.wake()
        return answer

    def sign(
        self,
        *,
        url: str,
        cost: float = 1.0,
        reqnum: int | None = None,
        endpoint: str | None = None,
        scheme: Scheme | None = None,
        request_idx: int = 0,
    ) -> dict[str, Any]:
        """`auth_data` for the worker at `url`, as `/route/` would answer, whatever it reports.

        Left out, `reqnum` is the next for this URL, `endpoint` and `scheme` are the engine's own, and
        `request_idx` is a new one. No worker's load changes.
        """
        request_idx = self._open_requests.open(self.clock.monotonic(), request_idx)
        return self._signed(url, cost, endpoint or self.endpoint, request_idx, reqnum, scheme)

    def certify(self, instance_id: int, request_pem: bytes) -> str:
        """A PEM certificate for an instance's request; `certificates` keeps each. Raises `BadMessage`."""
        pem = self.authority.sign(request_pem)
        self.certificates.append(IssuedCertificate(instance_id, pem))
        log.info("a certificate was signed for instance %d", instance_id)
        endpoint = self.groups.named(self.worker(instance_id).endpoint) or self.groups.named(self.endpoint)
        if endpoint:
            self.note("info1", endpoint, f"a certificate was signed for instance {instance_id}")
        self.wake()
        return pem

    async def rotate_key(self, key: RSA.RsaKey | None = None) -> None:
        """Sign with `key`, or with a fresh one, and give that at `/pubkey/`."""
        await self.signer.rotate(key)
        log.info("the key was rotated")
        self.wake()

    def _signed(
        self,
        url: str,
        cost: float,
        endpoint: str,
        request_idx: int,
        reqnum: int | None = None,
        scheme: Scheme | None = None,
    ) -> dict[str, Any]:
        signed = {
            "cost": cost,
            "endpoint": endpoint,
            "reqnum": self._next_reqnum(url) if reqnum is None else reqnum,
            "url": url,
        }
        return {
            **signed,
            "signature": self.signer.sign(signed, scheme or self.scheme),
            "request_idx": request_idx,
            "__request_id": uuid.uuid4().hex,
        }

    def _next_reqnum(self, url: str) -> int:
        """A worker checks them against those it has seen, and its URL is what outlives its restarts."""
        self._reqnums[url] += 1
        return self._first_reqnum + self._reqnums[url] - 1

    def _unroute(self, request_idx: int) -> WorkerRecord | None:
        """The worker that it was routed to, if any; its cost is there no more."""
        worker_id = self._open_requests.worker_id(request_idx)
        if worker_id is None:
            return None
        worker = self.worker(worker_id)
        worker.pending.pop(request_idx, None)
        return worker

    def _oldest_group(self, endpoint: Endpoint) -> Workergroup | None:
        return next(iter(self.groups.workergroups_of(endpoint)), None)

    def _give_up_what_is_lost(self) -> None:
        """Requests of workers that fell silent will come to no end, nor those that nobody asks for."""
        for worker in self.workers.values():
            if worker.silent and not worker.lost:
                worker.lost = True
                log.info("worker %d of %s: stopped, no report for 30 s", worker.id, worker.endpoint)
                if endpoint := self.groups.named(worker.endpoint):
                    self.note("info0", endpoint, f"worker {worker.id} is stopped: no report for 30 s")
                self._give_up(worker, "fell silent")
        self._open_requests.close_abandoned(self.clock.monotonic(), self._works_on)

    def _give_up(self, worker: WorkerRecord, why: str) -> None:
        worker.pending.clear()
        requests = self._open_requests.close_routed_to(worker.id)
        if requests and (endpoint := self.groups.named(worker.endpoint)):
            shown = ", ".join(map(str, requests[:MAX_SHOWN])) + ("…" if len(requests) > MAX_SHOWN else "")
            told = f"{len(requests)} requests were given up, worker {worker.id} {why}: {shown}"
            self.note("info1", endpoint, told)

    def _works_on(self, worker_id: int, request_idx: int) -> bool:
        last = self.worker(worker_id).last
        return last is not None and request_idx in last.working_request_idxs


def _shown(message: WorkerStatus) -> dict[str, Any]:
    """A report less what is nobody's to read."""
    return {name: value for name, value in message.to_json().items() if name != "mtoken"}


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON can carry halves of characters
