"""The local engine: a stand-in for the serverless engine, for development and tests on one machine.

Owns the engine's state and the handling of each message. It is not a scheduler for production. Does not own:
the HTTP API on top of it (api.py, groups_api.py, openai_gateway.py), listening (serving.py), workers
(fleet.py), endpoints and workergroups (groups.py), signatures (signer.py), certificates (authority.py).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from Crypto.PublicKey import RSA

from lib.errors import Unauthorized
from lib.local.authority import Authority, IssuedCertificate
from lib.local.ended_requests import EndedRequests, GivenUpRequest, ReceivedCompletion
from lib.local.engine_logs import EngineLog, LogLevel
from lib.local.faults import FaultKind, Faults
from lib.local.fleet import SILENCE_S, Fleet, WorkerRecord
from lib.local.groups import Endpoint, Groups, Workergroup
from lib.local.messages import RouteQuery, wrong_endpoint_name
from lib.local.open_requests import ABANDONED_S, OpenRequests
from lib.local.scaling_plan import ScalingPlan, scaling_plan
from lib.local.signer import Scheme, Signer
from lib.runtime.clock import Clock, SystemClock
from lib.runtime.excerpt import excerpt
from lib.wire import DeleteRequests, WorkerStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_ENDPOINT = "local"
DEFAULT_REPORT_LIMIT = 1000
# The API key shown for endpoints when any key is accepted.
ANY_KEY = "local"
# Log lines list at most this many requests.
MAX_LISTED = 20
# Characters of a worker's error that are logged.
MAX_LOGGED_ERROR = 300
# Guards a test against waiting for ever, in seconds of real time.
WAIT_LIMIT_S = 30.0


@dataclass(frozen=True)
class AutoscaleStatus:
    """Workers of an endpoint that `--autoscale` runs: `running` now, `wanted` by the plan, `most` allowed."""

    endpoint: str
    most: int
    running: int
    wanted: int


def first_reqnum_now() -> int:
    """A `first_reqnum` above the numbers of any earlier engine: the Unix time in milliseconds.

    A worker rejects numbers far below the highest one it has seen, so a restarted engine must start higher.
    """
    return int(SystemClock().wall() * 1000)


class LocalEngine:
    """The state and the rules of one engine; `api.EngineApi` serves it over HTTP.

    Call its methods on the event loop that serves it. Raises `ValueError` for an empty `api_key` and for an
    invalid endpoint name.

    Args:
        scheme: the form of the signatures in `/route/` answers (docs/protocol.md, "Signature").
        api_key: the only key accepted; None accepts any key that isn't empty.
        endpoint: the endpoint of workers whose report address has no `/e/NAME`.
        clock: the time used for delays, for silent workers and in timestamps.
        key: the RSA key to sign with; with None, one is made in a thread when the application starts.
        report_limit: how many reports of each worker are kept; totals count all of them.
        first_reqnum: the first `reqnum` of each worker.
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
            raise ValueError("api_key must not be empty: leave it out to accept any key")
        self.id = uuid.uuid4().hex
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
        self.autoscale: AutoscaleStatus | None = None
        self.listeners: list[Callable[[WorkerRecord], object]] = []  # called after each report
        self.requests_seen: Counter[FaultKind] = Counter()
        self._api_key = api_key
        self._open_requests = OpenRequests()
        self._endpoint_logs: defaultdict[int, EngineLog] = defaultdict(EngineLog)
        self._group_logs: defaultdict[int, EngineLog] = defaultdict(EngineLog)
        self._ended = EndedRequests()
        self._first_reqnum = first_reqnum
        self._reqnums: Counter[str] = Counter()
        self._arrived = asyncio.Event()

    # State

    @property
    def public_key(self) -> str:
        """The public key as PEM text, as in the answer of `/pubkey/`."""
        return self.signer.public_key

    @property
    def finished(self) -> list[ReceivedCompletion]:
        """The latest 100,000 entries received by `/delete_requests/`, oldest first."""
        return list(self._ended.finished)

    @property
    def given_up(self) -> list[GivenUpRequest]:
        """The latest 1,000 requests that were closed without a worker's report, oldest first."""
        return list(self._ended.given_up.values())

    @property
    def workers(self) -> dict[int, WorkerRecord]:
        """All workers that have reported, by id."""
        return self.fleet.workers

    def worker(self, worker_id: int) -> WorkerRecord:
        """The record of a worker; an empty one if it has never reported."""
        return self.fleet.worker(worker_id)

    @property
    def api_key(self) -> str:
        """A key that is accepted: the only one, or an arbitrary one."""
        return self._api_key or ANY_KEY

    @property
    def needs_key(self) -> bool:
        """Whether only one API key is accepted; otherwise any is."""
        return self._api_key is not None

    @property
    def open_requests(self) -> OpenRequests:
        """The requests that are routed or waiting for a worker, neither finished nor given up."""
        self._give_up_lost_requests()
        return self._open_requests

    def plan_of(self, endpoint: Endpoint) -> ScalingPlan:
        """The scaling plan now, by the parameters of the endpoint and of its oldest workergroup."""
        group = self._oldest_group(endpoint) or Workergroup(0, endpoint.id, endpoint.created_at)
        return scaling_plan(
            self.fleet.members(endpoint.name), group.override(endpoint.scaling), group.test_workers
        )

    def log_of(self, thing: Endpoint | Workergroup) -> EngineLog:
        """The log of an endpoint or a workergroup."""
        logs = self._endpoint_logs if isinstance(thing, Endpoint) else self._group_logs
        return logs[thing.id]

    def members(self, group: Workergroup) -> list[WorkerRecord]:
        """The workers of a group. Those of an endpoint all belong to its oldest workergroup."""
        endpoint = self.groups.endpoint(group.endpoint_id)
        return self.fleet.members(endpoint.name) if self._oldest_group(endpoint) == group else []

    async def wait_for(self, predicate: Callable[[], T], limit_s: float = WAIT_LIMIT_S) -> T:
        """Return the value of `predicate` as soon as it is true; it is called again after each message.

        Raises `TimeoutError` after `limit_s` seconds of real time.
        """
        with anyio.fail_after(limit_s):
            while not (value := predicate()):
                await self._arrived.wait()
        return value

    # Messages

    def authenticate(self, api_key: str) -> None:
        """Check a client's API key. Raises `Unauthorized` (401) for an empty or a wrong key."""
        if not api_key:
            raise Unauthorized("no API key: send api_key, or Authorization: Bearer")
        if self._api_key is not None and not hmac.compare_digest(_bytes(api_key), _bytes(self._api_key)):
            raise Unauthorized("wrong API key")

    def count(self, kind: FaultKind) -> None:
        """Count a received request in `requests_seen`, even if a fault keeps it from being processed."""
        self.requests_seen[kind] += 1
        self.wake()

    def wake(self) -> None:
        """Make every caller of `wait_for` check its predicate again; called after each change of state."""
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def note(self, level: LogLevel, endpoint: Endpoint, text: str) -> None:
        """Add a line to the log of an endpoint and to that of its oldest workergroup."""
        now = self.clock.wall()
        self.log_of(endpoint).add(level, now, text)
        if group := self._oldest_group(endpoint):
            self.log_of(group).add(level, now, text)

    def take_report(self, endpoint_name: str, message: WorkerStatus, loopback_url: str = "") -> None:
        """Process a worker's report; the worker joins the endpoint.

        `loopback_url` is that of the worker's loopback port, if it is on this machine.
        """
        endpoint = self.groups.join(endpoint_name, self.clock.wall())
        known = self.worker(message.id)
        before, starts = known.state, known.starts
        worker = self.fleet.take_report(endpoint_name, message, loopback_url)
        if worker.starts > starts > 0:
            self.note("info0", endpoint, f"worker {worker.id} was restarted")
            self._give_up(worker, "was restarted")
        if worker.state != before:
            why = f": {message.error_msg}" if message.error_msg else ""
            shown = excerpt(why, MAX_LOGGED_ERROR)
            log.info("worker %d of %s: %s%s", worker.id, endpoint_name, worker.state, shown)
            self.note("info0", endpoint, f"worker {worker.id} is {worker.state}{why}")
        self.note("debug", endpoint, f"report of worker {worker.id}: {json.dumps(message.summary())}")
        for listener in self.listeners:
            listener(worker)
        self.wake()

    def take_finished(self, message: DeleteRequests) -> None:
        """Record the requests that a worker has finished, and close them."""
        now = self.clock.wall()
        endpoint = self.groups.endpoint_named(self.worker(message.worker_id).endpoint)
        for request in message.requests:
            routing = self._open_requests.routing(request.request_idx)
            self._ended.add(ReceivedCompletion(message.worker_id, message.mtoken, request, now, routing))
            self.close(request.request_idx)
            if endpoint:
                text = f"request {request.request_idx}: {request.status} at worker {message.worker_id}"
                self.note("trace", endpoint, text)
        self.wake()

    def close(self, request_idx: int) -> None:
        """Close a request that has finished or been given up; no effect if it isn't open."""
        self._release_cost(request_idx)
        self._open_requests.close(request_idx)
        self.wake()

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Remove an endpoint, its workergroups and the records of its workers.

        A worker that reports again makes the endpoint again.
        """
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
        """Route no more requests to a worker, which is about to be stopped."""
        self.worker(worker_id).retire(True)
        self.wake()

    def reinstate(self, worker_id: int) -> None:
        """Undo `retire`, for a worker that is about to be started again under the same id."""
        self.worker(worker_id).retire(False)

    def see(self, worker: WorkerRecord, *, draining: bool = False, unreachable: str = "") -> None:
        """Take note of what a worker's address answered: that it drains, or the error of the connection.

        A worker that drains or can't be reached gets no requests. Requests at one that can't be reached are
        given up.
        """
        before = (worker.draining, bool(worker.unreachable))
        worker.see(draining, unreachable)
        if (draining, bool(unreachable)) == before:
            return
        text = f"{worker.state}: {worker.why}" if worker.halted else f"{worker.state}: reached again"
        log.info("worker %d of %s: %s", worker.id, worker.endpoint, text)
        if endpoint := self.groups.endpoint_named(worker.endpoint):
            self.note("info0", endpoint, f"worker {worker.id} is {text}")
        if unreachable:
            self._give_up(worker, "can't be reached")
        self.wake()

    def route(self, query: RouteQuery, avoid: Collection[str] = ()) -> dict[str, Any]:
        """Return the answer of `/route/`: signed for a worker, or without `url` if no worker is ready.

        Its fields are those of docs/protocol.md, "Route". A retry of an open
        `request_idx` takes its cost off the worker it was routed to before. It goes to another worker if one
        is ready, as the first may be dead without the engine knowing it yet. Workers with a URL in `avoid`
        are not picked.
        """
        self._give_up_lost_requests()
        now_s = self.clock.monotonic()
        request_idx = self._open_requests.open(
            now_s, query.request_idx, endpoint=query.endpoint, cost=query.cost
        )
        before = self._release_cost(request_idx)
        others = {*avoid, before.last.url} if before and before.last else avoid
        worker = self.fleet.pick(query.endpoint, others) or self.fleet.pick(query.endpoint, avoid)
        if worker is None or worker.last is None:
            states = self.fleet.states(query.endpoint)
            text = "no worker is ready"
            answer: dict[str, Any] = {
                "endpoint": query.endpoint,
                "status": states,
                "request_idx": request_idx,
            }
        else:
            worker.pending[request_idx] = query.cost
            worker.routed += 1
            self._open_requests.route(request_idx, worker.id, now_s)
            text = f"routed to worker {worker.id}, whose load is now {worker.estimated_load:g}"
            answer = self._signed(worker.last.url, query.cost, query.endpoint, request_idx)
        if endpoint := self.groups.endpoint_named(query.endpoint):
            self.note("trace", endpoint, f"request {request_idx}, cost {query.cost:g}: {text}")
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
        """Return signed `auth_data` for the worker at `url`, ready or not, as `/route/` would.

        By default, `reqnum` is the next for this URL, `endpoint` and `scheme` are the engine's, and
        `request_idx` is a new one. No worker's load changes.
        """
        request_idx = self._open_requests.open(self.clock.monotonic(), request_idx)
        return self._signed(url, cost, endpoint or self.endpoint, request_idx, reqnum, scheme)

    def certify(self, instance_id: int, request_pem: bytes) -> str:
        """Sign an instance's certificate request and keep the result in `certificates`; both are PEM.

        Raises `BadMessage` (400).
        """
        pem = self.authority.sign(request_pem)
        self.certificates.append(IssuedCertificate(instance_id, pem))
        log.info("signed a certificate for instance %d", instance_id)
        endpoint = self.groups.endpoint_named(
            self.worker(instance_id).endpoint
        ) or self.groups.endpoint_named(self.endpoint)
        if endpoint:
            self.note("info1", endpoint, f"signed a certificate for instance {instance_id}")
        self.wake()
        return pem

    async def rotate_key(self, key: RSA.RsaKey | None = None) -> None:
        """Sign with `key`, or with a new one, from now on; `/pubkey/` then answers with it."""
        await self.signer.rotate(key)
        log.info("rotated the signing key")
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
        """The next number for the worker at `url`.

        Workers reject numbers that they have seen. Numbers are counted by URL, which stays the same when a
        worker is restarted.
        """
        self._reqnums[url] += 1
        return self._first_reqnum + self._reqnums[url] - 1

    def _release_cost(self, request_idx: int) -> WorkerRecord | None:
        """Take a request's cost off the worker it was routed to; return that worker, if any."""
        worker_id = self._open_requests.worker_id(request_idx)
        if worker_id is None:
            return None
        worker = self.worker(worker_id)
        worker.pending.pop(request_idx, None)
        return worker

    def _oldest_group(self, endpoint: Endpoint) -> Workergroup | None:
        return next(iter(self.groups.workergroups_of(endpoint)), None)

    def _give_up_lost_requests(self) -> None:
        """Close the requests of silent workers and the abandoned ones: their end will never be reported."""
        for worker in self.workers.values():
            if worker.silent and not worker.lost:
                worker.lost = True
                if not worker.halted:  # otherwise its end is known already
                    self._log_silence(worker)
                self._give_up(worker, "stopped reporting")
        for request_idx in self._open_requests.close_abandoned(self.clock.monotonic(), self._is_working_on):
            self._give_up_abandoned(request_idx)

    def _log_silence(self, worker: WorkerRecord) -> None:
        log.info("worker %d of %s: stopped, no report for %g s", worker.id, worker.endpoint, SILENCE_S)
        if endpoint := self.groups.endpoint_named(worker.endpoint):
            self.note("info0", endpoint, f"worker {worker.id} is stopped: no report for {SILENCE_S:g} s")

    def _give_up(self, worker: WorkerRecord, why: str) -> None:
        """Close the requests that were routed to a worker which is gone."""
        worker.pending.clear()
        requests = self._open_requests.close_routed_to(worker.id)
        for request_idx in requests:
            self._add_given_up(request_idx, f"worker {worker.id} {why}")
        if requests and (endpoint := self.groups.endpoint_named(worker.endpoint)):
            shown = ", ".join(map(str, requests[:MAX_LISTED])) + ("…" if len(requests) > MAX_LISTED else "")
            text = f"gave up {len(requests)} request(s) because worker {worker.id} {why}: {shown}"
            self.note("info1", endpoint, text)

    def _give_up_abandoned(self, request_idx: int) -> None:
        """Record a closed request that no worker works on and no client asks for."""
        routing = self._open_requests.routing(request_idx)
        if routing is None:
            return
        if routing.worker_id is None:
            why = f"its client has not asked for a worker for {ABANDONED_S:g} s"
        else:
            self.worker(routing.worker_id).pending.pop(request_idx, None)
            why = f"worker {routing.worker_id} never reported it: it was not sent, or refused with 401 or 404"
        self._add_given_up(request_idx, why)

    def _add_given_up(self, request_idx: int, why: str) -> None:
        if routing := self._open_requests.routing(request_idx):
            self._ended.give_up(GivenUpRequest(request_idx, self.clock.wall(), why, routing))

    def _is_working_on(self, worker_id: int, request_idx: int) -> bool:
        last = self.worker(worker_id).last
        return last is not None and request_idx in last.working_request_idxs


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")  # JSON strings may hold lone surrogates
