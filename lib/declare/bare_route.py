"""Routes of an author's own, behind the same checks as all others (authoring.md §1, `Backend.guard`).

Owns the handler that runs a bare aiohttp handler in place of a call to the model server.
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
from lib.uploads import Upload

if TYPE_CHECKING:
    from lib.model.caller import ModelCaller

BareHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Workload = float | Callable[[Any], float]


@dataclass
class BareRoutePayload:
    """A payload as it came, JSON or an `Upload`, with the route's workload."""

    content: dict[str, Any] | Upload
    workload: Workload

    def count_workload(self) -> float:
        return self.workload(self.content) if callable(self.workload) else self.workload


@dataclass(kw_only=True)
class BareRouteHandler(EndpointHandler[BareRoutePayload]):
    """Answers by `function`, which finds `request["payload"]` and `request["auth_data"]`."""

    function: BareHandler
    workload: Workload

    @property
    def endpoint(self) -> None:
        return None

    @classmethod
    def payload_cls(cls) -> type[BareRoutePayload]:
        return BareRoutePayload

    @property
    def takes_uploads(self) -> bool:
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
            if isinstance(e, ConnectionError):  # of the client's own connection
                raise
            raise FunctionFailed(f"a guarded route raised {e!r}") from e
        yield response
