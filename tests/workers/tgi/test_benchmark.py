"""The benchmark's requests, to a TGI with prepared answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.workers.noted_answers import Outcome, PreparedAnswer, caller_of, outcome_of
from tests.workers.tgi.fake_server import FakeTgi
from workers.tgi.benchmark import TgiBenchmarkHandler
from workers.tgi.data_types import TgiRequest


def token(index: int, **fields: Any) -> bytes:
    # A token's text may be empty.
    message = {"index": index, "token": {"id": 7, "text": ""}, "generated_text": None, "details": None}
    return b"data:" + json.dumps({**message, **fields}).encode() + b"\n\n"


def last(tokens: Any) -> bytes:
    details = {"finish_reason": "eos_token", "generated_tokens": tokens}
    return token(20, generated_text=" word" * 20, details=details)


TOKENS = [token(index) for index in range(1, 20)]


async def outcome(parts: Sequence[bytes], status: int = 200) -> Outcome:
    """The outcome of the benchmark's request, answered with `parts`."""
    server, handler = PreparedAnswer(parts, status), TgiBenchmarkHandler()
    async with caller_of(server.app()) as caller:
        payload = handler.make_benchmark_payload()
        found = await outcome_of(handler.call_model(caller, payload), caller)
    assert server.asked == [
        (
            "/generate_stream",
            {"inputs": payload["inputs"], "parameters": {"max_new_tokens": 256, "details": True}},
        )
    ]
    return found


@pytest.mark.parametrize(
    ("parts", "events", "tokens"),
    [
        ([*TOKENS, last(20)], 20, 20),
        ([*TOKENS, last(33)], 20, 33),
        ([*TOKENS, last(0)], 20, 20),
        ([*TOKENS, last("5")], 20, 20),
        ([*TOKENS, last(None)], 20, 20),
        (TOKENS, 19, 19),
        ([last(1)], 1, 1),
    ],
)
async def test_the_tokens_of_a_stream(parts: list[bytes], events: int, tokens: int) -> None:
    found = await outcome(parts)
    assert (found.status, found.events, found.workloads) == (200, events, [tokens])


async def test_an_answer_that_is_not_streamed() -> None:
    answer = {"generated_text": " a" * 8, "details": {"generated_tokens": 8}}
    assert (await outcome([json.dumps(answer).encode()])).workloads == [8.0]
    assert (await outcome([b'{"generated_text": "four"}'])).workloads == [1.0]


@pytest.mark.parametrize("parts", [[b" "], [b"no JSON"], [b'{"generated_text": ""}'], [b"data:{}\n\n"]])
async def test_an_answer_without_a_token_is_a_failure(parts: list[bytes]) -> None:
    found = await outcome(parts)
    assert (found.status, found.workloads) == (502, [])
    assert "the answer has no token: " in found.text


@pytest.mark.parametrize("kind", ["generation", "overloaded", "validation"])
async def test_an_error_in_the_stream_is_a_failure(kind: str) -> None:
    error = json.dumps({"error": "CUDA out of memory", "error_type": kind})
    found = await outcome([*TOKENS, f"data:{error}\n\n".encode()])
    assert (found.status, found.text, found.workloads) == (502, error, [])


async def test_the_status_and_body_of_an_error_are_passed_on() -> None:
    error = json.dumps({"error": "CUDA out of memory", "error_type": "generation"})
    found = await outcome([error.encode()], status=424)
    assert (found.status, found.text, found.events, found.workloads) == (424, error, 0, [])


async def test_an_answer_that_ends_early_counts_what_was_generated() -> None:
    async with caller_of(FakeTgi(eos_after=100).app()) as caller:
        payload = TgiRequest.of("Hello", max_new_tokens=256, details=True)
        found = await outcome_of(TgiBenchmarkHandler().call_model(caller, payload), caller)
    assert (found.status, found.events, found.workloads) == (200, 100, [100.0])
