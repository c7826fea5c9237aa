"""A server with a prepared answer, and a caller that keeps what a handler notes of a benchmark's request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from tests.guard import GUARD_S


class NotingCaller(ModelCaller):
    """Keeps the noted progress and workload. `progressed` is set once there is progress."""

    def __init__(self, server: ModelServer) -> None:
        super().__init__(server, {})
        self.progress: list[float] = []
        self.workloads: list[float] = []
        self.progressed = asyncio.Event()

    def note_progress(self, units: float = 1.0) -> None:
        self.progress.append(units)
        self.progressed.set()

    def note_workload(self, workload: float) -> None:
        self.workloads.append(workload)


@dataclass(frozen=True)
class Outcome:
    """The handler's answer to a benchmark's request, and what it noted."""

    status: int
    text: str
    events: float
    workloads: Sequence[float]


@dataclass
class PreparedAnswer:
    """Answers each POST with `parts`, one write each. `pause`: wait for it before the last part."""

    parts: Sequence[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    pause: asyncio.Event | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path, await request.json()))
        response = web.StreamResponse(status=self.status, headers={"Content-Type": self.content_type})
        await response.prepare(request)
        for part in self.parts[:-1]:
            await response.write(part)
            await asyncio.sleep(0)  # lets the client read it before the next
        if self.pause is not None:
            await asyncio.wait_for(self.pause.wait(), GUARD_S)
        await response.write(self.parts[-1])
        return response


@asynccontextmanager
async def caller_of(app: web.Application) -> AsyncGenerator[NotingCaller, None]:
    """A caller of a server with `app`, over a socket."""
    async with TestServer(app) as listening, ModelServer(str(listening.make_url("/"))) as server:
        yield NotingCaller(server)


async def outcome_of(call: AbstractAsyncContextManager[Any], caller: NotingCaller) -> Outcome:
    """The outcome of one benchmark's request, `call`, a handler's `call_model`."""
    async with call as answer:
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        return Outcome(answer.status, answer.body.decode(), sum(caller.progress), caller.workloads)
