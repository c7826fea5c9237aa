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
    """The files of lib/ that each task enters, until `model` has received the request."""

    def __init__(self, model: MaliciousModel) -> None:
        self.files: dict[asyncio.Task[Any] | None, dict[str, None]] = {}
        self._model = model
        self._received_before = len(model.requests)

    @property
    def is_over(self) -> bool:
        return len(self._model.requests) > self._received_before

    @property
    def of_request(self) -> list[str]:
        """The files that the task of the worker's request entered, in their order."""
        (files,) = (list(files) for files in self.files.values() if "request/exchange.py" in files)
        return files

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(LIB) and not self.is_over:
            self.files.setdefault(asyncio.current_task(), {})[file.removeprefix(LIB)] = None


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
        assert "model/connection.py" in trace.of_request
        assert len(trace.of_request) <= MAX_FILES, "\n".join(trace.of_request)
