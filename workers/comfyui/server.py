"""The comfyui worker: `python -m workers.comfyui.server`.

Owns the routes and their handlers, which are the same for all dialects. Payloads are in data_types.py,
variables in settings.py, the dialects in native.py, wrapper.py and runsync.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from aiohttp import web

from lib.backend import Backend, ModelCaller
from lib.data_types import EndpointHandler, JsonDataException
from lib.errors import Invalid
from lib.server import run_worker
from lib.uploads import Upload
from lib.words import some_words
from workers.comfyui.api import ComfyApi, File
from workers.comfyui.data_types import (
    TEST_PROMPT_WORDS,
    CustomWorkflowInput,
    GenerateInput,
    JobQuery,
    PromptInput,
    QueueQuery,
    ViewQuery,
)
from workers.comfyui.dialects import Choice
from workers.comfyui.inputs import uploaded
from workers.comfyui.progress import ProgressStream
from workers.comfyui.settings import PROMPT_ROUTE, SYNC_ROUTE, ComfySettings
from workers.comfyui.workflows import RANDOM_INTS, fill, reseeded
from workers.comfyui.workload import graph_work
from workers.comfyui.wrapper import FinalResultScanner

P = TypeVar("P")
GraphInput = TypeVar("GraphInput", bound="PromptInput | CustomWorkflowInput")

# ComfyUI supports ranges and conditional requests (RFC 9110, sections 13 and 14) for files.
_VIEW_HEADERS = ("Range", "If-Range", "If-None-Match", "If-Modified-Since")
# Few runs suffice: each takes seconds, and ComfyUI executes one prompt at a time.
BENCHMARK_RUNS = 3


@dataclass(kw_only=True)
class ComfyHandler(EndpointHandler[P]):
    """The base of all routes. `path` is the worker's; the dialect chooses the model server's path."""

    choice: Choice
    path: str
    benchmark_runs: int = BENCHMARK_RUNS

    @property
    def settings(self) -> ComfySettings:
        return self.choice.settings

    @property
    def endpoint(self) -> str:
        return self.path

    @property
    def healthcheck_endpoint(self) -> str | None:
        """The health check. None while the dialect is unknown: `Choice.detect` watches the health then."""
        return self.settings.model.health if self.settings.dialect else None

    @property
    def benchmark_name(self) -> str:
        """The saved benchmark's name. Another dialect, model or graph needs a new measurement."""
        graph = json.dumps(self.settings.benchmark_graph, sort_keys=True).encode()
        digest = hashlib.sha256(graph).hexdigest()[:16]
        return f"comfyui {self.path} {self.choice.name} {self.settings.comfy_model} {digest}"


@dataclass(kw_only=True)
class GenerateSyncHandler(ComfyHandler[GenerateInput]):
    """`/generate/sync`: runs a workflow and answers with all outputs."""

    @classmethod
    def payload_cls(cls) -> type[GenerateInput]:
        return GenerateInput

    def read_payload(self, req_data: dict[str, Any]) -> GenerateInput:
        """Read the payload and check that the dialect supports it. Raises `JsonDataException` (422)."""
        return self._checked(super().read_payload(req_data))

    def read_upload(self, upload: Upload) -> GenerateInput:
        """Read the payload in a form, as `read_payload` does."""
        return self._checked(super().read_upload(upload))

    def make_benchmark_payload(self) -> GenerateInput:
        """Return the benchmark's graph with a new prompt and seed, since ComfyUI caches equal prompts."""
        values = {"PROMPT": some_words(TEST_PROMPT_WORDS), "SEED": random.randrange(RANDOM_INTS)}
        graph = reseeded(fill(self.settings.benchmark_graph, values))
        payload = self._with_benchmark_work(GenerateInput({"workflow_json": graph}))
        payload.uploads = False
        return payload

    def call_model(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.generate(model, payload)

    def _checked(self, payload: GenerateInput) -> GenerateInput:
        if self.choice.known:
            try:
                self.choice.dialect.check(payload)
            except JsonDataException as e:
                raise JsonDataException({"payload": e.message}) from e
        return self._with_benchmark_work(payload)

    def _with_benchmark_work(self, payload: GenerateInput) -> GenerateInput:
        payload.benchmark_work = graph_work(self.settings.benchmark_graph)
        return payload


@dataclass(kw_only=True)
class StreamHandler(GenerateSyncHandler):
    """`/generate/stream`: runs a workflow and streams its progress and the outputs."""

    def call_model(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.stream(model, payload)

    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        if isinstance(model_response, ProgressStream):
            return await model_response.send(client_request)
        return await super().generate_client_response(client_request, model_response)

    def scan_answer(self) -> FinalResultScanner:
        return FinalResultScanner()


@dataclass(kw_only=True)
class StartHandler(GenerateSyncHandler):
    """`POST /generate`: begins a workflow and answers with its id. It waits in the model server's queue."""

    allow_parallel_requests: bool | None = True
    on_disconnect: Literal["cancel", "finish"] = "finish"

    def call_model(self, model: ModelCaller, payload: GenerateInput) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.start(model, payload)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        with self.choice.results.opened():
            yield


@dataclass(kw_only=True)
class JobHandler(ComfyHandler[JobQuery]):
    """The base of the routes of asynchronous jobs that exist. They don't wait in a queue."""

    allow_parallel_requests: bool | None = True

    @classmethod
    def payload_cls(cls) -> type[JobQuery]:
        return JobQuery


class ResultHandler(JobHandler):
    """`GET /result/{id}`: the result of a job."""

    def call_model(self, model: ModelCaller, payload: JobQuery) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.result(model, job_id_in(model))


class CancelHandler(JobHandler):
    """`POST /cancel/{id}`: ends a job."""

    def call_model(self, model: ModelCaller, payload: JobQuery) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.cancel(model, job_id_in(model))


@dataclass(kw_only=True)
class QueueInfoHandler(ComfyHandler[QueueQuery]):
    """`GET /queue-info`: the lengths of the model server's queues."""

    allow_parallel_requests: bool | None = True

    @classmethod
    def payload_cls(cls) -> type[QueueQuery]:
        return QueueQuery

    def call_model(self, model: ModelCaller, payload: QueueQuery) -> AbstractAsyncContextManager[Any]:
        return self.choice.dialect.queue_info(model)


def job_id_in(model: ModelCaller) -> str:
    """The id of a job in the path of the client's request."""
    assert model.client_request is not None
    return model.client_request.match_info["id"]


@dataclass(kw_only=True)
class GraphHandler(ComfyHandler[GraphInput]):
    """The base of the routes that make images with the worker's model and the payload's graph."""

    def read_payload(self, req_data: dict[str, Any]) -> GraphInput:
        return self._with_model(super().read_payload(req_data))

    def read_upload(self, upload: Upload) -> GraphInput:
        return self._with_model(super().read_upload(upload))

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: GraphInput) -> AsyncGenerator[Any, None]:
        """Upload the input files to ComfyUI, also to that behind a wrapper, and run the workflow."""
        try:
            workflow = payload.workflow_with_files()
        except JsonDataException as e:  # a file in a custom field
            raise Invalid({"payload": e.message}) from e
        api = ComfyApi(model, self.choice.comfyui_url)
        async with (
            uploaded(api, workflow, self.settings.input_limits, payload.form) as graph,
            self.choice.dialect.images(model, graph, payload.image_format) as answer,
        ):
            yield answer

    def _with_model(self, payload: GraphInput) -> GraphInput:
        payload.model = self.settings.comfy_model
        return payload


@dataclass(kw_only=True)
class PromptHandler(GraphHandler[PromptInput]):
    """`/prompt`: makes images with the default workflow."""

    @classmethod
    def payload_cls(cls) -> type[PromptInput]:
        return PromptInput

    def make_benchmark_payload(self) -> PromptInput:
        width, height = self.settings.benchmark_size
        prompt = some_words(TEST_PROMPT_WORDS)
        payload = PromptInput(prompt, width, height, self.settings.benchmark_steps)
        payload.model = self.settings.comfy_model
        return payload


@dataclass(kw_only=True)
class CustomWorkflowHandler(GraphHandler[CustomWorkflowInput]):
    """`/custom-workflow`: makes images with the client's workflow."""

    @classmethod
    def payload_cls(cls) -> type[CustomWorkflowInput]:
        return CustomWorkflowInput


@dataclass(kw_only=True)
class ViewHandler(ComfyHandler[ViewQuery]):
    """`GET /view`: passes on a file from ComfyUI. It doesn't wait in the queue of prompts."""

    allow_parallel_requests: bool | None = True

    @classmethod
    def payload_cls(cls) -> type[ViewQuery]:
        return ViewQuery

    def call_model(self, model: ModelCaller, payload: ViewQuery) -> AbstractAsyncContextManager[Any]:
        file = File(payload.filename, payload.subfolder, payload.type)
        sent: Mapping[str, str] = {} if model.client_request is None else model.client_request.headers
        headers = {name: sent[name] for name in _VIEW_HEADERS if name in sent}
        return model.request("GET", f"{self.choice.comfyui_url}/view?{file.query}", None, headers)


def build(environ: Mapping[str, str]) -> tuple[Backend, list[web.RouteDef]]:
    """Return the backend and the routes. Raises `SettingsError`, which names every wrong variable."""
    settings = ComfySettings.from_env(environ)
    choice = Choice(settings)
    wait: dict[str, Any] = {"choice": choice, "max_queue_time": settings.model.max_queue_time}

    generate = GenerateSyncHandler(path=SYNC_ROUTE, **wait)
    stream = StreamHandler(path="/generate/stream", **wait)
    prompt = PromptHandler(path=PROMPT_ROUTE, **wait)
    custom_workflow = CustomWorkflowHandler(path="/custom-workflow", **wait)
    start = StartHandler(path="/generate", **wait)
    view = ViewHandler(path="/view", choice=choice)
    result = ResultHandler(path="/result/{id}", choice=choice)
    cancel = CancelHandler(path="/cancel/{id}", choice=choice)
    queue_info = QueueInfoHandler(path="/queue-info", choice=choice)

    backend = Backend(
        model_server_url=settings.model.server_url,
        model_log_file=settings.model.log,
        allow_parallel_requests=False,  # they share the slots below
        benchmark_handler=prompt if settings.benchmark_route == PROMPT_ROUTE else generate,
        log_actions=settings.model.log_actions,
    )
    backend.lanes.share_slots(settings.concurrency)
    if not choice.known:
        backend.lifecycle = partial(choice.detect, backend)

    routes = [
        web.post(generate.path, backend.create_handler(generate)),
        web.post(stream.path, backend.create_handler(stream)),
        web.post(prompt.path, backend.create_handler(prompt)),
        web.post(custom_workflow.path, backend.create_handler(custom_workflow)),
        web.get(view.path, backend.create_handler(view)),
        web.post(start.path, backend.create_handler(start)),
        web.get(result.path, backend.create_handler(result)),
        web.post(cancel.path, backend.create_handler(cancel)),
        web.get(queue_info.path, backend.create_handler(queue_info)),
    ]
    return backend, routes


if __name__ == "__main__":
    run_worker(build, os.environ)
