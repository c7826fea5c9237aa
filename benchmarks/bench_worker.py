"""This worker, as it is measured: one route like an OpenAI server's, and a handler that overrides nothing.

usage: MODEL_SERVER_URL=… MODEL_LOG=… python -m benchmarks.bench_worker

It also needs the variables of an instance (docs/operating.md, "Environment"). With PROFILE_FILE, cProfile
writes there what ran between the signals SIGUSR1 and SIGUSR2 (frames.py reads it).
"""

from __future__ import annotations

import cProfile
import os
import signal
from types import FrameType
from typing import Any

from aiohttp import web

from benchmarks.fast_model import READY_LINE
from benchmarks.loads import ROUTE
from lib.backend import Backend
from lib.data_types import EndpointHandler, LogAction
from lib.server import start_server


class PlainHandler(EndpointHandler[dict[str, Any]]):
    """Forwards the payload unchanged, with the default handling of requests and answers."""

    @property
    def endpoint(self) -> str:
        return ROUTE

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict

    def make_benchmark_payload(self) -> dict[str, Any]:
        return {"model": "plain", "prompt": "hi", "max_tokens": 200}


def main() -> None:
    handler = PlainHandler()
    backend = Backend(
        os.environ["MODEL_SERVER_URL"],
        os.environ["MODEL_LOG"],
        benchmark_handler=handler,
        allow_parallel_requests=True,
        log_actions=[(LogAction.ModelLoaded, READY_LINE)],
    )
    if path := os.environ.get("PROFILE_FILE"):
        _profile_between_signals(path)
    start_server(backend, [web.post(ROUTE, backend.create_handler(handler))], host="127.0.0.1")


def _profile_between_signals(path: str) -> None:
    profile = cProfile.Profile()

    def begin(number: int, frame: FrameType | None) -> None:
        profile.enable()

    def end(number: int, frame: FrameType | None) -> None:
        profile.disable()
        profile.dump_stats(path + ".part")
        os.replace(path + ".part", path)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)


if __name__ == "__main__":
    main()
