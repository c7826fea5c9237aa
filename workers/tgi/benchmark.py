"""The benchmark of the TGI worker, which counts only tokens that were really generated.

TGI has no parameter that keeps a model from ending its text early. So if an answer has fewer tokens than
requested, by TGI's own count, the benchmark requests the rest with another prompt before the request counts
as done.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lib.words import some_words
from workers.tgi.data_types import TEST_TOKENS, TgiRequest
from workers.tgi.handlers import TgiHandler

if TYPE_CHECKING:
    from lib.backend import ModelCaller


@dataclass(kw_only=True)
class TgiBenchmarkHandler(TgiHandler):
    """Requests 256 tokens from `/generate`, with random prompts, and repeats until all are generated."""

    def make_benchmark_payload(self) -> TgiRequest:
        return TgiRequest.of(some_words(self.benchmark_words), max_new_tokens=TEST_TOKENS)

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: TgiRequest) -> AsyncGenerator[web.Response, None]:
        yield await self._generated(model, payload["inputs"], payload.tokens)

    async def _generated(self, model: ModelCaller, prompt: str, missing: int) -> web.Response:
        """Repeat requests until no token is `missing`. Return the last answer, or the first error."""
        while True:
            request = TgiRequest.of(prompt, max_new_tokens=missing, details=True)
            async with model.post_json(self.endpoint, request.generate_payload_json()) as answer:
                status, body = answer.status, await answer.read()
            missing -= _tokens_in(body, missing)
            if not 200 <= status < 300 or missing <= 0:
                return web.Response(status=status, body=body)
            prompt = some_words(self.benchmark_words)


def _tokens_in(body: bytes, asked: int) -> int:
    """The number of generated tokens in the answer `body`, or `asked` if it doesn't say."""
    try:
        tokens: Any = json.loads(body)["details"]["generated_tokens"]
    except (ValueError, KeyError, TypeError):
        return asked
    # Even an empty text has one token, the end of text. Accepting 0 would repeat requests forever.
    return tokens if type(tokens) is int and tokens >= 1 else asked
