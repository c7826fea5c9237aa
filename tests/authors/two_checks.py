"""Two workers with two model routes each, which have health checks of their own."""

import os
from typing import Any, Dict, Type  # noqa: UP035 - as written years ago

from aiohttp import web

from lib.backend import Backend
from lib.data_types import EndpointHandler
from lib.server import start_server
from lib.worker import HandlerConfig, Worker, WorkerConfig

MODEL_URL = os.environ["TEST_MODEL_URL"]


class TextHandler(EndpointHandler[Dict[str, Any]]):  # noqa: UP006
    health = "/health"

    @property
    def endpoint(self) -> str:
        return "/echo"

    @property
    def healthcheck_endpoint(self) -> str:
        return self.health

    @classmethod
    def payload_cls(cls) -> Type[Dict[str, Any]]:  # noqa: UP006
        return dict


class ImageHandler(TextHandler):
    health = "/echo"


def by_classes() -> None:
    backend = Backend(MODEL_URL, max_perf=50.0)
    routes = [
        web.post("/text", backend.create_handler(TextHandler())),
        web.post("/image", backend.create_handler(ImageHandler())),
    ]
    start_server(backend, routes, host="127.0.0.1")


def declared() -> None:
    handlers = [HandlerConfig("/text", healthcheck="/health"), HandlerConfig("/image", healthcheck="/echo")]
    Worker(WorkerConfig(MODEL_URL, handlers=handlers)).run(host="127.0.0.1")


if __name__ == "__main__":
    declared() if os.environ.get("DECLARED") else by_classes()
