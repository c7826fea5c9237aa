"""Observers are called at each step of a request once, in order, and can't influence it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from lib.backend import Backend, Exchange, Observer
from lib.request.access_log import AccessLog
from tests.fakes.worker import Setup, build
from tests.system import System, with_worker_task


class RecordedSteps(Observer):
    """Records each step, with a fact that is known by then."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Any]] = []

    def admitted(self, exchange: Exchange) -> None:
        self.steps.append(("admitted", exchange.request["auth_data"].cost))

    def accepted(self, exchange: Exchange) -> None:
        self.steps.append(("accepted", exchange.workload))

    def started(self, exchange: Exchange) -> None:
        self.steps.append(("started", exchange.started_s is not None))

    def first_byte(self, exchange: Exchange) -> None:
        self.steps.append(("first byte", exchange.first_byte_s is not None))

    def ended(self, exchange: Exchange) -> None:
        outcome = exchange.outcome
        self.steps.append(("ended", (exchange.status, outcome.name if outcome else None)))


class FailingObserver(Observer):
    def accepted(self, exchange: Exchange) -> None:
        raise RuntimeError("an observer's bug")

    def ended(self, exchange: Exchange) -> None:
        raise RuntimeError("another one")


def observed(*observers: Any) -> Any:
    def make(url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = build(url, setup)
        backend.observers[:0] = observers
        return backend, routes

    return make


async def call(system: System, path: str, **options: Any) -> int:
    async with system.post(path, 3.0, **options) as answer:
        await answer.read()
        return answer.status


SERVED = [("admitted", 3.0), ("accepted", 3.0), ("started", True), ("first byte", True)]


@pytest.mark.parametrize(
    ("path", "end"),
    [("/echo", (200, "SERVED")), ("/error500", (500, "ERRORED")), ("/gzip_stream", (200, "SERVED"))],
)
async def test_every_step_of_a_request(tmp_path: Path, path: str, end: tuple[int, str]) -> None:
    steps = RecordedSteps()
    async with with_worker_task(tmp_path, make=observed(steps)) as system:
        assert await call(system, path) == end[0]
        await system.reported(served=3.0 if end[1] == "SERVED" else 0.0)
    assert steps.steps == [*SERVED, ("ended", end)]


async def test_a_stream_s_first_byte_is_its_first_chunk(tmp_path: Path) -> None:
    steps = RecordedSteps()
    async with with_worker_task(tmp_path, make=observed(steps)) as system:
        async with system.post("/stream", 3.0) as answer:
            assert [name for name, _ in steps.steps] == ["admitted", "accepted", "started"]
            system.model.step()
            await answer.content.readany()
            assert steps.steps[-1] == ("first byte", True)
            system.model.release()
            await answer.read()
        await system.reported(served=3.0)
    assert [name for name, _ in steps.steps].count("first byte") == 1


async def test_an_unauthenticated_request_only_ends(tmp_path: Path) -> None:
    steps = RecordedSteps()
    async with with_worker_task(tmp_path, make=observed(steps)) as system:
        refused = await system.http.post(system.url + "/echo", json={})
        assert refused.status == 422
    assert steps.steps == [("ended", (422, None))]


async def test_an_unreachable_model_server_gives_a_slot_and_no_first_byte(tmp_path: Path) -> None:
    steps = RecordedSteps()
    async with with_worker_task(tmp_path, make=observed(steps)) as system:
        assert await call(system, "/close") == 502
        await system.reported()
    assert [name for name, _ in steps.steps] == ["admitted", "accepted", "started", "ended"]


async def test_an_observer_that_raises_does_not_affect_the_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = RecordedSteps()
    async with with_worker_task(tmp_path, make=observed(FailingObserver(), steps)) as system:
        assert await call(system, "/echo") == 200
        await system.reported(served=3.0)
        assert system.totals.cur_perf == 3.0
    assert steps.steps == [*SERVED, ("ended", (200, "SERVED"))]
    assert caplog.text.count("an observer failed") == 2
    assert "an observer's bug" in caplog.text


async def test_the_access_log_is_an_observer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lib.access")
    async with with_worker_task(tmp_path) as system:
        assert await call(system, "/echo", headers={"X-Request-Id": "my-id"}) == 200
        await system.reported(served=3.0)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "lib.access"]
    assert line.startswith("my-id POST /echo 200 served workload=3 queue_s=")


def test_an_access_log_that_is_off_reads_nothing_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lib.access")
    nothing: Any = object()
    AccessLog().ended(nothing)


class Misspelt(Observer):
    def start(self, exchange: Exchange) -> None: ...


class Waiting:
    async def ended(self, exchange: Exchange) -> None: ...


class WithoutArgument:
    def ended(self) -> None: ...


class Helping(Observer):
    """Has methods of its own beside a step."""

    def ended(self, exchange: Exchange) -> None: ...

    def export(self, path: Path) -> None: ...

    def start(self) -> None: ...


class WithoutBase:
    def ended(self, exchange: Exchange) -> None: ...


@pytest.mark.parametrize(
    ("observer", "problem"),
    [
        (RecordedSteps, "observers: RecordedSteps is a class: give an object, RecordedSteps()"),
        (Misspelt(), "first_byte, ended; by start, did you mean started?"),
        (Waiting(), "Waiting: ended is async: give a plain function"),
        (WithoutArgument(), "WithoutArgument: ended can't be called with 1 argument"),
        ("ended", "observer str has none of the steps admitted, accepted, started, first_byte, ended"),
        (None, "observer NoneType has none of the steps"),
    ],
)
def test_an_observer_that_would_not_be_called_is_a_problem(observer: Any, problem: str) -> None:
    backend = Backend(None)
    backend.observers.append(observer)
    (found,) = backend.config().problems()
    assert problem in found


@dataclass
class Counting:
    """A dataclass, which has no hash."""

    ended_requests: int = 0
    start: float = 0.0

    def ended(self, exchange: Exchange) -> None:
        self.ended_requests += 1


async def test_observers_of_any_form_are_called(tmp_path: Path) -> None:
    ended: list[Exchange] = []
    counting, functions = Counting(), SimpleNamespace(ended=ended.append)
    async with with_worker_task(tmp_path, make=observed(counting, functions)) as system:
        await call(system, "/echo")
        await system.reported(served=3.0)
    assert (counting.ended_requests, len(ended)) == (1, 1)


@pytest.mark.parametrize(
    "observer", [RecordedSteps(), FailingObserver(), Helping(), WithoutBase(), Counting()]
)
def test_other_observers_are_no_problem(observer: Any) -> None:
    backend = Backend(None)
    backend.observers.append(observer)
    assert backend.config().problems() == []
