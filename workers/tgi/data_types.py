"""The payload of the TGI worker: a request as TGI takes it.

Owns what of it is checked and counted. All else is TGI's business, and reaches it as the client sent it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from lib.data_types import JsonDataException
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


class TgiRequest(dict[str, Any]):
    """The client's JSON, every key of it; in its `parameters`, `max_new_tokens` is always an integer.

    `stream` is for the worker, as it is for TGI's own `/`: which of the two routes answers.
    """

    @classmethod
    def from_json_msg(cls, json_msg: Mapping[str, Any]) -> Self:
        """Raises `JsonDataException`, nested like the request, with every field that can't be right."""
        if problems := dict(_wrong_fields(json_msg)):
            raise JsonDataException(problems)
        parameters: dict[str, Any] = {**json_msg.get("parameters", {})}
        if parameters.get("max_new_tokens") is None:
            parameters["max_new_tokens"] = DEFAULT_TOKENS
        return cls({**json_msg, "parameters": parameters})

    @classmethod
    def of(cls, inputs: str, **parameters: Any) -> Self:
        return cls.from_json_msg({"inputs": inputs, "parameters": parameters})

    def generate_payload_json(self) -> dict[str, Any]:
        """What both of TGI's routes take: everything but the choice between them."""
        return {name: value for name, value in self.items() if name != "stream"}

    def count_workload(self) -> float:
        """Tokens that may be generated."""
        return float(self.tokens)

    @classmethod
    def for_test(cls) -> Self:
        return cls.of(some_words(TEST_PROMPT_WORDS), max_new_tokens=TEST_TOKENS)

    @property
    def tokens(self) -> int:
        """At most so many tokens will be generated."""
        return self["parameters"]["max_new_tokens"]

    @property
    def stream(self) -> bool:
        """Whether the client wants the tokens as they come, whichever route it has called."""
        return self.get("stream", False)


def _wrong_fields(message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each field of the request that can't be right, with why."""
    if "inputs" not in message:
        yield "inputs", "missing parameter"
    elif not isinstance(message["inputs"], str):
        yield "inputs", "must be a string"
    parameters: Any = message.get("parameters", {})
    if not isinstance(parameters, dict):
        yield "parameters", "must be an object"
    elif not _is_limit(cast("dict[str, Any]", parameters).get("max_new_tokens")):
        yield "parameters", {"max_new_tokens": f"must be an integer from 1 to {MAX_TOKENS}"}
    if not isinstance(message.get("stream", False), bool):
        yield "stream", "must be true or false"


def _is_limit(tokens: Any) -> bool:
    """Whether `tokens` can be a `max_new_tokens`; null is TGI's way of leaving it out."""
    return tokens is None or (type(tokens) is int and 1 <= tokens <= MAX_TOKENS)
