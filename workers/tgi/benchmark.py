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
from workers.tgi.data_types import TEST_TOKENS, InputData
from workers.tgi.handlers import GenerateHandler

if TYPE_CHECKING:
    from lib.model.connection import ModelCaller

# A model that needs more answers than this for its tokens is broken.
MAX_ANSWERS = 50


@dataclass(kw_only=True)
class BenchmarkHandler(GenerateHandler):
    """Asks `/generate` for 256 tokens, with prompts that differ, and goes on until so many are there."""

    def make_benchmark_payload(self) -> InputData:
        return InputData(some_words(self.benchmark_words), {"max_new_tokens": TEST_TOKENS})

    @asynccontextmanager
    async def call_model(self, model: ModelCaller, payload: InputData) -> AsyncGenerator[web.Response, None]:
        yield await self._generated(model, payload.parameters["max_new_tokens"], payload.inputs)

    async def _generated(self, model: ModelCaller, wanted: int, prompt: str) -> web.Response:
        """The last answer, once `wanted` tokens are generated; or the first that is an error."""
        missing = wanted
        for _ in range(MAX_ANSWERS):
            parameters = {"max_new_tokens": missing, "details": True}
            async with model.post_json(self.endpoint, {"inputs": prompt, "parameters": parameters}) as answer:
                status, body = answer.status, await answer.read()
            if not 200 <= status < 300:
                return web.Response(status=status, body=body)
            missing -= _tokens_in(body, missing)
            if missing <= 0:
                return web.Response(status=status, body=body)
            prompt = some_words(self.benchmark_words)
        told = f"TGI ended {MAX_ANSWERS} answers after {wanted - missing} tokens in all, of {wanted}"
        return web.json_response({"error": told}, status=502)


def _tokens_in(body: bytes, asked: int) -> int:
    """How many tokens the answer says that it has; all that were `asked` for where it doesn't."""
    try:
        tokens: Any = json.loads(body)["details"]["generated_tokens"]
    except (ValueError, KeyError, TypeError):
        return asked
    return tokens if isinstance(tokens, int) else asked
