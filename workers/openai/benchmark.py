"""The benchmark of the OpenAI worker, which counts the tokens that are generated, as they come.

Owns the benchmark's requests. The tokens are counted in token_stream.py. The library decides when the
benchmark runs and with how many requests at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lib.words import some_words
from workers.openai.data_types import TEST_TOKENS, CompletionRequest, OpenAIRequest
from workers.openai.handlers import CompletionsHandler
from workers.openai.token_stream import AnswerFormat, count_tokens, member

if TYPE_CHECKING:
    from lib.backend import ModelCaller

log = logging.getLogger(__name__)

STREAM = {"stream": True, "stream_options": {"include_usage": True}}
# Fields of the stream that a server may not know, the least common one first; and its answers then.
OPTIONAL = ("stream_options", "stream")
REFUSALS = frozenset({400, 422})

COMPLETION = AnswerFormat(
    token=lambda event: member(event, "choices", 0, "text"),
    usage=lambda event: member(event, "usage", "completion_tokens"),
)


@dataclass(kw_only=True)
class OpenAIBenchmarkHandler(CompletionsHandler):
    """Requests streamed completions of 500 tokens, with random prompts.

    `ignore_eos`: the model server supports this field, with which models generate beyond their end of text.
    Other servers may refuse it. Their answers may be shorter, and count as the tokens that they have.
    """

    ignore_eos: bool = False
    _served_model: str | None = field(default=None, init=False)
    _left_out: int = field(default=0, init=False)  # as many of `OPTIONAL`, since the server refuses them

    @property
    def served_model(self) -> str | None:
        """The model that the server has named, for the saved result; None if it was not asked."""
        return self._served_model or None

    def make_benchmark_payload(self) -> OpenAIRequest:
        request = {"prompt": some_words(self.benchmark_words), "max_tokens": TEST_TOKENS, **STREAM}
        return CompletionRequest({**request, "ignore_eos": True} if self.ignore_eos else request)

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AsyncGenerator[Any, None]:
        request = self.generate_payload_json(payload)
        if not request.get("model") and (name := await self._first_model(model)):
            request = {**request, "model": name}
        yield await self._ask(model, request, self._left_out)

    async def _ask(self, model: ModelCaller, request: dict[str, Any], left_out: int) -> web.Response:
        """Send `request`, again with fewer of the `OPTIONAL` fields if it is refused; remember what works."""
        fields = {name: value for name, value in request.items() if name not in OPTIONAL[:left_out]}
        async with model.post_json(self.endpoint, fields) as answer:
            outcome = await count_tokens(model, answer, COMPLETION)
        if answer.status in REFUSALS and left_out < len(OPTIONAL):
            return await self._ask(model, request, left_out + 1)
        if 200 <= answer.status < 300:
            self._left_out = left_out
        return outcome

    async def _first_model(self, model: ModelCaller) -> str:
        """The first model in the server's list, or "" if it lists none. Some servers require a name."""
        if self._served_model is None:
            async with model.get("/v1/models") as answer:
                self._served_model = _name_in(await answer.read()) if answer.status == 200 else ""
            log.info(
                "MODEL_NAME is not set: the benchmark uses %s", self._served_model or "the server's default"
            )
        return self._served_model


def _name_in(body: bytes) -> str:
    """The id of the first model in a list of models."""
    try:
        name = member(json.loads(body), "data", 0, "id")
    except (ValueError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""
