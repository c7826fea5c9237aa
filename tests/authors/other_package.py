"""Parts of declared workers in several tests: a payload, and a handler class from another package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientResponse, web

from lib.backend import Backend
from lib.data_types import ApiPayload, EndpointHandler
from tests.fakes.worker import Setup

Make = Callable[[str, Setup], tuple[Backend, Sequence[web.AbstractRouteDef]]]


@dataclass
class Prompt(ApiPayload):
    prompt: str
    max_tokens: int = 16

    @classmethod
    def for_test(cls) -> Prompt:
        return cls("a test of the model", 4)

    def count_workload(self) -> float:
        return float(self.max_tokens)


@dataclass
class Generate(EndpointHandler[Prompt]):
    """A handler class with every member that the other package requires."""

    max_queue_time: float | None = 30.0
    benchmark_runs: int = 2

    @property
    def endpoint(self) -> str:
        return "/echo"

    @property
    def healthcheck_endpoint(self) -> str | None:
        return "/health"

    @classmethod
    def payload_cls(cls) -> type[Prompt]:
        return Prompt

    def make_benchmark_payload(self) -> Prompt:
        return Prompt.for_test()

    async def call_remote_dispatch_function(self, params: dict[str, Any]) -> Any:
        raise NotImplementedError("this handler calls the model server")

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.StreamResponse:
        return web.json_response(await model_response.json(), status=model_response.status)
