"""The benchmark of the TGI worker, which counts the tokens that are generated, as they come.

Owns the benchmark's requests. The tokens are counted in workers/openai/token_stream.py. TGI has no parameter
that keeps a model from ending its text early: such an answer counts as the tokens that it has.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from lib.words import some_words
from workers.openai.token_stream import AnswerFormat, count_tokens, member
from workers.tgi.data_types import TEST_TOKENS, TgiRequest
from workers.tgi.handlers import TgiStreamHandler

if TYPE_CHECKING:
    from lib.backend import ModelCaller

# An event has a token. Its text may be empty, so that the object around it matters. The last event, like an
# answer that isn't streamed, has the whole text and the details.
GENERATION = AnswerFormat(
    token=lambda event: member(event, "token") or member(event, "generated_text"),
    usage=lambda event: member(event, "details", "generated_tokens"),
)


@dataclass(kw_only=True)
class TgiBenchmarkHandler(TgiStreamHandler):
    """Requests 256 tokens from `/generate_stream`, with random prompts."""

    def make_benchmark_payload(self) -> TgiRequest:
        prompt = some_words(self.benchmark_words)
        return TgiRequest.of(prompt, max_new_tokens=TEST_TOKENS, details=True)

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: TgiRequest) -> AsyncGenerator[web.Response, None]:
        async with model.post_json(self.endpoint, payload.generate_payload_json()) as answer:
            outcome = await count_tokens(model, answer, GENERATION)
        yield outcome
