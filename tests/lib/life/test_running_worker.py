"""The assembly of a running worker, and how it drains. No HTTP: nothing listens and nobody calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib.access.open import OpenAccess
from lib.access.signed import SignedRequests
from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.engine.none import NoEngine
from lib.engine.vast import VastEngine
from lib.errors import Draining, SettingsError
from lib.life.running_worker import RunningWorker
from lib.model.readiness import State
from lib.request.sessions import SessionTerms
from lib.request.verdict import Phase
from lib.runtime.settings import Settings
from tests.fakes.plain_handler import PlainHandler
from tests.keys import new_key
from tests.manual_clock import ManualClock
from tests.slots import holding

VAST = Settings(container_id=1, public_url="http://127.0.0.1:3000")
NONE = replace(VAST, engine="none")


class ResourceHandler(PlainHandler):
    """Needs something as long as the worker serves."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        yield


def backend_of(handler: EndpointHandler[Any] | None = None, **options: Any) -> Backend:
    backend = Backend(None, clock=ManualClock(), **options)
    backend.create_handler(handler or PlainHandler())
    return backend


@asynccontextmanager
async def opened(
    tmp_path: Path, backend: Backend, settings: Settings = NONE
) -> AsyncGenerator[RunningWorker, None]:
    async with backend.run_with(settings, tmp_path, spawn=lambda call: None) as running:
        yield running


async def test_the_settings_choose_engine_and_authenticator(tmp_path: Path) -> None:
    async with opened(tmp_path, backend_of(), VAST) as running:
        assert isinstance(running.engine, VastEngine)
        assert isinstance(running.authenticator, SignedRequests)
        assert list(running.tasks()) == ["status reports", "completions", "public key"]
        assert running.readiness.missing == ("key",)
    async with opened(tmp_path, backend_of(), replace(VAST, unsecured=True)) as running:
        assert list(running.tasks()) == ["status reports", "completions"]
    async with opened(tmp_path, backend_of()) as running:
        assert isinstance(running.engine, NoEngine)
        assert isinstance(running.authenticator, OpenAccess)
        assert running.tasks() == {}
        assert running.readiness.state is State.READY


@pytest.mark.parametrize(
    ("options", "warns"),
    [({}, True), ({"max_perf": 42.0}, False), ({"benchmark_handler": PlainHandler()}, False)],
)
async def test_a_throughput_that_nobody_has_given_or_measures_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], warns: bool
) -> None:
    async with opened(tmp_path, backend_of(**options)):
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.startswith("no handler has a benchmark: ") for text in warnings] == [True] * warns
    if warns:
        assert "100 workload/s" in warnings[0]
        assert "max_perf" in warnings[0]


async def test_an_author_s_word_on_unsecured_wins(tmp_path: Path) -> None:
    async with opened(tmp_path, backend_of(unsecured=True), VAST) as running:
        assert not running.authenticator.needs_key


async def test_each_thing_to_watch_has_a_task(tmp_path: Path) -> None:
    backend = backend_of(ResourceHandler(), benchmark_handler=ResourceHandler(), lifecycle=AsyncExitStack())
    async with opened(tmp_path, backend) as running:
        assert list(running.tasks()) == ["benchmark", "failure probe", "handlers", "lifecycle"]
        assert running.readiness.missing == ("handlers", "lifecycle", "benchmark")


async def test_arguments_that_cannot_work_are_named_together(tmp_path: Path) -> None:
    backend = backend_of(PlainHandler(max_concurrency=0), max_perf=-1.0)
    with pytest.raises(SettingsError) as refused:
        async with opened(tmp_path, backend):
            pass
    assert len(refused.value.problems) == 2
    with pytest.raises(RuntimeError, match="not running"):
        _ = backend.running


async def test_a_drain_refuses_those_that_wait_and_ends_sessions(tmp_path: Path) -> None:
    backend = backend_of()
    async with opened(tmp_path, backend) as running:
        session = running.sessions.create({"cost": 1}, SessionTerms())
        running.sessions.on_end = lambda ended, how: None
        lane = running.lanes.add(PlainHandler())

        async def wait() -> None:
            async with holding(lane.queue, lane.max_wait_s):
                pass

        async with holding(lane.queue, lane.max_wait_s):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
            running.drain()
            with pytest.raises(Draining):
                await waiting
        assert running.readiness.state is State.DRAINING
        assert running.sessions.find_by_id(session.id) is None
        assert running.phase == Phase(draining=True)
        running.cut()
        assert running.phase == Phase(draining=True, cut=True)


async def test_a_public_key_makes_the_worker_ready(tmp_path: Path) -> None:
    pem = new_key().public_key().export_key().decode()
    backend = backend_of()
    backend.engine = KeyEngine(pem)
    async with opened(tmp_path, backend, VAST) as running:
        assert running.readiness.missing == ("key",)
        await running.tasks()["key"]()
        assert running.readiness.state is State.READY


async def test_signatures_without_an_engine_that_has_a_key_are_refused(tmp_path: Path) -> None:
    backend = backend_of()
    backend.engine = NoEngine("http://worker.example")
    with pytest.raises(SettingsError, match="SignedRequests beside NoEngine"):
        async with opened(tmp_path, backend, VAST):
            pass


async def test_a_backend_that_is_opened_twice_reports_once(tmp_path: Path) -> None:
    backend = backend_of(unsecured=True)
    for _ in range(2):
        async with opened(tmp_path, backend, VAST):
            assert len(backend.metrics.listeners) == 2  # of one reporter
        assert backend.metrics.listeners == []


class KeyEngine(NoEngine):
    """Gives a public key, and nothing else."""

    def __init__(self, pem: str) -> None:
        super().__init__("http://worker.example")
        self._pem = pem

    def tasks(self, use_key: Callable[[str], None] | None) -> Mapping[str, Callable[[], Awaitable[None]]]:
        assert use_key is not None

        async def give_key() -> None:
            use_key(self._pem)

        return {"key": give_key}


async def test_fields_of_older_handlers_with_new_names_are_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path, backend_of(OlderHandler())) as running:
        assert running.readiness.state is State.READY
        assert running.tasks() == {}


class OlderHandler(PlainHandler):
    """Written before `running` and `problems` were methods of its base class."""

    running: Any = 0
    problems: Any = ()


@pytest.mark.parametrize("limit_s", [-1.0, float("inf")])
def test_the_limit_of_stalls_is_a_number_of_seconds(limit_s: float) -> None:
    problems = Backend(None, model_stall_timeout_s=limit_s).config().problems()
    assert problems == [f"model_stall_timeout_s is {limit_s}, not a finite number of seconds ≥ 0"]
