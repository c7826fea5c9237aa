"""A request's path is short: few files of lib/ between the client's socket and the model server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.fakes.model_server import MaliciousModel
from tests.system import with_worker_task

LIB = str(Path(__file__).parents[2] / "lib") + "/"
# Rooms in which connections are carried, whatever is on them. Where aiohttp does that, it is not counted.
CARRYING = ("front/", "http/")
# 16, and the journal.
MAX_FILES = 17


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


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_a_request_enters_few_files(tmp_path: Path, carrier: str) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system:
        for _ in range(2):  # connections, caches
            await system.call("/echo")
        trace = Trace(system.model)
        sys.setprofile(trace)
        try:
            status, _ = await system.call("/echo")
        finally:
            sys.setprofile(None)
        assert status == 200
        assert trace.is_over
        files = [file for file in trace.of_request if not file.startswith(CARRYING)]
        assert ("model/direct.py" if carrier == "direct" else "model/connection.py") in files
        assert len(files) <= MAX_FILES, "\n".join(files)
