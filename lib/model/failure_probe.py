"""A request of the worker's own, which decides when clients' requests fail one after the other.

Owns the error of a model server that listens but serves nothing, and its end (docs/operating.md, "States").
Which requests have failed is counted in failure_row.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lib.model.benchmark import BenchmarkFailed
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.failure_row import LENGTH, FailureRow
from lib.model.readiness import Cause, Readiness, State
from lib.runtime.clock import Clock, sleep

log = logging.getLogger(__name__)

# Seconds from the end of one request to the next, also if the first one has succeeded: it costs a slot.
RETRY_S = 10.0


@dataclass
class FailureProbe:
    """Tries `request` when `row` is full, and passes to `readiness` whether the model server serves it.

    It may take `limit_s` seconds.
    """

    row: FailureRow
    readiness: Readiness
    request: BenchmarkRequest
    limit_s: float
    clock: Clock

    async def follow(self) -> None:
        """Try a request after each row of failures, and again while that is an error, until cancelled."""
        while True:
            await self.row.full()
            if self.readiness.state is State.DRAINING:
                continue
            row = f"{LENGTH} requests in a row failed at the model server, the last with {self.row.last}"
            while await self._is_error(row):
                await sleep(self.clock, RETRY_S)
                if not self.readiness.has_error(Cause.PROBE):
                    break  # a "loaded" line came
            else:
                await sleep(self.clock, RETRY_S)

    async def _is_error(self, row: str) -> bool:
        """Try a request; set the error if it fails, and clear it if it succeeds."""
        try:
            failure = await self.request.failure(self.limit_s, self.clock)
        except BenchmarkFailed as e:
            log.warning("%s, but a benchmark request can't be made: %s", row, e)
            return self.readiness.has_error(Cause.PROBE)
        if failure is None:
            log.info("%s, but a benchmark request succeeded", row)
            self.readiness.clear_error(Cause.PROBE, "a benchmark request succeeded")
            return False
        if not self.readiness.has_error(Cause.PROBE):
            self.readiness.set_error(Cause.PROBE, f"{row}, and {failure}")
        return True
