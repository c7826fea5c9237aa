"""The native dialect: calls a stock ComfyUI as its own web page does, and answers as the wrapper does.

Owns the checks of a request, the answer for a finished prompt, and the stream of its progress. The prompt
itself is in jobs.py.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, cast

import anyio
from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import ModelCaller
from lib.data_types import JsonDataException
from lib.errors import Invalid, ModelUnreachable, WorkerError
from lib.fetch import FetchLimits
from workers.comfyui import reruns, storage
from workers.comfyui.api import ComfyApi, Prompt, PromptRefused
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.inputs import uploaded
from workers.comfyui.jobs import Job, Progress, Waiting
from workers.comfyui.outputs import (
    JobTimings,
    ResultWriter,
    as_images,
    best_of,
    files_of,
    opened,
    outputs_of,
)
from workers.comfyui.results import CANCELLED_STATUS, JobResults, StoredJob, accept
from workers.comfyui.spool import SpooledAnswer
from workers.comfyui.storage import Bucket, UploadFailed
from workers.comfyui.workflows import graph_problem

log = logging.getLogger(__name__)

SSE_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
# Proxies close connections without data for a minute. A comment is sent after this many seconds without an
# event.
SILENCE_S = 15.0

# Request ids become part of the names of uploaded files.
_REQUEST_ID = re.compile(r"[\w.:@-]{1,200}")
_DOTS = re.compile(r"\.+")
_FIELDS = ("request_id", "workflow_json", "inputs", "extra_data", "return_outputs_as_base64", "s3")
_NOT_NATIVE = "is not supported by the native dialect (COMFYUI_DIALECT): it needs the wrapper"


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


@dataclass(frozen=True)
class Native:
    """The ComfyUI at `url`. Outputs are uploaded to the request's bucket or, if it has none, to `bucket`.

    `limits` are those of input files. `results` has the asynchronous jobs.
    """

    url: str
    bucket: Bucket | None = None
    limits: FetchLimits = field(default_factory=FetchLimits)
    results: JobResults = field(default_factory=JobResults)

    def check(self, payload: GenerateInput) -> None:
        """Raise `JsonDataException` (422), which names every wrong or unsupported field, if there is one."""
        given = {name: value for name, value in payload.input.items() if value is not None}
        problems: dict[str, Any] = {name: _NOT_NATIVE for name in given if name not in _FIELDS}
        request_id = given.get("request_id", "-")
        if (
            not isinstance(request_id, str)
            or not _REQUEST_ID.fullmatch(request_id)
            or _DOTS.fullmatch(request_id)
        ):
            problems["request_id"] = "must be a string of 1 to 200 letters, digits and _.:@-"
        if "workflow_json" not in given:
            problems["workflow_json"] = "missing parameter"
        elif problem := graph_problem(given["workflow_json"]):
            problems["workflow_json"] = problem
        else:
            problems |= _file_problems(payload)
        for name, kind, words in (
            ("extra_data", dict, "an object"),
            ("return_outputs_as_base64", bool, "a boolean"),
        ):
            if name in given and not isinstance(given[name], kind):
                problems[name] = f"must be {words}"
        if "s3" in given and (problem := _s3_problem(given["s3"])):
            problems["s3"] = problem
        others: dict[str, Any] = dict.fromkeys(payload.others, _NOT_NATIVE)
        if problems or others:
            raise JsonDataException({**({"input": problems} if problems else {}), **others})

    @asynccontextmanager
    async def generate(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run the workflow. The answer is the result with all outputs."""
        request = self._request(model, payload)
        try:
            async with self._job(request, payload) as job:
                response = await request.result(job)
        except PromptRefused as e:
            response = e.answer
        except Invalid:
            raise
        except WorkerError as e:
            response = web.json_response(request.failure(e), status=e.status)
        yield response

    @asynccontextmanager
    async def stream(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AsyncGenerator[web.StreamResponse | ProgressStream, None]:
        """Run the workflow and stream its progress. Leaving the block removes an unfinished prompt."""
        request = self._request(model, payload)
        try:
            async with self._job(request, payload) as job:
                yield ProgressStream(request, job)
        except PromptRefused as e:
            yield e.answer

    @asynccontextmanager
    async def start(
        self, model: ModelCaller, payload: GenerateInput
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Submit the workflow and answer with 202. The block ends when the job has ended."""
        request = self._request(model, payload)
        stored = self.results.begin(request.id)
        answer: web.StreamResponse | None = None
        try:
            with stored.scope:
                try:
                    async with self._job(request, payload) as job:
                        answer = await accept(model.client_request, stored.to_json())
                        await self._keep_result(request, job, stored)
                except PromptRefused as e:
                    answer = answer or e.answer
                except WorkerError as e:
                    if answer is None:
                        raise
                    await self._keep(stored, "failed", e.status, request.failure(e))
                    if model.client_request is not None and e.status >= 500:
                        model.client_request["outcome"] = "errored"
            if stored.scope.cancelled_caught:
                cancelled = {**stored.to_json(), "message": "Request cancelled", "status": "cancelled"}
                await self._keep(stored, "cancelled", CANCELLED_STATUS, cancelled)
                answer = answer or web.json_response(cancelled, status=CANCELLED_STATUS)
        finally:
            if stored.path is None:
                self.results.forget(stored.id)
        assert answer is not None
        yield answer

    @asynccontextmanager
    async def result(self, model: ModelCaller, job_id: str) -> AsyncGenerator[web.StreamResponse, None]:
        """The result of an asynchronous job, 202 while it goes on, 404 for one that is not known."""
        stored = self.results.find(job_id)
        if stored is None:
            yield _unknown_job(job_id)
        elif stored.path is None:
            yield web.json_response(stored.to_json(), status=202)
        else:
            if model.client_request is not None:
                model.client_request["outcome"] = "served"  # whatever became of the job
            file = await in_thread(stored.path.open, "rb")  # the answer closes it
            yield web.Response(status=stored.http_status, body=file, content_type="application/json")

    @asynccontextmanager
    async def cancel(self, model: ModelCaller, job_id: str) -> AsyncGenerator[web.StreamResponse, None]:
        """Cancel an asynchronous job that has not ended."""
        stored = self.results.find(job_id)
        if stored is None:
            yield _unknown_job(job_id)
        elif stored.path is not None:
            known = {"message": f"Request {job_id} is already {stored.status}", "status": stored.status}
            yield web.json_response(known)
        else:
            stored.status = "cancelled"
            stored.scope.cancel()
            message = {"message": f"Successfully cancelled request {job_id}", "status": "cancelled"}
            yield web.json_response(message)

    @asynccontextmanager
    async def queue_info(self, model: ModelCaller) -> AsyncGenerator[web.StreamResponse, None]:
        """The lengths of the queues. ComfyUI has one."""
        queue = await ComfyApi(model, self.url).queue()
        sizes = {"preprocess": 0, "generation": len(queue.pending), "postprocess": 0}
        yield web.json_response({f"{name}_queue_size": size for name, size in sizes.items()})

    async def _keep_result(self, request: GenerateRequest, job: Job, stored: StoredJob) -> None:
        async with aclosing(reruns.follow(job)) as news:
            async for progress in news:
                if progress is not None and not isinstance(progress, Waiting):
                    stored.status = "processing"
        async with SpooledAnswer() as spool:
            await request.put_result(spool, job)
            await self.results.keep(stored, "completed", 200, spool)

    async def _keep(self, stored: StoredJob, status: str, http_status: int, result: dict[str, Any]) -> None:
        async with SpooledAnswer() as spool:
            await spool.put(json.dumps(result).encode())
            await self.results.keep(stored, status, http_status, spool)

    @asynccontextmanager
    async def images(
        self, model: ModelCaller, graph: dict[str, Any]
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run `graph`, whose placeholders are filled in. The answer has its images as data URIs."""
        api = ComfyApi(model, self.url)
        try:
            async with Job.submitted(api, Prompt(graph)) as job:
                _check(await reruns.finished(job))
                chosen = best_of(files_of(job))
                response = await as_images([partial(opened, api, output) for output in chosen])
        except PromptRefused as e:
            response = e.answer
        yield response

    @asynccontextmanager
    async def _job(self, request: GenerateRequest, payload: GenerateInput) -> AsyncGenerator[Job, None]:
        """Upload the input files and submit the graph. Raises the errors of both."""
        try:
            workflow = payload.workflow_with_files()
        except JsonDataException as e:  # where the dialect was not yet known when the payload was read
            raise Invalid({"payload": e.message}) from e
        async with (
            uploaded(request.api, workflow, self.limits, payload.form) as graph,
            Job.submitted(request.api, Prompt(graph, payload.input.get("extra_data") or {})) as job,
        ):
            yield job

    def _request(self, model: ModelCaller, payload: GenerateInput) -> GenerateRequest:
        given = payload.input
        own = given.get("s3")
        in_base64 = given.get("return_outputs_as_base64") or not payload.uploads
        default = None if in_base64 else self.bucket
        return GenerateRequest(
            api=ComfyApi(model, self.url),
            id=given.get("request_id") or str(uuid.uuid4()),
            log_id=model.request_id or "of the benchmark",
            bucket=storage.bucket_in(own) if own else default,
            own_bucket=bool(own),
        )


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
    timings: JobTimings = field(default_factory=JobTimings)

    async def put_result(self, spool: SpooledAnswer, job: Job) -> None:
        """Write the result of the finished `job` to `spool`. Raises `WorkerError`."""
        _check(job.entry)
        self.timings.generated()
        writer = ResultWriter(self.id, partial(opened, self.api), self.bucket)
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


@dataclass
class ProgressStream:
    """The answer to `/generate/stream`: server-sent events, of which `final_result` is the last."""

    request: GenerateRequest
    job: Job
    _last_s: float = field(init=False, default_factory=anyio.current_time)

    async def send(self, client_request: web.Request) -> web.StreamResponse:
        """Send the whole answer. A failure is in `final_result`; one with status 5xx counts as errored."""
        response = web.StreamResponse(headers=SSE_HEADERS)
        await response.prepare(client_request)
        await self._write(response, self._event("queued", "Request queued"))
        async with SpooledAnswer() as spool:
            try:
                async with aclosing(reruns.follow(self.job)) as news:
                    async for progress in news:
                        await self._send_progress(response, progress)
                await self._put_final(spool)
            except WorkerError as e:
                if e.status >= 500:
                    client_request["outcome"] = "errored"
                result = {"status": "final_result", "result": self.request.failure(e)}
                await response.write(
                    _sse({"request_id": self.request.id, **result, "elapsed_time": self._elapsed_s})
                )
            else:
                async for chunk in spool.chunks():
                    await response.write(chunk)
        await response.write_eof()
        return response

    async def _put_final(self, spool: SpooledAnswer) -> None:
        head = json.dumps({"request_id": self.request.id, "status": "final_result"})
        await spool.put(f'data: {head[:-1]}, "result": '.encode())
        await self.request.put_result(spool, self.job)
        await spool.put(f', "elapsed_time": {self._elapsed_s}}}\n\n'.encode())

    async def _send_progress(self, response: web.StreamResponse, progress: Progress | None) -> None:
        if progress is not None:
            await self._write(response, self._progress(progress))
        elif anyio.current_time() - self._last_s >= SILENCE_S:
            await self._write(response, b": still working\n\n")

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        self._last_s = anyio.current_time()
        await response.write(data)

    def _progress(self, progress: Progress) -> bytes:
        if isinstance(progress, Waiting):
            place = {
                "current_queue": "generation",
                "position": progress.position,
                "queue_size": progress.size,
            }
            return self._event("queued", f"{progress.position} prompts before this one", queue_position=place)
        if not progress.node_id:
            return self._event("processing", "Execution started")
        node = {"id": progress.node_id, "type": progress.node_type}
        if not progress.steps:
            return self._event("processing", f"Processing node: {progress.node_id}", node=node)
        return self._event(
            "processing",
            f"Processing node: {progress.node_id}, step {progress.step} of {progress.steps}",
            node=node,
            step=progress.step,
            steps=progress.steps,
        )

    def _event(self, status: str, message: str, **more: Any) -> bytes:
        return _sse(
            {
                "request_id": self.request.id,
                "status": status,
                "message": message,
                "timestamp": datetime.now(timezone.utc).replace(tzinfo=None).isoformat(),
                "elapsed_time": self._elapsed_s,
                **more,
            }
        )

    @property
    def _elapsed_s(self) -> float:
        return round(self.request.timings.elapsed_s, 3)


def _unknown_job(job_id: str) -> web.Response:
    result = {**StoredJob(job_id).to_json(), "message": "Request ID not found", "status": "failed"}
    return web.json_response(result, status=404)


def _check(entry: dict[str, Any]) -> None:
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


def _file_problems(payload: GenerateInput) -> dict[str, Any]:
    """The problems of the input files, as fields of `input`."""
    try:
        payload.workflow_with_files()
    except JsonDataException as e:
        return e.message["input"]
    return {}


def _s3_problem(given: Any) -> dict[str, str] | str | None:
    if not isinstance(given, dict):
        return "must be an object"
    if not storage.is_installed():
        return storage.NOT_INSTALLED
    return storage.problems(cast("dict[str, Any]", given)) or None


def _sse(message: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(message).encode() + b"\n\n"
