"""The native dialect: calls a stock ComfyUI as its own web page does, and answers as the wrapper does.

Owns the checks of a request, and the calls for each route. The answer for a finished prompt is in
generate_request.py, the stream of its progress in progress.py, the prompt itself in jobs.py.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import ModelCaller
from lib.data_types import JsonDataException
from lib.errors import Invalid, WorkerError
from lib.fetch import FetchLimits
from workers.comfyui import reruns, storage
from workers.comfyui.api import ComfyApi, PromptRefused, Submission
from workers.comfyui.data_types import GenerateInput
from workers.comfyui.generate_request import GenerateRequest, check_history
from workers.comfyui.images import ImageFormat, format_in, format_problems
from workers.comfyui.inputs import uploaded
from workers.comfyui.jobs import Job, Waiting
from workers.comfyui.outputs import (
    as_images,
    best_of,
    files_of,
    opened,
)
from workers.comfyui.progress import ProgressStream
from workers.comfyui.results import CANCELLED_STATUS, JobResults, StoredJob, accept
from workers.comfyui.spool import SpooledAnswer
from workers.comfyui.storage import Bucket
from workers.comfyui.workflows import graph_problem

log = logging.getLogger(__name__)

# Request ids become part of the names of uploaded files.
_REQUEST_ID = re.compile(r"[\w.:@-]{1,200}")
_DOTS = re.compile(r"\.+")
_FIELDS = (
    *("request_id", "workflow_json", "inputs", "extra_data", "return_outputs_as_base64", "s3"),
    *("output_format", "output_quality"),
)
_NOT_NATIVE = "is not supported by the native dialect (COMFYUI_DIALECT): it needs the wrapper"


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
        problems |= format_problems(given)
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
        self, model: ModelCaller, graph: dict[str, Any], image_format: ImageFormat | None = None
    ) -> AsyncGenerator[web.StreamResponse, None]:
        """Run `graph`, whose placeholders are filled in. The answer has its images as data URIs."""
        api = ComfyApi(model, self.url)
        try:
            async with Job.submitted(api, Submission(graph)) as job:
                check_history(await reruns.finished(job))
                chosen = best_of(files_of(job))
                response = await as_images([partial(opened, api, output) for output in chosen], image_format)
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
            Job.submitted(request.api, Submission(graph, payload.input.get("extra_data") or {})) as job,
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
            image_format=format_in(given),
        )


def _unknown_job(job_id: str) -> web.Response:
    result = {**StoredJob(job_id).to_json(), "message": "Request ID not found", "status": "failed"}
    return web.json_response(result, status=404)


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
