"""The interface between a request and the handler of its route.

Owns the `Handler` protocol: the members that serving a request uses. Authors subclass
`lib.data_types.EndpointHandler`, which has all of them.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from aiohttp import web

from lib.uploads import Upload


class Handler(Protocol):
    """The members of a handler that serving a request uses. `EndpointHandler` describes each of them."""

    @property
    def allow_parallel_requests(self) -> bool | None: ...

    @property
    def max_concurrency(self) -> int | None: ...

    @property
    def max_queue_time(self) -> float | None: ...

    @property
    def max_workload(self) -> float | None: ...

    @property
    def on_disconnect(self) -> str: ...

    @property
    def keepalive_s(self) -> float | None: ...

    @property
    def idempotent(self) -> bool: ...

    @property
    def extra(self) -> str: ...

    @property
    def accepts_uploads(self) -> bool: ...

    @property
    def accepts_compressed_answers(self) -> bool: ...

    @property
    def passes_answers_on(self) -> bool: ...

    @property
    def sends_json(self) -> bool: ...

    def endpoint_for(self, payload: Any, /) -> str | None: ...

    def generate_payload_json(self, payload: Any, /) -> Any: ...

    def scan_answer(self) -> Any: ...

    def read_payload(self, req_data: dict[str, Any], /) -> Any: ...

    def read_upload(self, upload: Upload, /) -> Any: ...

    def call_model(self, model: Any, payload: Any, /) -> AbstractAsyncContextManager[Any]: ...

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any, /
    ) -> web.StreamResponse: ...

    async def on_client_disconnect(self, payload: Any, /) -> None: ...
