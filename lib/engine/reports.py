"""Reports to the engine: the worker's status and its finished requests (docs/protocol.md, "Reports").

Owns when and where they are sent, and their retries. It does not own their numbers: these come from the
ledger (lib/metrics.py), to which a report counts as delivered only after an answer with a status of 2xx.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
from anyio.to_thread import run_sync as in_thread

from lib.engine.disk import DiskUse
from lib.engine.engine import Capacity, Delivery
from lib.metrics import Ledger, Snapshot
from lib.runtime.backoff import Backoff
from lib.runtime.clock import Clock, sleep, time_limit, wait_for
from lib.runtime.hosts import is_loopback_url
from lib.wire import LOOPBACK_HEADER, DeleteRequests, WorkerStatus

log = logging.getLogger(__name__)

DELIVERY_TIMEOUT_S = 10.0
# A report is due 1 s after an event and 10 s after the last report (docs/protocol.md, "Worker status"). These
# are shorter, to leave time for the delivery.
EVENT_INTERVAL_S = 0.8
IDLE_INTERVAL_S = 9.0
COMPLETIONS_INTERVAL_S = 1.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 8.0
# Most finished requests in one message: building it must not block the event loop for long.
MAX_ENTRIES_PER_MESSAGE = 1000
# Most changes of `error_msg` that wait for delivery; the oldest are dropped.
MAX_UNREPORTED_ERRORS = 32
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # `time_limit` applies instead, on the injected clock


@dataclass(frozen=True)
class WorkerIdentity:
    """The identity in reports: the instance's id and token, and the URL at which clients reach the worker.

    `loopback_url` is that of the loopback port, "" if it has none. Only engines on the same machine are told.
    """

    container_id: int
    master_token: str
    public_url: str
    loopback_url: str = ""


class Reporter:
    """Delivers status reports to one of `addrs`, and finished requests to one of `key_addrs`.

    `capacity` returns the worker's current capacity. `max_pause_s` limits the pauses between messages, in
    seconds.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        addrs: Sequence[str],
        key_addrs: Sequence[str],
        identity: WorkerIdentity,
        ledger: Ledger,
        capacity: Callable[[], Capacity],
        clock: Clock,
        max_pause_s: float = COMPLETIONS_INTERVAL_S,
    ) -> None:
        self._event_interval_s = min(EVENT_INTERVAL_S, max_pause_s)
        self._completions_interval_s = min(COMPLETIONS_INTERVAL_S, max_pause_s)
        self._status = _MessageSender(http, addrs, "/worker_status/", clock, identity.loopback_url)
        self._completions = _MessageSender(http, key_addrs, "/delete_requests/", clock)
        self._identity = identity
        self._ledger = ledger
        self._capacity = capacity
        self._clock = clock
        self._disk = DiskUse()
        self._error_msg = ""
        self._unreported_errors: deque[str] = deque()
        self._urgent = asyncio.Event()
        self._changed = asyncio.Event()
        self._completion_added = asyncio.Event()
        self._closing = asyncio.Event()
        ledger.listeners += [self._changed.set, self._completion_added.set]
        self._status_done = asyncio.Event()
        self._completions_done = asyncio.Event()

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """The last attempts to deliver, oldest first."""
        return tuple(sorted((*self._status.attempts, *self._completions.attempts), key=lambda d: d.at))

    @property
    def attempts(self) -> dict[str, tuple[int, int]]:
        """By path, the numbers of deliveries that succeeded and that failed."""
        return {
            sender.path: (sender.delivered, sender.failed) for sender in (self._status, self._completions)
        }

    def state_changed(self, error_msg: str, at_once: bool = True) -> None:
        """Report a change of the worker's state; without `at_once`, only its `error_msg` has changed.

        Each error and each recovery is reported, in order. Of errors in a row only the first and the latest
        are, so that a log full of errors can't flood the engine.
        """
        if error_msg != self._error_msg:
            self._error_msg = error_msg
            unreported = self._unreported_errors
            if error_msg and len(unreported) > 1 and unreported[-1] and unreported[-2]:
                unreported.pop()
            if not unreported or unreported[-1] != error_msg:
                unreported.append(error_msg)
            if len(unreported) > MAX_UNREPORTED_ERRORS:
                unreported.popleft()
        self._changed.set()
        if at_once:
            self._urgent.set()

    async def report_status(self) -> None:
        """Deliver status reports until `finish`; the last one includes every event."""
        retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        without_pause = 0  # number of changes of the error message to report one right after the other
        while True:
            started, last = self._clock.monotonic(), self._closing.is_set()
            if self._urgent.is_set():
                without_pause = len(self._unreported_errors)
            self._urgent.clear()
            self._changed.clear()
            if not await self._report_once():
                await wait_for(self._clock, self._urgent, retry.next_s())
                continue
            retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
            without_pause -= 1
            if self._unreported_errors:
                if without_pause > 0:
                    continue
                self._changed.set()
            elif last:
                self._status_done.set()
                return
            await self._wait_until_due(started)

    async def report_completions(self) -> None:
        """Deliver finished requests, once a second while there are any, until `finish`."""
        retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
        while True:
            last = self._closing.is_set()
            self._completion_added.clear()
            if not await self._deliver_finished():
                delay_s = retry.next_s()
                await (sleep(self._clock, delay_s) if last else self._sleep_unless_closing(delay_s))
                continue
            if last:
                self._completions_done.set()
                return
            retry = Backoff(FIRST_RETRY_S, LAST_RETRY_S)
            await self._completion_added.wait()
            await self._sleep_unless_closing(self._completions_interval_s)

    async def finish(self, limit_s: float) -> bool:
        """Deliver all that is left; return whether that succeeded within `limit_s` seconds."""
        self._closing.set()
        self._urgent.set()
        self._changed.set()
        self._completion_added.set()
        with time_limit(self._clock, limit_s):
            await self._status_done.wait()
            await self._completions_done.wait()
            return True
        log.warning("the engine did not accept the last reports within %g s", limit_s)
        return False

    async def _wait_until_due(self, started: float) -> None:
        """Wait until the next report is due, counted from `started`: a change of state is due immediately."""
        idle_s = started + IDLE_INTERVAL_S - self._clock.monotonic()
        if await wait_for(self._clock, self._changed, idle_s):
            due_s = started + self._event_interval_s - self._clock.monotonic()
            if due_s > 0:
                await wait_for(self._clock, self._urgent, due_s)

    async def _sleep_unless_closing(self, delay_s: float) -> None:
        await wait_for(self._clock, self._closing, delay_s)

    async def _report_once(self) -> bool:
        disk = await in_thread(self._disk.read)
        snapshot = self._ledger.snapshot()
        report = self._build(snapshot, disk.used_gib, disk.grown_gib)
        if not await self._status.deliver(report):
            return False
        self._ledger.acknowledge(snapshot)
        self._disk.acknowledge(disk)
        # Not the change that came during the delivery: neighbours in the queue differ.
        if self._unreported_errors and self._unreported_errors[0] == report.error_msg:
            self._unreported_errors.popleft()
        return True

    async def _deliver_finished(self) -> bool:
        """Deliver finished requests; True when none remain or no address takes them."""
        is_full = True
        while is_full:  # a message that is not full has the last of them
            requests, mark = self._ledger.finished(MAX_ENTRIES_PER_MESSAGE)
            is_full = len(requests) == MAX_ENTRIES_PER_MESSAGE
            if not requests:
                break
            message = DeleteRequests(self._identity.container_id, self._identity.master_token, requests)
            if self._completions.addrs and not await self._completions.deliver(message):
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
            error_msg=self._unreported_errors[0] if self._unreported_errors else self._error_msg,
            num_requests_working=snapshot.working,
            num_requests_received=snapshot.received,
            working_request_idxs=snapshot.working_request_idxs,
            additional_disk_usage=grown_gib,
            disk_usage=disk_usage_gib,
        )


class _MessageSender:
    """Sends messages to one `path` of the engine, first to the address that accepted the last one.

    Messages to addresses on this machine name `loopback_url`, unless it is empty.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        addrs: Sequence[str],
        path: str,
        clock: Clock,
        loopback_url: str = "",
    ) -> None:
        self.addrs = list(addrs)
        self.attempts: deque[Delivery] = deque(maxlen=20)
        self.path = path
        self.delivered = self.failed = 0
        self._http = http
        self._clock = clock
        self._headers_here = {LOOPBACK_HEADER: loopback_url} if loopback_url else {}
        self._failing = False

    async def deliver(self, message: WorkerStatus | DeleteRequests) -> bool:
        """Send `message` to each address until one answers 2xx; return whether one did."""
        text, summary = message.encoded(), message.summary()
        for addr in tuple(self.addrs):
            answer, delivered = await self._post(addr, text)
            self.attempts.append(Delivery(self._clock.wall(), self.path, addr, summary, answer, delivered))
            if delivered:
                self.delivered += 1
                self._log_change(False, f"{addr}{self.path} accepts reports again")
                return True
            self.failed += 1
            self._log_change(True, f"{addr}{self.path} accepted no report: {answer}")
            self.addrs.remove(addr)
            self.addrs.append(addr)
        return False

    async def _post(self, addr: str, text: bytes) -> tuple[str, bool]:
        with time_limit(self._clock, DELIVERY_TIMEOUT_S):
            try:
                async with self._http.post(
                    f"{addr}{self.path}",
                    data=io.BytesIO(text),  # a stream is sent in pieces: the message may be long
                    headers={
                        "Content-Type": "application/json",
                        **(self._headers_here if is_loopback_url(addr) else {}),
                    },
                    timeout=_NO_TIMEOUT,
                    allow_redirects=False,  # followed as a GET, a redirect would look like an acknowledgement
                ) as answer:
                    return f"{answer.status} {answer.reason}", 200 <= answer.status < 300
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError) as e:
                return str(e) or type(e).__name__, False
        return f"no answer within {DELIVERY_TIMEOUT_S:g} s", False

    def _log_change(self, failing: bool, line: str) -> None:
        """Log `line` if deliveries have begun to fail or to succeed, not for each delivery."""
        if failing != self._failing:
            self._failing = failing
            log.log(logging.WARNING if failing else logging.INFO, "%s", line)
