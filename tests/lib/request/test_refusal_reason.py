"""The reasons of refusals in the log: names of fields, and no value that a client has sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.errors import BodyTooLarge, DeclinedByAuthor, Invalid, MediaTypeRefused, Unauthorized, WorkerError
from lib.request.refusal_reason import MAX_FIELDS, MAX_REASON_LENGTH, reason_of

MAX_LENGTH = (MAX_FIELDS + 1) * MAX_REASON_LENGTH
NESTED: dict[str, Any] = {"payload": {"a": {"b": "must be a string", "c": {"0": "missing parameter"}}}}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Invalid({"payload": {"texts": "missing parameter"}}), "payload.texts missing parameter"),
        (Invalid(NESTED), "payload.a.b must be a string, payload.a.c.0 missing parameter"),
        (
            Invalid({"payload": {"fuzz": "unknown parameter: did you mean 'fizz'?"}}),
            "payload.fuzz unknown parameter",
        ),
        (Invalid({"body": "not JSON: unexpected 's3cret' at 7"}), "body not JSON"),
        (DeclinedByAuthor({"payload": {"prompt": "must not be 's3cret'"}}), "payload.prompt"),
        (DeclinedByAuthor({"payload": {"limits": ["s3cret"], "of": {}}}), "payload.limits, payload.of"),
        (DeclinedByAuthor({"payload": {("a", "tuple"): 1, 7: 1}}), "payload.?, payload.7"),
        (DeclinedByAuthor({}), "invalid request"),
        (Invalid({"api_key=s3cret": "unknown parameter"}), "api_key=*** unknown parameter"),
        (Invalid({"a\nb\x1b[2J": "unknown parameter"}), "a b unknown parameter"),
        (
            Invalid(dict.fromkeys("abcdefg", "missing parameter")),
            ", ".join([f"{c} missing parameter" for c in "abcde"] + ["…"]),
        ),
        (BodyTooLarge("the body is larger than 9 bytes"), "the body is larger than 9 bytes"),
        (
            MediaTypeRefused("this route takes application/json, not a/\x1bb"),
            "this route takes application/json, not a/\N{REPLACEMENT CHARACTER}b",
        ),
        (Unauthorized("the signature is invalid"), "the signature is invalid"),
    ],
)
def test_it_names_the_fields_and_the_reason(error: WorkerError, reason: str) -> None:
    assert reason_of(error) == reason


names = st.text() | st.integers() | st.none() | st.binary()


@given(st.dictionaries(names, st.recursive(st.just("s3cret"), lambda inner: st.dictionaries(names, inner))))
def test_it_is_one_short_line_without_values(fields: dict[Any, Any]) -> None:
    reason = reason_of(DeclinedByAuthor({"payload": fields}))
    assert reason.isprintable()
    assert len(reason) <= MAX_LENGTH
    assert "s3cret" not in reason
