"""The routes of Ollama: its own API, and OpenAI's. Routes that change its models are left out.

Owns the detection of answers that failed after status 200. Requests are in data_types.py.
"""

from __future__ import annotations

import re
from typing import Any

from workers.ollama.data_types import OllamaEmbeddingRequest, OllamaRequest
from workers.openai import handlers
from workers.openai.data_types import ModelsRequest, OpenAIRequest
from workers.openai.error_events import ErrorScanner, has_error
from workers.openai.handlers import GetHandler, OpenAIHandler

# Quotation marks inside a string of JSON have a backslash before them: a model's text doesn't look like it.
_DONE = re.compile(rb'"done":\s*true')
# More than the text above has, so that it is found if it is split between two chunks.
_KEPT_BYTES = 32


class NdjsonScanner(ErrorScanner):
    """Looks through one streamed answer, whose lines are JSON objects.

    It has failed if a line has an `error`, or if no line says `"done": true`, as the last one must.
    """

    def __init__(self) -> None:
        super().__init__()
        self._end = b""
        self._is_done = False
        self._is_streamed = False

    def add(self, chunk: bytes) -> None:
        super().add(chunk)
        self._is_streamed = True
        if not self._is_done:
            text = self._end + chunk
            self._is_done = _DONE.search(text) is not None
            self._end = text[-_KEPT_BYTES:]

    def is_failure(self, line: bytes) -> bool:
        return has_error(line)

    def has_failed(self) -> bool:
        return super().has_failed() or (self._is_streamed and not self._is_done)


class OllamaHandler(OpenAIHandler):
    """A route of Ollama's own API. Whether a model stays loaded is decided by Ollama's settings.

    A client's `keep_alive` is removed: with 0, each of its requests would unload the model of all others.
    """

    def generate_payload_json(self, payload: OpenAIRequest) -> dict[str, Any]:
        request = super().generate_payload_json(payload)
        return {name: value for name, value in request.items() if name != "keep_alive"}


class OllamaStreamingHandler(OllamaHandler):
    """A route that streams its answer unless `stream` is false."""

    payload = OllamaRequest

    def scan_answer(self) -> NdjsonScanner:
        return NdjsonScanner()


class OllamaGenerateHandler(OllamaStreamingHandler):
    path = "/api/generate"


class OllamaChatHandler(OllamaStreamingHandler):
    path = "/api/chat"


class OllamaEmbedHandler(OllamaHandler):
    path = "/api/embed"
    payload = OllamaEmbeddingRequest


class OllamaEmbeddingsHandler(OllamaEmbedHandler):
    path = "/api/embeddings"


class ShowHandler(OllamaHandler):
    path = "/api/show"
    payload = ModelsRequest


class TagsHandler(GetHandler):
    path = "/api/tags"


class LoadedModelsHandler(GetHandler):
    path = "/api/ps"


class VersionHandler(GetHandler):
    path = "/api/version"


# All handlers, in the order of README.md.
HANDLERS: tuple[type[OpenAIHandler], ...] = (
    OllamaGenerateHandler,
    OllamaChatHandler,
    OllamaEmbedHandler,
    OllamaEmbeddingsHandler,
    ShowHandler,
    TagsHandler,
    LoadedModelsHandler,
    VersionHandler,
    handlers.CompletionsHandler,
    handlers.ChatHandler,
    handlers.ResponsesHandler,
    handlers.EmbeddingsHandler,
    handlers.ModelsHandler,
)
