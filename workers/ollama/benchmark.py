"""The benchmark of the Ollama worker, which counts the tokens that are generated, as they come.

Owns the benchmark's requests. The tokens are counted in workers/openai/token_stream.py. Ollama has no option
that keeps a model from ending its text early: such an answer counts as the tokens that it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from workers.ollama.data_types import OllamaRequest
from workers.ollama.handlers import OllamaGenerateHandler
from workers.openai.data_types import OpenAIRequest
from workers.openai.token_stream import AnswerFormat, count_tokens, member

if TYPE_CHECKING:
    from lib.backend import ModelCaller

# A line has text of the answer or, before it, of what the model thinks.
GENERATION = AnswerFormat(
    token=lambda line: member(line, "response") or member(line, "thinking"),
    usage=lambda line: member(line, "eval_count"),
    is_ndjson=True,
)


@dataclass(kw_only=True)
class OllamaBenchmarkHandler(OllamaGenerateHandler):
    """Requests streams of 500 tokens from `/api/generate`, with random prompts."""

    def make_benchmark_payload(self) -> OpenAIRequest:
        return OllamaRequest.of_words(self.benchmark_words)

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: OpenAIRequest
    ) -> AsyncGenerator[web.Response, None]:
        async with model.post_json(self.endpoint, self.generate_payload_json(payload)) as answer:
            outcome = await count_tokens(model, answer, GENERATION)
        yield outcome
