"""Five requests in a row that the model server fails, on both carriers; and those that don't count."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.model.failure_row import LENGTH
from lib.runtime.settings import CarrierKind
from tests.fakes.worker import Setup
from tests.system import System, with_worker_task

carriers = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])


def failures(system: System) -> int:
    """The failures in a row so far."""
    assert system.running is not None
    return system.running.server.failures.count


@carriers
async def test_answers_with_5xx_are_an_error_if_the_benchmark_fails_too(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    setup = Setup(health="/health", benchmark="/echo", handler={"benchmark_runs": 1})
    async with with_worker_task(tmp_path, setup, carrier=carrier, benchmark_target_s=0.1) as system:
        system.model.fail_status = 500
        for _ in range(LENGTH):
            assert (await system.call("/echo"))[0] == 500
        expected = "5 requests in a row failed at the model server, the last with 500, and a benchmark"
        assert (await system.errored()).startswith(expected)
        system.model.fail_status = None
        assert (await system.call("/echo"))[0] == 200  # tried, as with other errors


@carriers
async def test_a_success_ends_the_row_and_so_does_an_authors_exception(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system:
        for path, data, status, count in (
            ("/error500", {}, 500, 1),
            ("/error500", {}, 500, 2),
            ("/error422", {}, 422, 0),
            ("/error500", {}, 500, 1),
            ("/raising", {"raise": "response"}, 500, 0),
            ("/error500", {}, 500, 1),
            ("/raising", {"status": 503}, 503, 0),
            ("/error500", {}, 500, 1),
            ("/echo", {}, 200, 0),
        ):
            assert (await system.call(path, data=data))[0] == status
            assert failures(system) == count


@carriers
async def test_requests_that_take_too_long_count(tmp_path: Path, carrier: CarrierKind) -> None:
    async with with_worker_task(tmp_path, carrier=carrier, model_timeout_s=0.1) as system:
        for count in (1, 2):
            assert (await system.call("/held"))[0] == 504
            assert failures(system) == count
