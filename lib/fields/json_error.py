"""JsonDataException: the wrong fields of a request, each with its problem.

Owns the two errors of reading JSON. Reading it is in readers.py and json_fields.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A line about a value, or, for an object or a list, the problems of its fields or items by name.
Problem = str | dict[str, Any]


class JsonDataException(Exception):
    """A request with wrong fields: `message` maps each of them to its problem, nested like the request.

    The client gets `message` as the body of a 422 (docs/protocol.md, "Answers").
    """

    def __init__(self, json_msg: Mapping[str, Any]) -> None:
        super().__init__(json_msg)
        self.message = dict(json_msg)


def payload_refusal(error: JsonDataException | ValueError) -> JsonDataException:
    """The error of the request whose payload an author's code has refused by `error`."""
    problem = error.message if isinstance(error, JsonDataException) else str(error) or "is invalid"
    return JsonDataException({"payload": problem})


class WrongValue(Exception):
    """A value that is not of the type that it must have."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def of_request(self, name: str) -> JsonDataException:
        """The error of the request whose value this is: its fields' problems, or the one of `name`."""
        return JsonDataException(self.problem if isinstance(self.problem, dict) else {name: self.problem})


class OutsideLimits(WrongValue):
    """A value of the right type that is outside the limits of its annotation."""
