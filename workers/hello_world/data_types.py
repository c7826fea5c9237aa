"""The payload of the hello_world worker: the client's fields, the model server's JSON, the workload.

The routes that accept it are in server.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lib.data_types import ApiPayload, JsonDataException
from lib.words import some_words

if TYPE_CHECKING:
    from typing_extensions import Self

# Tokens generated for a request without `max_response_tokens`.
DEFAULT_TOKENS = 200
# The model server has the same limit. The worker checks it too, because a request counts as the work it asks
# for: a request for a billion tokens, refused immediately by the model server, would look like very fast
# work.
MAX_TOKENS = 4096
# Sizes of the benchmark's and the load test's requests.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 100


@dataclass
class InputData(ApiPayload):
    """1. The fields are the keys of `payload` in a client's request. Fields with a default are optional."""

    prompt: str
    max_response_tokens: int | None = None

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        """2. Read and check the client's JSON.

        The inherited method checks presence and types, which is enough for most workers. This one also checks
        a range. The client gets a `JsonDataException` as status 422 with a message for each field.
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
        """3. Return the JSON for the model server. Without this method, it is the fields unchanged."""
        return {"prompt": self.prompt, "max_response_tokens": self.tokens}

    def count_workload(self) -> float:
        """4. Return the workload in a unit of your choice: here, the maximum number of tokens.

        The worker reports load, throughput and benchmark in this unit, and clients name their request's
        `cost` in it when they ask the engine for a worker.
        """
        return float(self.tokens)

    @classmethod
    def for_test(cls) -> Self:
        """5. Return a typical request, for load tests and the benchmark. Each should be different."""
        return cls(prompt=some_words(TEST_PROMPT_WORDS), max_response_tokens=TEST_TOKENS)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens to generate."""
        return DEFAULT_TOKENS if self.max_response_tokens is None else self.max_response_tokens
