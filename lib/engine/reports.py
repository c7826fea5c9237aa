"""Reports to the engine: the worker's status and the requests that ended (protocol.md §3).

Owns when they are sent, where to, and how often they are tried again. What they say is the ledger's
(metrics.py) and the worker's standing; only what a 2xx acknowledged is taken off the ledger.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from anyio.to_thread import run_sync as in_thread

from lib.engine.disk import DiskUse
from lib.engine.engine import Capacity, Delivery
from lib.metrics import Ledger, Snapshot
from lib.runtime.backoff import Backoff
from lib.runtime.clock import Clock, sleep, time_limit, wait_for
from lib.wire import DeleteRequests, WorkerStatus

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 10.0
# Within 1 s of any request event, at least every 10 s (protocol.md §3), with room for the sending.
EVENT_INTERVAL_S = 0.8
IDLE_INTERVAL_S = 9.0
COMPLETIONS_INTERVAL_S = 1.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 8.0
# So many finished requests go into one message: making it must not hold up the event loop.
MAX_ENTRIES_PER_MESSAGE = 1000
# Changes of `error_msg` that are kept while the engine takes none; the oldest go first.
MAX_UNTOLD_ERRORS = 32
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # it is kept by our own clock


@dataclass(frozen=True)
class WorkerIdentity:
    """Who reports: the instance's id and token, and the URL by which clients reach the worker."""

    container_id: int
    master_token: str
    public_url: str


class Reporter:
    """Delivers status reports to one of `addrs`, and finished requests to one of `key_addrs`."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        addrs: Sequence[str],
        key_addrs: Sequence[str],
        identity: WorkerIdentity,
        ledger: Ledger,
        capacity: Callable[[], Capacity],
        clock: Clock,
    ) -> None:
        self._status = _Mailbox(http, addrs, "/worker_status/", clock)
        self._completions = _Mailbox(http, key_addrs, "/delete_requests/", clock)
        self._identity = identity
        self._ledger = ledger
        self._capacity = capacity
        self._clock = clock
        self._disk = DiskUse()
        self._error_msg = ""
        self._untold_errors: deque[str] = deque()
        self._urgent = asyncio.Event()
        self._event = asyncio.Event()
        self._finished = asyncio.Event()
        self._closing = asyncio.Event()
        ledger.listeners += [self._event.set, self._finished.set]
        self._ended = (asyncio.Event(), asyncio.Event())

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """The last attempts to deliver, oldest first."""
        return tuple(sorted((*self._status.attempts, *self._completions.attempts), key=lambda d: d.at))

    @property
    def attempts(self) -> dict[str, tuple[int, int]]:
        """By path, how many attempts to deliver a message succeeded and how many failed."""
        return {box.path: (box.delivered, box.failed) for box in (self._status, self._completions)}

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """The worker's state changed, or, not `at_once`, only its `error_msg`: report.

        Each error and each recovery is told, in order; of a run of errors the first and the latest, so
        that a log full of them can't flood the engine.
        """
        if error_msg != self._error_msg:
            self._error_msg = error_msg
            untold = self._untold_errors
            if error_msg and len(untold) > 1 and untold[-1] and untold[-2]:
                untold.pop()
            if not untold or untold[-1] != error_msg:
                untold.append(error_msg)
            if len(untold) > MAX_UNTOLD_ERRORS:
                untold.popleft()
        self._event.set()
        if at_once:
            self._urgent.set()

    async def report_status(self) -> None:
        """Deliver status reports until `finish`; the last one tells all that happened."""
        retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        in_one_go = 0  # changes of the error message to tell without a pause
        while True:
            started, last = self._clock.monotonic(), self._closing.is_set()
            if self._urgent.is_set():
                in_one_go = len(self._untold_errors)
            self._urgent.clear()
            self._event.clear()
            if not await self._report_once():
                await wait_for(self._clock, self._urgent, retry.next_s())
                continue
            retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
            in_one_go -= 1
            if self._untold_errors:
                if in_one_go > 0:
                    continue
                self._event.set()
            elif last:
                self._ended[0].set()
                return
            await self._next_occasion(started)

    async def report_completions(self) -> None:
        """Deliver finished requests, once a second while there are any, until `finish`."""
        retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        while True:
            last = self._closing.is_set()
            self._finished.clear()
            if not await self._tell_finished():
                delay_s = retry.next_s()
                await (sleep(self._clock, delay_s) if last else self._unless_closing(delay_s))
                continue
            if last:
                self._ended[1].set()
                return
            retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
            await self._finished.wait()
            await self._unless_closing(COMPLETIONS_INTERVAL_S)

    async def finish(self, limit_s: float) -> bool:
        """Deliver what is left; whether the engine took all of it within `limit_s` seconds."""
        self._closing.set()
        self._urgent.set()
        self._event.set()
        self._finished.set()
        with time_limit(self._clock, limit_s):
            for ended in self._ended:
                await ended.wait()
            return True
        log.warning("the engine did not take the last reports within %g s", limit_s)
        return False

    async def _next_occasion(self, started: float) -> None:
        """Wait for a change of state, an event that is due, or the idle interval since `started`."""
        idle_s = started + IDLE_INTERVAL_S - self._clock.monotonic()
        if await wait_for(self._clock, self._event, idle_s):
            due_s = started + EVENT_INTERVAL_S - self._clock.monotonic()
            if due_s > 0:
                await wait_for(self._clock, self._urgent, due_s)

    async def _unless_closing(self, delay_s: float) -> None:
        await wait_for(self._clock, self._closing, delay_s)

    async def _report_once(self) -> bool:
        disk = await in_thread(self._disk.read)
        snapshot = self._ledger.snapshot()
        report = self._build(snapshot, disk.used_gib, disk.grown_gib)
        if not await self._status.deliver(report.to_json()):
            return False
        self._ledger.acknowledge(snapshot)
        self._disk.acknowledge(disk)
        # A change that came meanwhile is none that this report told: neighbours in the queue differ.
        if self._untold_errors and self._untold_errors[0] == report.error_msg:
            self._untold_errors.popleft()
        return True

    async def _tell_finished(self) -> bool:
        """Whether all that has finished is delivered, or there is nobody to tell."""
        full = True
        while full:  # one that is not full had the last of them
            requests, mark = self._ledger.finished(MAX_ENTRIES_PER_MESSAGE)
            full = len(requests) == MAX_ENTRIES_PER_MESSAGE
            if not requests:
                break
            message = DeleteRequests(self._identity.container_id, self._identity.master_token, requests)
            if self._completions.addrs and not await self._completions.deliver(message.to_json()):
                return False
            self._ledger.acknowledge_finished(mark)
        return True

    def _build(self, snapshot: Snapshot, disk_usage_gib: float, grown_gib: float) -> WorkerStatus:
        capacity = self._capacity()
        return WorkerStatus(
            id=self._identity.container_id,
            mtoken=self._identity.master_token,
            url=self._identity.public_url,
            loadtime=capacity.loadtime_s,
            new_load=snapshot.new_load,
            cur_load=snapshot.cur_load,
            rej_load=snapshot.rej_load,
            cur_perf=snapshot.cur_perf,
            max_perf=capacity.max_perf,
            error_msg=self._untold_errors[0] if self._untold_errors else self._error_msg,
            num_requests_working=snapshot.working,
            num_requests_received=snapshot.received,
            working_request_idxs=snapshot.working_request_idxs,
            additional_disk_usage=grown_gib,
            disk_usage=disk_usage_gib,
        )


class _Mailbox:
    """One kind of message, to the addresses that take it; stays with the one that took the last."""

    def __init__(self, http: aiohttp.ClientSession, addrs: Sequence[str], path: str, clock: Clock) -> None:
        self.addrs = list(addrs)
        self.attempts: deque[Delivery] = deque(maxlen=20)
        self.path = path
        self.delivered = self.failed = 0
        self._http = http
        self._clock = clock
        self._failing = False

    async def deliver(self, message: dict[str, Any]) -> bool:
        """Whether some address answered 2xx; each is tried once."""
        for addr in tuple(self.addrs):
            answer, delivered = await self._post(addr, message)
            self.attempts.append(
                Delivery(self._clock.wall(), self.path, addr, _noted(message), answer, delivered)
            )
            if delivered:
                self.delivered += 1
                self._log_change(False, f"{addr}{self.path} takes reports again")
                return True
            self.failed += 1
            self._log_change(True, f"{addr}{self.path} took no report: {answer}")
            self.addrs.remove(addr)
            self.addrs.append(addr)
        return False

    async def _post(self, addr: str, message: dict[str, Any]) -> tuple[str, bool]:
        with time_limit(self._clock, DELIVERY_TIMEOUT_S):
            try:
                async with self._http.post(
                    f"{addr}{self.path}",
                    data=io.BytesIO(json.dumps(message).encode()),  # it may be long: sent piece by piece
                    headers={"Content-Type": "application/json"},
                    timeout=_NO_TIMEOUT,
                    allow_redirects=False,  # followed, it would arrive as a GET, and seem to be taken
                ) as answer:
                    return f"{answer.status} {answer.reason}", 200 <= answer.status < 300
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
                return str(e) or type(e).__name__, False
        return f"no answer within {DELIVERY_TIMEOUT_S:g} s", False

    def _log_change(self, failing: bool, line: str) -> None:
        """Each turn for the worse or the better once, not each report."""
        if failing != self._failing:
            self._failing = failing
            log.log(logging.WARNING if failing else logging.INFO, "%s", line)


def _noted(message: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a message: no secret, and nothing long."""
    kept = {k: v for k, v in message.items() if k != "mtoken"}
    return {**kept, "requests": len(message["requests"])} if "requests" in message else kept
