"""An older worker: everything happens at import, and two handlers write their own answers."""

import dataclasses
import os
import random
from typing import Any, Dict, Optional, Type, Union  # noqa: UP035 - as written years ago

from aiohttp import ClientResponse, web

from lib.backend import Backend, LogAction
from lib.data_types import ApiPayload, EndpointHandler, JsonDataException
from lib.metrics import get_url
from lib.server import start_server


@dataclasses.dataclass
class InputData(ApiPayload):
    prompt: str
    max_response_tokens: int

    @classmethod
    def for_test(cls) -> "InputData":
        return cls(prompt=" ".join(random.choices(["a", "b", "c"], k=10)), max_response_tokens=20)

    def generate_payload_json(self) -> Dict[str, Any]:  # noqa: UP006
        return dataclasses.asdict(self)

    def count_workload(self) -> int:
        return self.max_response_tokens

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "InputData":  # noqa: UP006
        errors: Dict[str, str] = {}  # noqa: UP006
        for param in ("prompt", "max_response_tokens"):
            if param not in json_msg:
                errors[param] = "missing parameter"
        if errors:
            raise JsonDataException(errors)
        return cls(prompt=json_msg["prompt"], max_response_tokens=json_msg["max_response_tokens"])


@dataclasses.dataclass
class GenerateHandler(EndpointHandler[InputData]):
    temperature: float = 0.7

    @property
    def endpoint(self) -> str:
        return "/echo"

    @property
    def healthcheck_endpoint(self) -> Optional[str]:  # noqa: UP045
        return "/health"

    @classmethod
    def payload_cls(cls) -> Type[InputData]:  # noqa: UP006
        return InputData

    def generate_payload_json(self, payload: InputData) -> Dict[str, Any]:  # noqa: UP006
        return {**dataclasses.asdict(payload), "temperature": self.temperature}

    def make_benchmark_payload(self) -> InputData:
        return InputData(prompt="word " * self.benchmark_words, max_response_tokens=50)

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> Union[web.Response, web.StreamResponse]:  # noqa: UP007
        if model_response.status == 200:
            data = await model_response.json()
            return web.json_response(data=data)
        return web.Response(status=model_response.status)


class StreamedHandler(EndpointHandler[InputData]):
    """A handler without @dataclass, whose `__init__` doesn't call the base class's."""

    def __init__(self) -> None:
        self._endpoint = "/stream"

    @property
    def endpoint(self) -> str:
        return self._endpoint

    @classmethod
    def payload_cls(cls) -> Type[InputData]:  # noqa: UP006
        return InputData

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> Union[web.Response, web.StreamResponse]:  # noqa: UP007
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        await response.prepare(client_request)
        async for chunk in model_response.content:
            await response.write(chunk)
        await response.write_eof()
        return response


class PlainPayload:
    """A payload class that has the methods of `ApiPayload` and is no subclass of it."""

    def __init__(self, text: str) -> None:
        self.text = text

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "PlainPayload":  # noqa: UP006
        return cls(json_msg["text"])

    def generate_payload_json(self) -> Dict[str, Any]:  # noqa: UP006
        return {"text": self.text}

    def count_workload(self) -> float:
        return float(len(self.text))


class DuckHandler(EndpointHandler[PlainPayload]):
    @property
    def endpoint(self) -> str:
        return "/echo"

    @classmethod
    def payload_cls(cls) -> Type[PlainPayload]:  # noqa: UP006
        return PlainPayload


class DictHandler(EndpointHandler[Dict[str, Any]]):  # noqa: UP006
    """A handler that leaves payloads unchanged and chooses its endpoint by them."""

    chosen: Optional[str] = None  # noqa: UP045

    @property
    def endpoint(self) -> Optional[str]:  # noqa: UP045
        return self.chosen

    @classmethod
    def payload_cls(cls) -> Type[Dict[str, Any]]:  # noqa: UP006
        return dict

    def generate_payload_json(self, payload: Dict[str, Any]) -> Dict[str, Any]:  # noqa: UP006
        self.chosen = payload["path"]
        return payload["body"]


backend = Backend(
    model_server_url=os.environ["TEST_MODEL_URL"] + "/base/",
    model_log_file=os.environ["MODEL_LOG"],
    allow_parallel_requests=True,
    benchmark_handler=GenerateHandler(2, 7),
    log_actions=[
        (LogAction.ModelLoaded, "infer server has started"),
        (LogAction.Info, '"message":"Download'),
        *[(LogAction.ModelError, message) for message in ("Exception: corrupted model file", "OOM")],
    ],
)


async def handle_ping(_: web.Request) -> web.Response:
    return web.Response(body="author's pong")


async def handle_where(_: web.Request) -> web.Response:
    return web.json_response({"url": get_url()})


async def handle_model_health(_: web.Request) -> web.Response:
    async with backend.session.get("/health") as answer:
        return web.json_response({"status": answer.status, "path": answer.url.path})


routes = [
    web.post("/generate", backend.create_handler(GenerateHandler())),
    web.post("/generate_stream", backend.create_handler(StreamedHandler())),
    web.post("/duck", backend.create_handler(DuckHandler())),
    web.post("/dict", backend.create_handler(DictHandler())),
    web.get("/ping", handle_ping),
    web.get("/where", handle_where),
    web.get("/model-health", handle_model_health),
]

if __name__ == "__main__":
    start_server(backend, routes, host="127.0.0.1")
