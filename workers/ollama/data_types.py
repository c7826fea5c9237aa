"""The payloads of Ollama's own API. Its OpenAI routes have those of workers/openai/data_types.py.

Owns the workload of `options.num_predict`. Ollama checks the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lib.words import some_words
from workers.openai.data_types import TEST_PROMPT_WORDS, TEST_TOKENS, OpenAIRequest
from workers.openai.workload import DEFAULT_TOKENS, LEAST, number_in, of_reading

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class OllamaRequest(OpenAIRequest):
    """`/api/generate` and `/api/chat`. Its workload is the maximum number of tokens to generate.

    For Ollama, a request without `num_predict`, or with a negative one, has no limit: it counts as 256
    tokens. So does one whose `num_predict` is no number.
    """

    def count_workload(self) -> float:
        options: Any = self.input.get("options")
        own = cast("dict[str, Any]", options) if isinstance(options, dict) else {}
        limit = number_in(own.get("num_predict"))
        return max(LEAST, float(DEFAULT_TOKENS if limit is None else limit))

    @classmethod
    def for_test(cls) -> Self:
        return cls.of_words(TEST_PROMPT_WORDS)

    @classmethod
    def of_words(cls, words: int) -> Self:
        """Return a request for 500 tokens after a prompt of random words, without the model's template."""
        options = {"num_predict": TEST_TOKENS}
        return cls({"prompt": some_words(words), "raw": True, "options": options})


@dataclass
class OllamaEmbeddingRequest(OpenAIRequest):
    """`/api/embed`, with `input`, and the older `/api/embeddings`, with `prompt`: turn texts into vectors."""

    def count_workload(self) -> float:
        return of_reading(self.input.get("input"), self.input.get("prompt"))
