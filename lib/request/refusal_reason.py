"""The reason of a refusal in one line of the log (docs/operating.md, "Logs").

Owns what of an error may be logged: never a value of a payload. The client's answer, which says more, is in
lib/errors.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from lib.errors import Invalid, WorkerError
from lib.runtime.excerpt import excerpt

MAX_REASON_LENGTH = 200
# Wrong fields of one request that are named, and the length and the depth of their names.
MAX_FIELDS = 5
MAX_NAME_LENGTH = 60
MAX_DEPTH = 8
# What may be said of a field, whoever says it: an author's own text may hold the client's value.
_WITHOUT_VALUE = re.compile(
    "missing parameter|field missing|unknown parameter|given twice|(?:is )?nested too deeply|not JSON"
    "|incomplete|empty|does not match its Content-Encoding|Authorization and X-Vast-Auth differ"
    "|must be (?:finite|null|true or false)"
    "|must be (?:an? )?(?:JSON object|object|list|string|integer|number)"
)


def reason_of(error: WorkerError) -> str:
    """Return the names of the wrong fields, or the message of another refusal: without control characters."""
    if not isinstance(error, Invalid):
        return excerpt(error.message, MAX_REASON_LENGTH)
    named: list[str] = []
    for path, problem in _wrong_fields(error.fields, (), MAX_DEPTH):
        if len(named) == MAX_FIELDS:
            named.append("…")
            break
        named.append(f"{excerpt('.'.join(path), MAX_NAME_LENGTH)}{_said(problem)}")
    return ", ".join(named) or error.message


def _wrong_fields(
    fields: Mapping[Any, Any], above: tuple[str, ...], depth: int
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names that lead to each wrong field, and its problem."""
    for name, problem in fields.items():
        path = (*above, str(name)[: 2 * MAX_NAME_LENGTH] if isinstance(name, (str, int)) else "?")
        if isinstance(problem, dict) and problem and depth > 1:
            yield from _wrong_fields(cast("dict[Any, Any]", problem), path, depth - 1)
        else:
            yield path, problem


def _said(problem: Any) -> str:
    """The problem of a field behind its name; nothing if it may hold a value."""
    said = problem.partition(":")[0] if isinstance(problem, str) else ""
    return f" {said}" if _WITHOUT_VALUE.fullmatch(said) else ""
