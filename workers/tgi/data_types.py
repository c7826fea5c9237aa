"""The payload of the TGI worker: a prompt, and TGI's own parameters.

Owns what of them is checked and counted. Everything else in `parameters` is TGI's business, and reaches it
as the client sent it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from lib.data_types import ApiPayload, JsonDataException
from lib.words import some_words

if TYPE_CHECKING:
    from typing_extensions import Self

# Tokens of an answer to a request that doesn't say how many it wants.
DEFAULT_TOKENS = 256
# More than any model's context. A request is accounted by what it asks for: one for a billion tokens, which
# TGI refuses in no time, would count as very fast work.
MAX_TOKENS = 1024 * 1024
# A typical prompt and answer, in words and tokens: what the benchmark and load tests send.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 256


@dataclass
class InputData(ApiPayload):
    """`parameters` always has `max_new_tokens`: where the client gives none, or null, it is 256."""

    inputs: str
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.parameters.get("max_new_tokens") is None:
            self.parameters = {**self.parameters, "max_new_tokens": DEFAULT_TOKENS}

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Self:
        problem = _wrong_limit(json_msg.get("parameters"))
        problems: dict[str, Any] = {"parameters": {"max_new_tokens": problem}} if problem else {}
        try:
            payload = super().from_json_msg(json_msg)
        except JsonDataException as e:
            raise JsonDataException({**problems, **e.message}) from e
        if problems:
            raise JsonDataException(problems)
        return payload

    def count_workload(self) -> float:
        """Tokens that may be generated."""
        return float(self.parameters["max_new_tokens"])

    @classmethod
    def for_test(cls) -> Self:
        return cls(some_words(TEST_PROMPT_WORDS), {"max_new_tokens": TEST_TOKENS})


def _wrong_limit(parameters: Any) -> str | None:
    """What is wrong with `max_new_tokens`, if anything."""
    tokens = (
        cast("dict[str, Any]", parameters).get("max_new_tokens") if isinstance(parameters, dict) else None
    )
    is_integer = isinstance(tokens, int) and not isinstance(tokens, bool)
    if tokens is None or (is_integer and 1 <= tokens <= MAX_TOKENS):
        return None
    return f"must be an integer from 1 to {MAX_TOKENS}"
