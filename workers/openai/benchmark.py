"""The benchmark of the OpenAI worker, which counts only tokens that were really generated.

Owns the benchmark's requests and the counting of their tokens. The library decides when it runs and at which
concurrency.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from lib.words import some_words
from workers.openai.data_types import TEST_TOKENS, CompletionRequest, OpenAIRequest
from workers.openai.handlers import CompletionsHandler

if TYPE_CHECKING:
    from lib.backend import ModelCaller

log = logging.getLogger(__name__)

# Limit of the answers for one request. A model that needs more, because each ends early, is broken.
MAX_ANSWERS = 50


@dataclass(kw_only=True)
class OpenAIBenchmarkHandler(CompletionsHandler):
    """Requests completions of 500 tokens, with random prompts, and repeats until all are generated.

    `ignore_eos`: the model server supports this field, with which models generate beyond their end of text.
    Other servers may refuse it, and their answers may be shorter than requested. Then the tokens that are
    missing by the answer's `usage` are requested with another prompt before the request counts as done.
    """

    ignore_eos: bool = False
    _served_model: str | None = field(default=None, init=False)

    def make_benchmark_payload(self) -> OpenAIRequest:
        request: dict[str, Any] = {"prompt": some_words(self.benchmark_words), "max_tokens": TEST_TOKENS}
        return CompletionRequest({**request, "ignore_eos": True} if self.ignore_eos else request)

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: OpenAIRequest) -> AsyncGenerator[Any, None]:
        yield await self._generated(model, self.generate_payload_json(payload))

    async def _generated(self, model: ModelCaller, request: dict[str, Any]) -> web.Response:
        """Repeat `request` until all its tokens are generated. Return the last answer, or the first error."""
        if not request.get("model") and (name := await self._first_model(model)):
            request = {**request, "model": name}
        wanted: int = request["max_tokens"]
        missing = wanted
        for _ in range(MAX_ANSWERS):
            async with model.post_json(self.endpoint, {**request, "max_tokens": missing}) as answer:
                status, body = answer.status, await answer.read()
            if not 200 <= status < 300:
                return web.Response(status=status, body=body)
            missing -= _tokens_in(body, missing)
            if missing <= 0:
                return web.Response(status=status, body=body)
            request = {**request, "prompt": some_words(self.benchmark_words)}
        problem = (
            f"{MAX_ANSWERS} answers have {wanted - missing} of {wanted} tokens: the model stops too early"
        )
        return web.json_response({"error": problem}, status=502)

    async def _first_model(self, model: ModelCaller) -> str:
        """The first model in the server's list, or "" if it lists none. Some servers require a name."""
        if self._served_model is None:
            async with model.get("/v1/models") as answer:
                self._served_model = _name_in(await answer.read()) if answer.status == 200 else ""
            log.info(
                "MODEL_NAME is not set: the benchmark uses %s", self._served_model or "the server's default"
            )
        return self._served_model


def _tokens_in(body: bytes, asked: int) -> int:
    """The number of generated tokens by the answer's `usage`, or `asked` if it has none."""
    tokens = _at(_json(body), "usage", "completion_tokens")
    return tokens if isinstance(tokens, int) else asked


def _name_in(body: bytes) -> str:
    """The id of the first model in a list of models."""
    models = _at(_json(body), "data")
    name = _at(cast("list[Any]", models)[0], "id") if isinstance(models, list) and models else None
    return name if isinstance(name, str) else ""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _at(value: Any, *path: str) -> Any:
    """The member at `path` in `value`, or None."""
    for name in path:
        value = cast("Mapping[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value
