"""Requests are freed without the garbage collector, which would otherwise pause a busy worker."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from lib.backend import Backend
from lib.request.exchange import Exchange
from tests.event_loop import until
from tests.fakes.worker import Setup, altered_worker
from tests.system import with_worker_task


async def test_a_request_whose_client_left_needs_no_garbage_collector(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        port = int(system.url.rsplit(":", 1)[1])
        assert system.backend is not None
        lanes, ledger = system.backend.lanes, system.backend.metrics
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                body = json.dumps(system.envelope()).encode()
                writer.write(
                    b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                await until(lambda: lanes.working > 0)
                writer.transport.abort()
                await until(lambda: ledger.unfinished == 0)
            await system.reported()
            left = sum(isinstance(o, Exchange) for o in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 3  # the last ones may still be ending


async def replace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request.clone())


@pytest.mark.parametrize("path", ["/echo", "/error500", "/close", "/stream"])
@pytest.mark.parametrize("fields", [{}, {"keepalive_s": 30.0}, {"on_disconnect": "finish"}])
async def test_no_request_needs_the_garbage_collector(
    tmp_path: Path, path: str, fields: dict[str, Any]
) -> None:
    def change(backend: Backend) -> None:
        backend.middlewares.append(replace_request)

    setup = Setup(health="/health", handler=fields)
    async with with_worker_task(tmp_path, setup, make=altered_worker(change)) as system:
        system.model.release()
        await system.call(path)
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await system.call(path)
            await system.engine.wait_for(lambda: len(system.engine.finished) == 11)
            left = sum(isinstance(o, Exchange) for o in gc.get_objects())
        finally:
            gc.enable()
    assert left <= 3  # the last ones may still be ending
