"""Lanes: one for each handler, with its workload counter, its limit on waiting, and the queue for its slots.

Owns which handlers share a queue, and the estimate of the wait on arrival. The slots, and the wait by the
clock, are slots.py's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lib.errors import Invalid, TooBusy
from lib.fields.json_fields import JsonDataException
from lib.metrics import DEFAULT_WORKLOAD
from lib.request.slots import ErrorFactory, Slot, SlotQueue
from lib.runtime.clock import Clock
from lib.uploads import Upload

if TYPE_CHECKING:
    from lib.data_types import EndpointHandler

log = logging.getLogger(__name__)


class Lane:
    """The way of one handler's requests to the model server. `max_wait_s` None: they wait without a limit."""

    def __init__(self, handler: EndpointHandler[Any], queue: SlotQueue, max_wait_s: float | None) -> None:
        self.handler = handler
        self.queue = queue
        self.max_wait_s = max_wait_s
        self.count_workload = WorkloadCounter(type(handler).__name__).count

    def read_payload(
        self,
        received: dict[str, Any] | Upload,
        raw_auth: dict[str, Any],
        session_id: str | None,
    ) -> Any:
        """The payload as the handler's author reads it: an upload, or JSON with its envelope around it.

        `raw_auth` is the request's `auth_data`. Raises `Invalid` (422).
        """
        try:
            if isinstance(received, Upload):
                return self.handler.read_upload(received)
            envelope: dict[str, Any] = {"auth_data": raw_auth, "payload": received}
            if session_id is not None:
                envelope["session_id"] = session_id
            return self.handler.read_payload(envelope)
        except JsonDataException as e:
            raise Invalid(e.message) from e

    def check_wait(self, load: float, max_perf: float) -> None:
        """Refuse a request that would wait too long behind `load`, at `max_perf` workload/s (0.0: unknown).

        Raises `TooBusy` (429).
        """
        if self.max_wait_s is None or max_perf <= 0:
            return
        wait_s = load / max_perf
        if wait_s > self.max_wait_s:
            raise TooBusy(
                f"the wait would be {wait_s:.1f} s, more than {self.max_wait_s:g} s", wait_s - self.max_wait_s
            )

    def slot(self) -> Slot:
        """A slot at the model server, for an `async with` (`SlotQueue.slot`)."""
        return self.queue.slot(self.max_wait_s)


class Lanes:
    """The lanes of a worker.

    Handlers that are not parallel share one queue with a single slot. A parallel handler, or one with a
    `max_concurrency`, has a queue of its own, the same on all of its routes. `is_parallel` and `max_wait_s`
    are the defaults of handlers. `seconds_to_drain` estimates when what is in flight now will be done.
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
        self._one_at_a_time = self._queue(1)

    def add(self, handler: EndpointHandler[Any]) -> Lane:
        """A lane for one more route of `handler`."""
        limit = handler.max_queue_time
        lane = Lane(handler, self._queue_of(handler), self._max_wait_s if limit is None else limit)
        self._lanes.append(lane)
        return lane

    @property
    def handlers(self) -> list[EndpointHandler[Any]]:
        """The handlers, each once, in the order in which they were added."""
        return list({id(lane.handler): lane.handler for lane in self._lanes}.values())

    def concurrency_of(self, handler: EndpointHandler[Any]) -> int | None:
        """The most requests of `handler` at the model server at once; None: any number."""
        if handler.max_concurrency is not None:
            return max(1, handler.max_concurrency)  # less is refused when the worker starts
        return None if self._allows_parallel(handler) else 1

    def release_all(self, error_factory: ErrorFactory) -> None:
        """Refuse every request that waits, now and from now on (`SlotQueue.release_all`)."""
        for queue in self._queues():
            queue.release_all(error_factory)

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

    def _queue_of(self, handler: EndpointHandler[Any]) -> SlotQueue:
        for lane in self._lanes:
            if lane.handler is handler:
                return lane.queue
        limit = self.concurrency_of(handler)
        return (
            self._one_at_a_time if limit == 1 and not self._allows_parallel(handler) else self._queue(limit)
        )

    def _allows_parallel(self, handler: EndpointHandler[Any]) -> bool:
        own = handler.allow_parallel_requests
        return self._is_parallel if own is None else own

    def _queue(self, limit: int | None) -> SlotQueue:
        return SlotQueue(limit, self._clock, self._seconds_to_drain)


class WorkloadCounter:
    """Counts the workload of one handler's payloads.

    Anything but a finite number ≥ 0, an exception included, counts as 100.0 and is logged once.
    """

    def __init__(self, handler_name: str) -> None:
        self._handler_name = handler_name
        self._has_warned = False

    def count(self, payload: Any) -> float:
        """The workload of `payload` in the author's unit; 100.0 for a payload without `count_workload`."""
        count = getattr(payload, "count_workload", None)
        if count is None:
            return DEFAULT_WORKLOAD
        try:
            counted: Any = count()
            workload = float(counted) if isinstance(counted, (int, float)) else math.nan
            if 0 <= workload < math.inf and not isinstance(counted, bool):
                return workload
        except Exception as e:  # noqa: BLE001 - an author's code may raise anything
            counted = e
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s: count_workload gave %r: counted as %g", self._handler_name, counted, DEFAULT_WORKLOAD
            )
        return DEFAULT_WORKLOAD
