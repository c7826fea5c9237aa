"""The payload of the TGI worker: a request in TGI's own format.

Owns the workload and the default of `max_new_tokens`. TGI checks the request, which it gets as the client has
sent it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lib.data_types import JsonDataException
from lib.words import some_words
from workers.openai.workload import number_in

if TYPE_CHECKING:
    from typing_extensions import Self

# Tokens generated for a request without `max_new_tokens`.
DEFAULT_TOKENS = 256
# Sizes of the benchmark's and the load test's requests.
TEST_PROMPT_WORDS = 100
TEST_TOKENS = 256


class TgiRequest(dict[str, Any]):
    """All keys of the client's JSON. Its `parameters`, unless they are no object, have a `max_new_tokens`.

    `stream` selects one of TGI's two routes, as it does for TGI's own `/`; it is not sent to TGI.
    """

    @classmethod
    def from_json_msg(cls, json_msg: Mapping[str, Any]) -> Self:
        """Read the client's JSON. Raises `JsonDataException` for a `stream` that is no boolean."""
        if not isinstance(json_msg.get("stream", False), bool):
            raise JsonDataException({"stream": "must be true or false"})
        parameters: Any = json_msg.get("parameters", {})
        if not isinstance(parameters, dict):
            return cls(json_msg)
        own = cast("dict[str, Any]", parameters)
        if own.get("max_new_tokens") is None:
            own = {**own, "max_new_tokens": DEFAULT_TOKENS}
        return cls({**json_msg, "parameters": own})

    @classmethod
    def of(cls, inputs: str, **parameters: Any) -> Self:
        """A request of the worker's own, with TGI's `parameters`."""
        return cls.from_json_msg({"inputs": inputs, "parameters": parameters})

    def generate_payload_json(self) -> dict[str, Any]:
        """The JSON for both of TGI's routes: everything except `stream`."""
        return {name: value for name, value in self.items() if name != "stream"}

    def count_workload(self) -> float:
        """The maximum number of tokens to generate; 256 where `max_new_tokens` is no number of 0 or more."""
        parameters = self.get("parameters")
        own = cast("dict[str, Any]", parameters) if isinstance(parameters, dict) else {}
        tokens = number_in(own.get("max_new_tokens"))
        return float(DEFAULT_TOKENS if tokens is None else tokens)

    @classmethod
    def for_test(cls) -> Self:
        return cls.of(some_words(TEST_PROMPT_WORDS), max_new_tokens=TEST_TOKENS)

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream, on either route."""
        return self.get("stream", False)
