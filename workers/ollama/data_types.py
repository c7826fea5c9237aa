"""The payloads of Ollama's own API. Its OpenAI routes have those of workers/openai/data_types.py.

Owns the check and the workload of `options.num_predict`. All other fields are Ollama's to judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from lib.words import some_words
from workers.openai.data_types import MAX_TOKENS, TEST_PROMPT_WORDS, TEST_TOKENS, OpenAIRequest
from workers.openai.workload import DEFAULT_TOKENS, LEAST, of_reading

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class OllamaRequest(OpenAIRequest):
    """`/api/generate` and `/api/chat`. Its workload is the maximum number of tokens to generate.

    For Ollama, a request without `num_predict`, or with a negative one, has no limit: it counts as 256
    tokens.
    """

    @classmethod
    def wrong_fields(cls, request: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        options: Any = request.get("options")
        if options is not None and not isinstance(options, dict):
            yield "options", "must be an object"
        limit = _num_predict(request)
        if limit is not None and (type(limit) is not int or limit > MAX_TOKENS):
            yield "options", f"its num_predict must be an integer up to {MAX_TOKENS}"

    def count_workload(self) -> float:
        limit = _num_predict(self.input)
        return float(DEFAULT_TOKENS) if limit is None or limit < 0 else max(LEAST, float(limit))

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


def _num_predict(request: Mapping[str, Any]) -> Any:
    """The limit of an answer's tokens, or None if the request has none."""
    options = request.get("options")
    return cast("dict[str, Any]", options).get("num_predict") if isinstance(options, dict) else None
