"""A handler's lifetime, `EndpointHandler.running`, within the worker's."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from tests.fakes.worker import Setup
from tests.system import with_worker_task


@dataclass
class Pooled(EndpointHandler[dict[str, Any]]):
    """Answers without the model server, and only within its lifetime."""

    events: list[str] = field(default_factory=list[str])

    @property
    def endpoint(self) -> None:
        return None

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        self.events.append("entered")
        yield
        self.events.append("left")

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[web.StreamResponse, None]:
        self.events.append("called")
        yield web.Response(text="answer")


async def test_a_lifetime_is_entered_once_before_requests_and_left_after_them(tmp_path: Path) -> None:
    handler = Pooled()

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend = Backend(None)
        return backend, [web.post(path, backend.create_handler(handler)) for path in ("/a", "/b")]

    async with with_worker_task(tmp_path, make=make) as system:
        assert handler.events == ["entered"]
        envelope = {"auth_data": system.auth(), "payload": {}}
        async with system.http.post(system.url + "/a", json=envelope) as answer:
            assert await answer.text() == "answer"
        assert handler.events == ["entered", "called"]
    assert handler.events == ["entered", "called", "left"]
