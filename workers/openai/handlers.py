"""The routes of the OpenAI worker: for each a handler, which sends its requests to the same path.

Owns which route takes which payload, and the model's name where a request has none. What a request must be is
in data_types.py; the benchmark is benchmark.py's.
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

if TYPE_CHECKING:
    from lib.backend import ModelCaller


@dataclass(kw_only=True)
class OpenAIHandler(EndpointHandler[OpenAIRequest]):
    """One route, at `path` on the worker and on the model server alike.

    `model_name` goes into requests that name no model; "": they stay as they are. The answer is passed on as
    it comes, streamed or whole, errors included: so is the 404 of an engine that lacks the route.
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
        """`request`, and which model is meant where it doesn't say so."""
        if not self.model_name or request.get("model") is not None:
            return request
        return {**request, "model": self.model_name}


class CompletionsHandler(OpenAIHandler):
    path = "/v1/completions"
    payload = CompletionRequest


class ChatHandler(OpenAIHandler):
    path = "/v1/chat/completions"
    payload = ChatRequest


class ResponsesHandler(OpenAIHandler):
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


class ModelsHandler(OpenAIHandler):
    """`GET /v1/models`; a POST with an envelope asks the same, for clients that can send nothing else."""

    path = "/v1/models"
    payload = ModelsRequest

    def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AbstractAsyncContextManager[Any]:
        return model.get(self.endpoint)


class FileHandler(OpenAIHandler):
    """A route whose requests have files, which the model server takes as a form."""

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AsyncGenerator[Any, None]:
        """Raises `Invalid` (422) for a file that can't be decoded."""
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


class TranscriptionsHandler(FileHandler):
    path = "/v1/audio/transcriptions"
    payload = RecordingRequest


class TranslationsHandler(FileHandler):
    path = "/v1/audio/translations"
    payload = RecordingRequest


class ImageEditsHandler(FileHandler):
    path = "/v1/images/edits"
    payload = ImageEditRequest


# All of them, in the order of the README.
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
