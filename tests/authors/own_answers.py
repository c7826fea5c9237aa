"""A worker whose handlers read the client's request again, and answer in ways of their own."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Dict, Type  # noqa: UP035 - as written years ago

from aiohttp import ClientResponse, web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.worker import HandlerConfig, Worker, WorkerConfig


class PlainHandler(EndpointHandler[Dict[str, Any]]):  # noqa: UP006
    """Sends the payload as it came, without what is not for the model server."""

    path = "/echo"

    @property
    def endpoint(self) -> str:
        return self.path

    @classmethod
    def payload_cls(cls) -> Type[Dict[str, Any]]:  # noqa: UP006
        return dict

    def make_benchmark_payload(self) -> Dict[str, Any]:  # noqa: UP006
        return {"done": True}

    def generate_payload_json(self, payload: Dict[str, Any]) -> Dict[str, Any]:  # noqa: UP006
        payload.pop("wanted", None)
        return payload


class AskingHandler(PlainHandler):
    """Chooses its answer by the client's request."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.Response:
        wanted = client_request.headers["X-Wanted"]
        if wanted == "json":
            return web.json_response(await client_request.json())
        if wanted == "text":
            return web.Response(text=await client_request.text())
        if wanted == "read twice":
            assert await client_request.read() == await client_request.read()
            return web.Response(body=await client_request.read())
        if wanted == "content":
            parts = [part async for part in client_request.content.iter_chunked(1000)]
            return web.Response(body=b"".join(parts))
        if wanted == "post":
            return web.json_response(sorted(await client_request.post()))
        seen = {
            "path": client_request.path,
            "rest": dict(client_request.match_info),
            "query": dict(client_request.query),
            "method": client_request.method,
            "has body": client_request.can_read_body,
        }
        return web.json_response(seen)


class FinishingHandler(AskingHandler):
    """Lets the model server finish, and notes the request when its client has left."""

    noted: Any = None

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.Response:
        body = await model_response.read()
        self.noted = await client_request.json()
        return web.Response(body=body)


class StreamingHandler(PlainHandler):
    """Streams the model's answer without reading it."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.Response:
        content = model_response.content
        how = (await client_request.json())["payload"].get("how", "content")
        bodies: dict[str, Any] = {
            "content": content,
            "iter_any": content.iter_any(),
            "iter_chunked": content.iter_chunked(10),
            "lines": content,
            "generator": self.upper(model_response),
            "refused": self.refused(),
        }
        status = model_response.status
        return web.Response(status=status, body=bodies[how], content_type="text/event-stream")

    async def upper(self, model_response: ClientResponse) -> AsyncGenerator[bytes, None]:
        async for chunk in model_response.content:
            yield chunk.upper()

    async def refused(self) -> AsyncGenerator[bytes, None]:
        yield b"part"
        raise ConnectionRefusedError("of the author's own database")


class YieldingHandler(PlainHandler):
    """Streams the model's answer as the answer of `call_model` itself."""

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[Any, None]:
        async with model.post_json("/stream", payload) as answer:
            yield web.Response(body=answer.content)


class ReadingHandler(PlainHandler):
    """Asks again until the model server says that it is done, and passes that answer on."""

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Any) -> AsyncGenerator[Any, None]:
        while True:
            async with model.post_json("/echo", payload) as answer:
                if json.loads((await answer.json())["body"])["done"]:
                    yield answer
                    return


class ReadingInBothHandler(ReadingHandler):
    """The same; and looks at the answer once more before it is passed on."""

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> web.StreamResponse:
        assert await model_response.json()
        return await super().generate_client_response(client_request, model_response)


async def respond(client_request: web.Request, model_response: ClientResponse) -> web.Response:
    """A response generator that looks at the client's request, and streams or reads the model's answer."""
    payload = (await client_request.json())["payload"]
    if payload["how"] == "stream":
        return web.Response(body=model_response.content, headers={"X-How": "stream"})
    return web.json_response({"asked": payload, "answered": await model_response.json()})


def declare(model_url: str) -> tuple[Backend, list[web.AbstractRouteDef]]:
    handlers = [HandlerConfig("/echo", response_generator=respond)]
    worker = Worker(WorkerConfig(model_url, model_healthcheck_url="/health", handlers=handlers))
    return worker.backend, worker.routes


def make(model_url: str, **options: Any) -> tuple[Backend, list[web.AbstractRouteDef]]:
    backend = Backend(model_url, allow_parallel_requests=True, healthcheck_url="/health", **options)
    finishing = FinishingHandler(on_disconnect="finish")
    finishing.path = "/held"
    streaming, stream_finishing = StreamingHandler(), StreamingHandler(on_disconnect="finish")
    streaming.path = stream_finishing.path = "/stream"
    cut = StreamingHandler()
    cut.path = "/cut_stream"
    return backend, [
        web.post("/ask", backend.create_handler(AskingHandler())),
        web.post("/ask/{id}", backend.create_handler(AskingHandler())),
        web.get("/ask", backend.create_handler(AskingHandler())),
        web.post("/finish", backend.create_handler(finishing)),
        web.post("/stream", backend.create_handler(streaming)),
        web.post("/stream_finish", backend.create_handler(stream_finishing)),
        web.post("/cut", backend.create_handler(cut)),
        web.post("/yielded", backend.create_handler(YieldingHandler())),
        web.post("/read", backend.create_handler(ReadingHandler())),
        web.post("/read_both", backend.create_handler(ReadingInBothHandler())),
        web.post("/guarded", backend.guard(guarded)),
    ]


async def guarded(request: web.Request) -> web.Response:
    """A bare route that reads its request as any aiohttp handler does."""
    if request.content_type == "multipart/form-data":
        form = await request.post()
        return web.json_response({name: str(value) for name, value in form.items()})
    return web.Response(body=await request.read())
