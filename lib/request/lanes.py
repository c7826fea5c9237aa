"""Lanes: one for each handler, with its limit on waiting and its queue for slots at the model server.

Owns which handlers share a queue, the estimate of the wait on arrival, and the queues: first come, first
served, each wait limited in time. It does not measure the model server's throughput: that is lib/model/.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler as AiohttpHandler

from lib.errors import Invalid, TooBusy
from lib.fields.json_fields import JsonDataException
from lib.fields.unknown_fields import unknown_fields_refused
from lib.metrics import WorkloadCap, WorkloadCounter, too_much_work
from lib.request.handler import Handler
from lib.request.incoming import Serve
from lib.runtime.clock import Clock
from lib.runtime.figures import more_than
from lib.uploads import Upload

ErrorFactory = Callable[[], Exception]

# The result of a wait: None if the waiter got a slot, else the factory of the exception to raise.
_WaitResult = ErrorFactory | None


class Lane:
    """One handler with its queue. Requests wait at most `max_wait_s` for a slot; None is no limit.

    `cap` limits the workload of a request if the handler has no `max_workload`.
    """

    def __init__(
        self, handler: Handler, queue: SlotQueue, max_wait_s: float | None, cap: WorkloadCap | None = None
    ) -> None:
        self.handler = handler
        self.queue = queue
        self.max_wait_s = max_wait_s
        self.count_workload = WorkloadCounter(
            name_of_handler(handler), handler.max_workload, cap, refusal=JsonDataException
        ).count

    @cached_property
    def accepts_compressed_answers(self) -> bool:
        """Whether the model server may compress its answers to the handler's requests."""
        return self.handler.accepts_compressed_answers and self.handler.keepalive_s is None

    @property
    def obstacle(self) -> str | None:
        """The reason why its requests can't be carried without aiohttp; None if they can.

        They can if no author code sees the call or the answer. A scanner does, but it gets bytes.
        """
        handler = self.handler
        if not handler.passes_answers_on:
            if _answers_by_function(handler):
                return "a Python function answers"
            return "the handler calls the model or makes the answer itself"
        if not handler.sends_json:
            return "the payload may be sent as a form or an upload"
        if handler.keepalive_s:
            return "keepalive_s is set"
        return None if handler.on_disconnect == "cancel" else "on_disconnect is 'finish'"

    def read_payload(
        self,
        received: dict[str, Any] | Upload,
        raw_auth: dict[str, Any],
        session_id: str | None,
    ) -> Any:
        """Read a payload with the handler: an upload as it is, JSON inside an envelope.

        `raw_auth` is the request's `auth_data`. Raises `Invalid` (422).
        """
        try:
            if isinstance(received, Upload):
                return self.handler.read_upload(received)
            envelope: dict[str, Any] = {"auth_data": raw_auth, "payload": received}
            if session_id is not None:
                envelope["session_id"] = session_id
            if self.handler.extra != "forbid":
                return self.handler.read_payload(envelope)
            with unknown_fields_refused():
                return self.handler.read_payload(envelope)
        except JsonDataException as e:
            raise Invalid(e.message) from e

    def check_wait(self, load: float, max_perf: float) -> None:
        """Check the estimated wait behind a workload of `load` at `max_perf` workload/s (0.0: unknown).

        Raises `TooBusy` (429) if it is longer than `max_wait_s`.
        """
        if self.max_wait_s is None or max_perf <= 0:
            return
        wait_s = load / max_perf
        if wait_s > self.max_wait_s:
            raise TooBusy(
                f"the wait would be {more_than(wait_s, self.max_wait_s, ' s')}", wait_s - self.max_wait_s
            )


class Lanes:
    """The lanes of a worker.

    Handlers that are not parallel share one queue with a single slot, or more by `share_slots`. A parallel
    handler, or one with a `max_concurrency`, has its own queue for all of its routes. `is_parallel` and
    `max_wait_s` are defaults for handlers that don't set their own. `shared` is the shared queue.
    `seconds_to_drain` estimates how long the requests in flight take.
    """

    def __init__(
        self,
        clock: Clock,
        seconds_to_drain: Callable[[], float],
        is_parallel: bool = False,
        max_wait_s: float | None = None,
    ) -> None:
        self._clock = clock
        self._seconds_to_drain = seconds_to_drain
        self._is_parallel = is_parallel
        self._max_wait_s = max_wait_s
        self._lanes: list[Lane] = []
        self.cap = WorkloadCap()
        self.shared = self._queue(1)
        self._limited: tuple[SlotQueue, ...] = ()  # the only queues in which a request can wait

    def add(self, handler: Handler) -> Lane:
        """Add a lane for one route of `handler`."""
        limit = handler.max_queue_time
        max_wait_s = self._max_wait_s if limit is None else limit
        lane = Lane(handler, self._queue_of(handler), max_wait_s, self.cap)
        self._lanes.append(lane)
        self._limited = tuple(queue for queue in self._queues() if queue.limit is not None)
        return lane

    def count_session(self, cost: float) -> float:
        """The workload of a session whose client claims `cost`: at most the largest of one request.

        Raises `Invalid` (422) if every handler has a `max_workload`, and `cost` is more than each.
        """
        limits = [lane.handler.max_workload for lane in self._lanes]
        given = max((limit for limit in limits if limit is not None), default=0.0)
        if None in limits or not limits:
            return min(cost, max(given, self.cap.limit))
        if cost > given:
            raise Invalid({"auth_data": {"cost": too_much_work("it", cost, given)}})
        return cost

    def share_slots(self, slots: int) -> None:
        """Allow `slots` requests at once, ≥ 1, to all handlers that are not parallel, together.

        To be called before any handler is added.
        """
        self.shared.limit = slots

    def concurrency_of(self, handler: Handler) -> int | None:
        """The highest number of requests of `handler` at the model server at once; None for no limit."""
        if handler.max_concurrency is not None:
            return max(1, handler.max_concurrency)  # a smaller value is reported when the worker starts
        return None if self._allows_parallel(handler) else self.shared.limit

    def refuse_all(self, error_factory: ErrorFactory) -> None:
        """Refuse every request that waits, now and from now on (see `SlotQueue.refuse_all`)."""
        for queue in self._queues():
            queue.refuse_all(error_factory)

    def is_waiting(self) -> bool:
        """Whether a request waits for a slot. It is asked for each request."""
        for queue in self._limited:  # noqa: SIM110 - any() takes three times as long
            if queue.waiting:
                return True
        return False

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return sum(queue.waiting for queue in self._queues())

    @property
    def working(self) -> int:
        """The number of requests that have a slot."""
        return sum(queue.working for queue in self._queues())

    def _queues(self) -> list[SlotQueue]:
        return list({id(lane.queue): lane.queue for lane in self._lanes}.values())

    def _queue_of(self, handler: Handler) -> SlotQueue:
        for lane in self._lanes:
            if lane.handler is handler:
                return lane.queue
        limit = self.concurrency_of(handler)
        return (
            self.shared
            if limit == self.shared.limit and not self._allows_parallel(handler)
            else self._queue(limit)
        )

    def _allows_parallel(self, handler: Handler) -> bool:
        own = handler.allow_parallel_requests
        return self._is_parallel if own is None else own

    def _queue(self, limit: int | None) -> SlotQueue:
        return SlotQueue(limit, self._clock, self._seconds_to_drain)


def direct_routes(
    served: Mapping[AiohttpHandler, Lane], routes: Sequence[web.AbstractRouteDef]
) -> dict[str, Serve]:
    """The functions that serve POST requests without aiohttp, by path.

    `served` has the lanes of the handlers that routes name.
    """
    first: dict[str, web.RouteDef] = {}  # of two routes, aiohttp takes the first
    for route in routes:
        if isinstance(route, web.RouteDef) and route.method in ("POST", "*"):
            first.setdefault(route.path, route)
    return {
        path: cast(Serve, route.handler)
        for path, route in first.items()
        if route_obstacle(route, lane_of(served, route)) is None
    }


def lane_of(served: Mapping[AiohttpHandler, Lane], route: web.AbstractRouteDef) -> Lane | None:
    """The lane of the handler that serves `route`; None where none of `served` does."""
    return served.get(cast(AiohttpHandler, route.handler)) if isinstance(route, web.RouteDef) else None


def route_obstacle(route: web.RouteDef, lane: Lane | None) -> str | None:
    """The reason why requests for `route` can't be carried without aiohttp; None if they can.

    `lane` is its handler's lane, None for a function that no backend has made a handler of.
    """
    if lane is None:
        return "the function is a plain aiohttp handler"
    if route.method not in ("POST", "*"):
        return "the method is not POST"
    return "the path has parameters" if "{" in route.path else lane.obstacle


def name_of_handler(handler: object) -> str:
    """The name of a handler in messages: a declared one's route, or the name of another one's class."""
    return getattr(handler, "route", "") or type(handler).__name__


def _answers_by_function(handler: Handler) -> bool:
    """Whether an author's function answers: declared, guarded, or attached to a handler class."""
    return getattr(handler, "function", None) is not None or "call_model" in vars(handler)


class SlotQueue:
    """Slots for at most `limit` requests at once (None: no limit); others wait in the order of arrival.

    Take one by `try_acquire` or, if none is free, by `wait`, and give it back by `release`.

    `retry_after` returns the seconds for the `Retry-After` of a 429.
    """

    def __init__(
        self, limit: int | None, clock: Clock, retry_after: Callable[[], float] = lambda: 1.0
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"a queue needs at least 1 slot, not {limit}")
        self.limit = limit
        self._clock = clock
        self._retry_after = retry_after
        self._working = 0
        # In order of arrival, with removal anywhere in constant time. While it is not empty, no slot is free.
        self._waiters: OrderedDict[asyncio.Future[_WaitResult], None] = OrderedDict()
        self._refused_with: ErrorFactory | None = None

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a slot."""
        return len(self._waiters)

    @property
    def working(self) -> int:
        """The number of requests that hold a slot."""
        return self._working

    @property
    def is_full(self) -> bool:
        """Whether all slots are taken."""
        return self.limit is not None and self._working >= self.limit

    def refuse_all(self, error_factory: ErrorFactory) -> None:
        """Raise a new exception of `error_factory` in every wait, now and from now on."""
        self._refused_with = error_factory
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(error_factory)

    def try_acquire(self) -> bool:
        """Take a slot if one is free; return whether it was."""
        if self.limit is not None and self._working >= self.limit:
            return False
        self._working += 1
        return True

    def release(self) -> None:
        """Give a slot back: it goes to the request that has waited longest, or becomes free."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():  # it was cancelled, and its task has not run since
                waiter.set_result(None)
                return
        self._working -= 1

    async def wait(self, max_wait_s: float | None) -> None:
        """Wait for a slot and take it, after `try_acquire` found none free.

        Raises `TooBusy` (429) once `max_wait_s` seconds have passed (immediately if it is 0; None is no
        limit), or the error of `refuse_all`.
        """
        if self._refused_with is not None:
            raise self._refused_with()
        if max_wait_s is not None and max_wait_s <= 0:
            raise self._too_busy(max_wait_s)
        waiter: asyncio.Future[_WaitResult] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        timer = None
        if max_wait_s is not None:
            timer = self._clock.call_later(max_wait_s, partial(self._expire, waiter, max_wait_s))
        try:
            error_factory = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result() is None:
                self.release()  # the slot was granted and the wait cancelled at the same moment
            self._waiters.pop(waiter, None)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if error_factory is not None:
            raise error_factory()

    def _expire(self, waiter: asyncio.Future[_WaitResult], max_wait_s: float) -> None:
        if not waiter.done():
            del self._waiters[waiter]
            waiter.set_result(partial(self._too_busy, max_wait_s))

    def _too_busy(self, max_wait_s: float) -> TooBusy:
        return TooBusy(f"no slot came free within {max(0.0, max_wait_s):g} s", self._retry_after())
