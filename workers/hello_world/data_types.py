"""The payload of the hello_world worker: what a client sends, what the model server gets, what it costs.

Owns the request's shape. The routes that take it are in server.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib.data_types import ApiPayload, JsonDataException
from lib.words import some_words

if TYPE_CHECKING:
    from typing_extensions import Self

# Tokens in an answer to a request that doesn't say how many it wants.
DEFAULT_TOKENS = 200
# The model server's own limit. Told here as well, since a request is accounted by what it asks for:
# one for a billion tokens, refused by the model server in no time, would count as very fast work.
MAX_TOKENS = 4096
# A typical prompt and answer, in words and tokens: what the benchmark and load tests send.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 100


@dataclass
class InputData(ApiPayload):
    """1. The fields are the keys of `payload` in a client's request. One with a default may be left out."""

    prompt: str
    max_response_tokens: int | None = None

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """2. Reads and checks the client's JSON.

        The inherited method checks presence and types, and is all that most workers need. Here it is
        extended by a range. A `JsonDataException` is told to the client as 422, field by field.
        """
        problems: dict[str, Any] = {}
        tokens = json_msg.get("max_response_tokens")
        if isinstance(tokens, int) and not 1 <= tokens <= MAX_TOKENS:
            problems["max_response_tokens"] = f"must be from 1 to {MAX_TOKENS}"
        try:
            payload = super().from_json_msg(json_msg)
        except JsonDataException as e:
            raise JsonDataException({**problems, **e.message}) from e
        if problems:
            raise JsonDataException(problems)
        return payload

    def generate_payload_json(self) -> dict[str, Any]:
        """3. What the model server is sent. Left out, it is the fields as they are."""
        return {"prompt": self.prompt, "max_response_tokens": self.tokens}

    def count_workload(self) -> float:
        """4. How much work the request is, in a unit of your choice: here, tokens it may generate.

        Everything the engine is told (load, throughput, benchmark) is in this unit, and so is the `cost`
        that clients name when they ask the engine for a worker.
        """
        return float(self.tokens)

    @classmethod
    def for_test(cls) -> Self:
        """5. A typical request, for load tests and the benchmark. Each should differ from the last."""
        return cls(prompt=some_words(TEST_PROMPT_WORDS), max_response_tokens=TEST_TOKENS)

    @property
    def tokens(self) -> int:
        """At most so many tokens will be generated."""
        return DEFAULT_TOKENS if self.max_response_tokens is None else self.max_response_tokens
