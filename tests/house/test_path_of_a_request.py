"""A request's path is short: few files of lib/ between the client's socket and the model server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fakes.model_server import MaliciousModel
from tests.system import with_worker_task

LIB = str(Path(__file__).parents[2] / "lib") + "/"
MAX_FILES = 14


class Trace:
    """The files of lib/ that a request's task enters, until `model` has received the request."""

    def __init__(self, model: MaliciousModel) -> None:
        self.files: dict[str, None] = {}
        self._model = model
        self._received_before = len(model.requests)

    @property
    def is_over(self) -> bool:
        return len(self._model.requests) > self._received_before

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(LIB) and not self.is_over and in_a_request():
            self.files[file.removeprefix(LIB)] = None


def in_a_request() -> bool:
    """Whether the running task is aiohttp's for a connection of the worker's, not one of the engine's."""
    task = asyncio.current_task()
    return task is not None and "RequestHandler." in repr(task.get_coro())


async def test_a_request_enters_few_files(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo")  # connections, caches
        trace = Trace(system.model)
        sys.setprofile(trace)
        try:
            status, _ = await system.call("/echo")
        finally:
            sys.setprofile(None)
        assert status == 200
        assert trace.is_over
        on_the_path = [file for file in trace.files if not file.startswith("local/")]
        assert {"backend.py", "model/connection.py"} <= set(on_the_path)
        assert len(on_the_path) <= MAX_FILES, on_the_path
