"""The benchmark of the TGI worker: requests of which every token that counts was generated.

TGI has no parameter that keeps a model from ending its text early. So what an answer lacks, by its own
count, is asked for again with another prompt, before the request counts as done.
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
    """Asks `/generate` for 256 tokens, with prompts that differ, and goes on until so many are there."""

    def make_benchmark_payload(self) -> TgiRequest:
        return TgiRequest.of(some_words(self.benchmark_words), max_new_tokens=TEST_TOKENS)

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: TgiRequest) -> AsyncGenerator[web.Response, None]:
        yield await self._generated(model, payload["inputs"], payload.tokens)

    async def _generated(self, model: ModelCaller, prompt: str, missing: int) -> web.Response:
        """The last answer, once no token is `missing`; or the first that is an error."""
        while True:
            request = TgiRequest.of(prompt, max_new_tokens=missing, details=True)
            async with model.post_json(self.endpoint, request.generate_payload_json()) as answer:
                status, body = answer.status, await answer.read()
            missing -= _tokens_in(body, missing)
            if not 200 <= status < 300 or missing <= 0:
                return web.Response(status=status, body=body)
            prompt = some_words(self.benchmark_words)


def _tokens_in(body: bytes, asked: int) -> int:
    """How many tokens the answer says that it has; all that were `asked` for where it doesn't."""
    try:
        tokens: Any = json.loads(body)["details"]["generated_tokens"]
    except (ValueError, KeyError, TypeError):
        return asked
    # Even an empty text is a token: that of its end. With less, this would never come to an end.
    return tokens if type(tokens) is int and tokens >= 1 else asked
