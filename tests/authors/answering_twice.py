"""A worker whose author has replaced a class of aiohttp's, and answers some requests twice."""

import functools
import os
from typing import Any, Dict, Type  # noqa: UP035 - as written years ago

from aiohttp import ClientResponse, web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.server import start_server

original = web.AppRunner


def larger_runner(app: web.Application) -> Any:
    return original(app, client_max_size=2**30)


web.AppRunner = larger_runner  # pyright: ignore[reportAttributeAccessIssue] - what such workers do
web.Application = functools.partial(web.Application, client_max_size=2**30)  # pyright: ignore[reportAttributeAccessIssue]

SHARED = web.Response(text="the same for all")


class TwiceHandler(EndpointHandler[Dict[str, Any]]):  # noqa: UP006
    @property
    def endpoint(self) -> str:
        return "/echo"

    @classmethod
    def payload_cls(cls) -> Type[Dict[str, Any]]:  # noqa: UP006
        return dict

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.StreamResponse:
        how = client_request["payload"]["how"]
        if how == "shared":
            return SHARED
        first = web.StreamResponse()
        await first.prepare(client_request)
        await first.write(b"first")
        if how == "returns another":
            return web.json_response({"second": True})
        second = web.StreamResponse()
        await second.prepare(client_request)
        return second


async def bare(request: web.Request) -> web.StreamResponse:
    first = web.StreamResponse()
    await first.prepare(request)
    await first.write(b"first")
    if request.query["how"] == "returns another":
        return web.json_response({"second": True})
    second = web.StreamResponse()
    await second.prepare(request)
    return second


backend = Backend(os.environ["TEST_MODEL_URL"], healthcheck_url="/health", max_perf=50.0)
routes = [web.post("/twice", backend.create_handler(TwiceHandler())), web.get("/bare", bare)]

if __name__ == "__main__":
    start_server(backend, routes, host="127.0.0.1")
