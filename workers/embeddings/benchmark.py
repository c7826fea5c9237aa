"""The benchmark of the embeddings worker: batches of 32 texts, for the task that the model has.

Owns the benchmark's requests. Which of the tasks a model has, its server doesn't say in one way: the routes
are tried in order.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from workers.embeddings.data_types import (
    BENCHMARK_TEXTS,
    TEST_QUERY_WORDS,
    TEST_WORDS,
    InputsRequest,
    TextsRequest,
    TextsRerankRequest,
)
from workers.embeddings.handlers import (
    ClassifyHandler,
    EmbedSparseHandler,
    PredictHandler,
    TextsHandler,
    TextsRerankHandler,
)
from workers.openai.data_types import OpenAIRequest
from workers.openai.route_choice import RouteChoice

if TYPE_CHECKING:
    from lib.backend import ModelCaller

# Answers of a server that lacks the route, or whose model has another task: infinity's is 400, TEI's 424.
REFUSALS = frozenset({400, 404, 405, 422, 424})


@dataclass(kw_only=True)
class EmbeddingsBenchmarkHandler(TextsHandler):
    """Requests the vectors of 32 random texts or, of other models, their ranks or classes."""

    benchmark_words: int = TEST_WORDS
    _choice: RouteChoice = field(default_factory=lambda: RouteChoice(REFUSALS), init=False)

    def make_benchmark_payload(self) -> OpenAIRequest:
        return TextsRequest.of_words(BENCHMARK_TEXTS, self.benchmark_words)

    @asynccontextmanager
    async def call_model(
        self, model: ModelCaller, payload: OpenAIRequest
    ) -> AsyncGenerator[web.Response, None]:
        requests = requests_for(payload.input["input"])
        path, outcome = await self._choice.ask(
            {
                path: partial(model.post_json, path, self.generate_payload_json(request))
                for path, request in requests.items()
            }
        )
        model.note_workload(requests[path].count_workload())
        yield outcome


def requests_for(texts: list[str]) -> dict[str, InputsRequest | TextsRequest | TextsRerankRequest]:
    """Return the request for `texts` of each task, by its route."""
    query = " ".join(texts[0].split()[:TEST_QUERY_WORDS])
    return {
        TextsHandler.path: TextsRequest({"input": texts}),
        # Each server reads the list by its own name.
        TextsRerankHandler.path: TextsRerankRequest({"query": query, "texts": texts, "documents": texts}),
        PredictHandler.path: InputsRequest({"inputs": [[text] for text in texts]}),
        ClassifyHandler.path: TextsRequest({"input": texts}),
        EmbedSparseHandler.path: InputsRequest({"inputs": texts}),
    }
