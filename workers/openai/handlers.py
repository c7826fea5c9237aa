"""The routes of the OpenAI worker: a handler for each, which calls the same path of the model server.

Owns each route's payload class, and the default model name. Requests and their checks are in data_types.py,
the benchmark in benchmark.py, errors in streams in error_events.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anyio.to_thread import run_sync

from lib.data_types import EndpointHandler, JsonDataException
from lib.errors import Invalid
from workers.openai.data_types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FileRequest,
    ImageEditRequest,
    ImageRequest,
    ModelsRequest,
    OpenAIRequest,
    RecordingRequest,
    RerankRequest,
    ResponseRequest,
    ScoreRequest,
    SpeechRequest,
)
from workers.openai.error_events import ErrorScanner

if TYPE_CHECKING:
    from lib.backend import ModelCaller


@dataclass(kw_only=True)
class OpenAIHandler(EndpointHandler[OpenAIRequest]):
    """One route, which has the same `path` on the worker and on the model server.

    `model_name` is set in requests that name no model, unless it is "". Answers are passed on unchanged,
    including streams and errors, such as the 404 of a model server without this route.
    """

    path: ClassVar[str]
    payload: ClassVar[type[OpenAIRequest]]

    model_name: str = ""
    health: str | None = None

    @property
    def endpoint(self) -> str:
        return self.path

    @property
    def healthcheck_endpoint(self) -> str | None:
        return self.health

    @classmethod
    def payload_cls(cls) -> type[OpenAIRequest]:
        return cls.payload

    def generate_payload_json(self, payload: OpenAIRequest) -> dict[str, Any]:
        return self.with_model(payload.generate_payload_json())

    def with_model(self, request: dict[str, Any]) -> dict[str, Any]:
        """`request` with a model: its own, or else `model_name`."""
        if not self.model_name or request.get("model") is not None:
            return request
        return {**request, "model": self.model_name}


class StreamingHandler(OpenAIHandler):
    """A route that streams its answer on request. An error in the stream makes the request errored."""

    def scan_answer(self) -> ErrorScanner:
        return ErrorScanner()


class CompletionsHandler(StreamingHandler):
    path = "/v1/completions"
    payload = CompletionRequest


class ChatHandler(StreamingHandler):
    path = "/v1/chat/completions"
    payload = ChatRequest


class ResponsesHandler(StreamingHandler):
    path = "/v1/responses"
    payload = ResponseRequest


class EmbeddingsHandler(OpenAIHandler):
    path = "/v1/embeddings"
    payload = EmbeddingRequest


class RerankHandler(OpenAIHandler):
    path = "/v1/rerank"
    payload = RerankRequest


class ScoreHandler(OpenAIHandler):
    path = "/v1/score"
    payload = ScoreRequest


class SpeechHandler(OpenAIHandler):
    path = "/v1/audio/speech"
    payload = SpeechRequest


class ImagesHandler(OpenAIHandler):
    path = "/v1/images/generations"
    payload = ImageRequest


class GetHandler(OpenAIHandler):
    """A route to read something by a GET, or a POST of an envelope for clients that always send one."""

    payload = ModelsRequest

    def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AbstractAsyncContextManager[Any]:
        return model.get(self.endpoint)


class ModelsHandler(GetHandler):
    path = "/v1/models"


class FileHandler(OpenAIHandler):
    """A route for requests with files, which the model server receives as a form."""

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AsyncGenerator[Any, None]:
        """Send the form. Raises `Invalid` (422) for a file that is not valid base64."""
        assert isinstance(payload, FileRequest)
        if payload.upload is not None:
            call = model.send_upload(self.endpoint, payload.upload)
        else:
            call = model.post_form(self.endpoint, await self._form(payload))
        async with call as answer:
            yield answer

    async def _form(self, payload: FileRequest) -> dict[str, Any]:
        try:
            return self.with_model(await run_sync(payload.generate_payload_multipart))
        except JsonDataException as e:
            raise Invalid({"payload": e.message}) from e


class TranscriptionsHandler(StreamingHandler, FileHandler):
    path = "/v1/audio/transcriptions"
    payload = RecordingRequest


class TranslationsHandler(StreamingHandler, FileHandler):
    path = "/v1/audio/translations"
    payload = RecordingRequest


class ImageEditsHandler(FileHandler):
    path = "/v1/images/edits"
    payload = ImageEditRequest


# All handlers, in the order of README.md.
HANDLERS: tuple[type[OpenAIHandler], ...] = (
    CompletionsHandler,
    ChatHandler,
    ResponsesHandler,
    EmbeddingsHandler,
    RerankHandler,
    ScoreHandler,
    SpeechHandler,
    TranscriptionsHandler,
    TranslationsHandler,
    ImagesHandler,
    ImageEditsHandler,
    ModelsHandler,
)
