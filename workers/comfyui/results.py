"""Asynchronous jobs: the answer that accepts one, and the results of the native dialect.

Owns how long results are kept, on disk. The wrapper keeps the results of its jobs itself. A job belongs to
the request that began it: that request is in progress, and counts as load, until the job has ended.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.errors import Invalid
from workers.comfyui.spool import SpooledAnswer

RESULT_LIFETIME_S = 3600.0
MAX_RESULTS = 100
MAX_BYTES = 4 * 1024**3
# The status of answers about a cancelled job, as in the wrapper.
CANCELLED_STATUS = 499


@dataclass
class StoredJob:
    """A job, whose result is in the file at `path` when it has ended. `scope` is its work."""

    id: str
    status: str = "pending"
    http_status: int = 202
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    path: Path | None = None
    size_bytes: int = 0
    ended_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The job in the wrapper's format, without outputs."""
        head = {"id": self.id, "message": f"Request {self.status}", "status": self.status}
        return {**head, "comfyui_response": {}, "output": [], "timings": {}}


class JobResults:
    """The jobs of one worker. At most 100 results are kept, for an hour, with 4 GiB together."""

    def __init__(self) -> None:
        self._jobs: dict[str, StoredJob] = {}
        self._folder: Path | None = None

    @contextmanager
    def opened(self) -> Generator[None, None, None]:
        """Keep results in a temporary folder during the block."""
        with tempfile.TemporaryDirectory(prefix="pyworker-results-") as folder:
            self._folder = Path(folder)
            try:
                yield
            finally:
                self._folder = None

    def begin(self, job_id: str) -> StoredJob:
        """Note a new job. Raises `Invalid` (422) if one with this id has not ended."""
        known = self.find(job_id)
        if known is not None and known.path is None:
            raise Invalid({"payload": {"input": {"request_id": "is that of a job that has not ended"}}})
        self.forget(job_id)
        job = self._jobs[job_id] = StoredJob(job_id)
        return job

    def find(self, job_id: str) -> StoredJob | None:
        """The job, unless it is unknown or its result is no longer kept."""
        self._forget_old()
        return self._jobs.get(job_id)

    def forget(self, job_id: str) -> None:
        """Delete the job and its result."""
        job = self._jobs.pop(job_id, None)
        if job is not None and job.path is not None:
            job.path.unlink(missing_ok=True)

    async def keep(self, job: StoredJob, status: str, http_status: int, result: SpooledAnswer) -> None:
        """Keep the result of a job that has ended."""
        assert self._folder is not None
        path = self._folder / uuid.uuid4().hex
        with await in_thread(path.open, "wb") as file:
            async for chunk in result.chunks():
                job.size_bytes += len(chunk)
                await in_thread(file.write, chunk)
        job.status, job.http_status, job.path = status, http_status, path
        job.ended_s = time.monotonic()
        self._jobs[job.id] = self._jobs.pop(job.id)  # in the order of their ends
        self._forget_old()

    def _forget_old(self) -> None:
        ended = [job for job in self._jobs.values() if job.path is not None]
        size_bytes, count = sum(job.size_bytes for job in ended), len(ended)
        for job in ended:
            is_old = time.monotonic() - job.ended_s > RESULT_LIFETIME_S
            if not (is_old or count > MAX_RESULTS or (size_bytes > MAX_BYTES and count > 1)):
                return
            size_bytes, count = size_bytes - job.size_bytes, count - 1
            self.forget(job.id)


async def accept(request: web.Request | None, body: Mapping[str, Any]) -> web.Response:
    """Answer `request` with 202 and `body` now, while its job goes on.

    The connection is closed, because another request on it would wait for the job.
    """
    response = web.json_response(body, status=202)
    response.force_close()
    if request is not None:
        try:
            await response.prepare(request)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has left, and the job goes on
    return response
