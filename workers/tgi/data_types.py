"""The payload of the TGI worker: a request in TGI's own format.

Owns the checks and the workload. Other fields reach TGI as the client sent them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from lib.data_types import JsonDataException
from lib.words import some_words

if TYPE_CHECKING:
    from typing_extensions import Self

# Tokens generated for a request without `max_new_tokens`.
DEFAULT_TOKENS = 256
# Larger than any model's context. A request counts as the work it asks for: a request for a billion tokens,
# refused immediately by TGI, would look like very fast work.
MAX_TOKENS = 1024 * 1024
# Sizes of the benchmark's and the load test's requests.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 256


class TgiRequest(dict[str, Any]):
    """All keys of the client's JSON. `max_new_tokens` in its `parameters` is always an integer.

    `stream` selects one of TGI's two routes, as it does for TGI's own `/`; it is not sent to TGI.
    """

    @classmethod
    def from_json_msg(cls, json_msg: Mapping[str, Any]) -> Self:
        """Read the client's JSON. Raises `JsonDataException`, nested like it, with every wrong field."""
        if problems := dict(_wrong_fields(json_msg)):
            raise JsonDataException(problems)
        parameters: dict[str, Any] = {**json_msg.get("parameters", {})}
        if parameters.get("max_new_tokens") is None:
            parameters["max_new_tokens"] = DEFAULT_TOKENS
        return cls({**json_msg, "parameters": parameters})

    @classmethod
    def of(cls, inputs: str, **parameters: Any) -> Self:
        """A request of the worker's own, with TGI's `parameters`."""
        return cls.from_json_msg({"inputs": inputs, "parameters": parameters})

    def generate_payload_json(self) -> dict[str, Any]:
        """The JSON for both of TGI's routes: everything except `stream`."""
        return {name: value for name, value in self.items() if name != "stream"}

    def count_workload(self) -> float:
        """The maximum number of tokens to generate."""
        return float(self.tokens)

    @classmethod
    def for_test(cls) -> Self:
        return cls.of(some_words(TEST_PROMPT_WORDS), max_new_tokens=TEST_TOKENS)

    @property
    def tokens(self) -> int:
        """The maximum number of tokens to generate."""
        return self["parameters"]["max_new_tokens"]

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream, on either route."""
        return self.get("stream", False)


def _wrong_fields(message: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each wrong field with its problem."""
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
    """Whether `tokens` is a valid `max_new_tokens`. For TGI, null means the same as a missing field."""
    return tokens is None or (type(tokens) is int and 1 <= tokens <= MAX_TOKENS)
