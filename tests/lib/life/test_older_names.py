"""What the names of `Backend` and its metrics give, without a running worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lib.backend import Backend
from lib.life.older_names import ModelMetrics
from lib.metrics import Ledger
from lib.model.benchmark_request import BenchmarkRequest
from lib.model.connection import ModelServer
from lib.model.flow import send_alone
from lib.model.readiness import Cause, Readiness, ReadySignal
from lib.runtime.clock import SystemClock
from tests.authors.older_names import CallingHandler, count_again, make
from tests.fakes.model_server import malicious_model
from tests.manual_clock import ManualClock
from tests.slots import holding


async def test_calls_in_the_benchmark_count_no_request() -> None:
    async with malicious_model() as model, ModelServer(model.url) as server:
        model.release()
        backend, _ = make(model.url)
        request = BenchmarkRequest(CallingHandler(backend), server, lambda payload: 1.0)
        assert (await send_alone(request.send, SystemClock())).ok
        assert not backend.metrics.outcomes
        count_again(backend)  # what runs outside counts
        assert backend.metrics.outcomes.total() == 2


async def test_a_surplus_release_gives_no_slot_away(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend("http://model")
    queue = backend.lanes.shared
    async with holding(queue):
        for _ in range(3):
            backend.sem.release()
        assert backend.sem.locked()
    assert queue.working == 0
    assert [r.levelname for r in caplog.records if "backend.sem.release()" in r.message] == ["WARNING"]
    assert await backend.sem.acquire()
    assert queue.working == 1
    backend.sem.release()
    assert queue.working == 0


@pytest.mark.parametrize("cause", [None, Cause.HEALTH])
def test_only_a_worker_in_errored_has_an_error(cause: Cause | None) -> None:
    readiness = Readiness([ReadySignal.LOG], False, ManualClock())
    running: Any = SimpleNamespace(readiness=readiness)
    metrics = ModelMetrics(Ledger(), lambda: running)
    assert not metrics.is_errored
    if cause is None:
        readiness.note_hindrance("the line is missing")
    else:
        readiness.set_error(cause, "broken")
    assert (metrics.error_msg is not None, metrics.is_errored) == (True, cause is not None)


def test_two_attempts_of_one_request_are_both_in_flight() -> None:
    ledger = Ledger()
    for workload, request_idx in ((1.0, 5), (2.0, 5), (3.0, None), (4.0, None), (5.0, 6)):
        entry = ledger.open(request_idx)
        entry.set_workload(workload)
        entry.accept()
    working = ModelMetrics(ledger, lambda: None).requests_working
    assert [request.workload for request in working.values()] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [request.request_idx for request in working.values()] == [5, 5, 0, 0, 6]
    assert (working[5].workload, working[6].workload) == (1.0, 5.0)
