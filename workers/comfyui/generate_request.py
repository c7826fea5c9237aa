"""A request of the native dialect to run a workflow: the forms of its result, and its failures.

Owns what the answer of a finished prompt is. The prompt itself is in jobs.py, progress in progress.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from aiohttp import web

from lib.errors import ModelUnreachable, WorkerError
from workers.comfyui import reruns
from workers.comfyui.api import ComfyApi
from workers.comfyui.images import ImageFormat
from workers.comfyui.jobs import Job
from workers.comfyui.outputs import JobTimings, ResultWriter, opened, outputs_of
from workers.comfyui.spool import SpooledAnswer
from workers.comfyui.storage import Bucket, UploadFailed

log = logging.getLogger(__name__)


class JobFailed(WorkerError):
    """500: a node failed, or another client interrupted the prompt. `details` are part of the answer."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details

    def body(self) -> dict[str, Any]:
        return {"error": self.message, **self.details}


class BadBucket(WorkerError):
    """422: uploading the outputs to the request's own bucket failed."""

    status = 422


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A client's request to run a workflow, and the forms of its result.

    `id` is the client's or a new one, `log_id` the one in the worker's log.
    """

    api: ComfyApi
    id: str
    log_id: str
    bucket: Bucket | None
    own_bucket: bool
    image_format: ImageFormat | None
    timings: JobTimings = field(default_factory=JobTimings)

    async def put_result(self, spool: SpooledAnswer, job: Job) -> None:
        """Write the result of the finished `job` to `spool`. Raises `WorkerError`."""
        check_history(job.entry)
        self.timings.generated()
        writer = ResultWriter(self.id, partial(opened, self.api), self.bucket, self.image_format)
        extra = {"node_errors": job.node_errors} if job.node_errors else {}
        try:
            await writer.write(spool, outputs_of(job), self.timings, extra)
        except UploadFailed as e:
            raise (BadBucket if self.own_bucket else ModelUnreachable)(str(e)) from e

    async def result(self, job: Job) -> web.Response:
        """Wait for the end of `job` and return its result as an answer. Raises `WorkerError`."""
        await reruns.finished(job)
        async with SpooledAnswer() as spool:
            await self.put_result(spool, job)
            return await spool.response()

    def failure(self, error: WorkerError) -> dict[str, Any]:
        """Log the failure of a job; return its result."""
        log.warning("request %s: %d: %s", self.log_id, error.status, error.message)
        return {
            "id": self.id,
            "message": error.message,
            "status": "failed",
            "comfyui_response": {},
            **error.body(),
            "output": [],
            "timings": self.timings.to_json(),
        }


def check_history(entry: dict[str, Any]) -> None:
    """Raise `JobFailed` (500) if the prompt with this history failed."""
    status: dict[str, Any] = entry.get("status") or {}
    if status.get("status_str", "success") == "success":
        return
    for kind, data in cast("list[tuple[str, dict[str, Any]]]", status.get("messages") or []):
        if kind == "execution_error":
            names = ("node_id", "node_type", "exception_type", "exception_message")
            details = {name: data.get(name) for name in names}
            node = f"node {data.get('node_id')} ({data.get('node_type')})"
            what = str(data.get("exception_message")).strip()
            raise JobFailed(f"{node} failed: {data.get('exception_type')}: {what}", details)
        if kind == "execution_interrupted":
            details = {name: data.get(name) for name in ("node_id", "node_type")}
            raise JobFailed("another client of ComfyUI interrupted the prompt", details)
    raise JobFailed("ComfyUI reports that the prompt failed, without a reason", {})
