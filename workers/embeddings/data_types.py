"""The payloads of the embeddings worker. Those with OpenAI's `input` are in workers/openai/data_types.py.

Owns the workload of requests in the format of Text Embeddings Inference (TEI). The model server checks the
fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.words import some_words
from workers.openai.data_types import EmbeddingRequest, OpenAIRequest
from workers.openai.workload import of_pairs, of_reading

if TYPE_CHECKING:
    from typing_extensions import Self

# Sizes of the benchmark's and the load test's requests. TEI takes up to 32 texts in its default settings, and
# some models take no more than 128 tokens of a text.
BENCHMARK_TEXTS = 32
TEST_TEXTS = 4
TEST_WORDS = 64
TEST_QUERY_WORDS = 10


@dataclass
class InputsRequest(OpenAIRequest):
    """A request of TEI with `inputs`: texts, pairs of texts or, for `/similarity`, an object of texts."""

    def count_workload(self) -> float:
        return of_reading(self.input.get("inputs"))

    @classmethod
    def for_test(cls) -> Self:
        return cls({"inputs": some_words(TEST_WORDS)})


@dataclass
class TextsRerankRequest(OpenAIRequest):
    """`/rerank`: order texts by their relevance to a query. TEI names them `texts`, infinity `documents`."""

    def count_workload(self) -> float:
        texts = self.input.get("texts")
        return of_pairs(self.input.get("query"), self.input.get("documents") if texts is None else texts)

    @classmethod
    def for_test(cls) -> Self:
        texts = [some_words(TEST_WORDS) for _ in range(2)]
        return cls({"query": some_words(TEST_QUERY_WORDS), "texts": texts, "documents": texts})


@dataclass
class TextsRequest(EmbeddingRequest):
    """`/embeddings` and `/v1/embeddings`, with OpenAI's `input`."""

    @classmethod
    def for_test(cls) -> Self:
        return cls.of_words(TEST_TEXTS, TEST_WORDS)

    @classmethod
    def of_words(cls, texts: int, words: int) -> Self:
        """Return a request for the vectors of so many random texts, with `words` words each."""
        return cls({"input": [some_words(words) for _ in range(texts)]})
