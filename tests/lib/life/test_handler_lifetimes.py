"""The order in which requests, handlers' lifetimes and the worker's lifecycle end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from lib.backend import Backend, ModelCaller
from tests.event_loop import until
from tests.fakes.worker import Job, JobHandler, altered_worker
from tests.system import with_worker_task


class RecordedLifetime(JobHandler):
    """Notes the order in which its lifetime and its request end; `is_entered` False: it never begins."""

    notes: list[str]
    is_entered = True

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        if not self.is_entered:
            await anyio.sleep_forever()
        yield
        self.notes.append("lifetime left")

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: Job) -> AsyncGenerator[Any, None]:
        try:
            await anyio.sleep_forever()
            yield web.Response()
        finally:
            self.notes.append("request ended")


@pytest.mark.parametrize("on_disconnect", ["cancel", "finish"])
async def test_a_handlers_lifetime_ends_after_the_requests_that_were_cut(
    tmp_path: Path, on_disconnect: Any
) -> None:
    handler = RecordedLifetime(on_disconnect=on_disconnect)
    handler.notes = []

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/slow", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=altered_worker(change), drain_timeout_s=0.1) as system:
        request = asyncio.ensure_future(system.call("/slow"))
        assert system.backend is not None
        lanes = system.backend.lanes
        await until(lambda: lanes.working > 0)
        assert system.stop is not None
        system.stop.ask()
        await asyncio.gather(request, return_exceptions=True)
    assert handler.notes == ["request ended", "lifetime left"]


class EndlessLifetime(RecordedLifetime):
    """A lifetime that never ends by itself."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        yield
        self.notes.append("lifetime left")
        await anyio.sleep_forever()


async def test_a_second_signal_does_not_wait_for_a_lifetime(tmp_path: Path) -> None:
    handler = EndlessLifetime()
    handler.notes = []

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/endless", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=altered_worker(change)) as system:
        assert system.stop is not None
        system.stop.ask()
        await until(lambda: handler.notes == ["lifetime left"])
        system.stop.ask()
    assert system.exit_status == 1


async def test_an_entered_lifecycle_is_left_though_a_handler_never_got_ready(tmp_path: Path) -> None:
    handler, notes = RecordedLifetime(), list[str]()
    handler.notes, handler.is_entered = notes, False

    @asynccontextmanager
    async def lifecycle() -> AsyncGenerator[None, None]:
        yield
        notes.append("lifecycle left")

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        backend.lifecycle = lifecycle
        return [web.post("/slow", backend.create_handler(handler))]

    async with with_worker_task(tmp_path, make=altered_worker(change), wait=False) as system:
        assert system.running is not None
        readiness = system.running.readiness
        await until(lambda: readiness.missing == ("handlers",))
    assert notes == ["lifecycle left"]
