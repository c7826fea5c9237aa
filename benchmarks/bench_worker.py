"""The worker that the proxy benchmark measures, with the default handling of requests and answers.

usage: MODEL_SERVER_URL=… MODEL_LOG=… python -m benchmarks.bench_worker

It also needs the variables of an instance (docs/operating.md, "Environment").
"""

from __future__ import annotations

import os
from typing import Any

from aiohttp import web

from benchmarks.fast_model import READY_LINE
from lib.backend import Backend
from lib.data_types import EndpointHandler, LogAction
from lib.server import start_server


class PassOn(EndpointHandler[dict[str, Any]]):
    """Forwards the payload unchanged to `path`."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    @property
    def endpoint(self) -> str:
        return self._path

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict


def main() -> None:
    backend = Backend(
        os.environ["MODEL_SERVER_URL"],
        os.environ["MODEL_LOG"],
        allow_parallel_requests=True,
        log_actions=[(LogAction.ModelLoaded, READY_LINE)],
    )
    paths = ("/json", "/stream")
    routes = [web.post(path, backend.create_handler(PassOn(path))) for path in paths]
    start_server(backend, routes, host="127.0.0.1")


if __name__ == "__main__":
    main()
