"""Bare aiohttp handlers behind the worker's checks and its queue.

Owns the `EndpointHandler` that runs such a function in place of a call to the model server
(docs/writing-a-worker.md, "Routes of your own"). `Backend.guard` makes a route of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from lib.data_types import EndpointHandler
from lib.declare.functions import FunctionFailed
from lib.errors import ModelDown, response_from
from lib.uploads import Upload

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller

BareHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Workload = float | Callable[[Any], float]


@dataclass
class BareRoutePayload:
    """An unchanged payload, JSON or an `Upload`, with the route's workload."""

    content: dict[str, Any] | Upload
    workload: Workload

    def count_workload(self) -> float:
        return self.workload(self.content) if callable(self.workload) else self.workload


@dataclass(kw_only=True)
class BareRouteHandler(EndpointHandler[BareRoutePayload]):
    """Answers with `function(request)`; `request["payload"]` and `request["auth_data"]` are set."""

    function: BareHandler
    workload: Workload

    @property
    def endpoint(self) -> None:
        return None

    @classmethod
    def payload_cls(cls) -> type[BareRoutePayload]:
        return BareRoutePayload

    @property
    def accepts_uploads(self) -> bool:
        return True

    def read_payload(self, req_data: dict[str, Any]) -> BareRoutePayload:
        return BareRoutePayload(req_data["payload"], self.workload)

    def read_upload(self, upload: Upload) -> BareRoutePayload:
        return BareRoutePayload(upload, self.workload)

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: BareRoutePayload
    ) -> AsyncGenerator[web.StreamResponse, None]:
        assert model.client_request is not None
        try:
            response = await self.function(model.client_request)
        except (TimeoutError, asyncio.TimeoutError, aiohttp.ClientError) as e:
            if isinstance(e, (ConnectionError, ModelDown)):  # ConnectionError: the client's own one broke
                raise
            raise FunctionFailed(f"a guarded route raised {e!r}") from e
        yield response_from(self.function, response)
