"""The benchmark's requests, to an Ollama with prepared answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.workers.noted_answers import Outcome, PreparedAnswer, caller_of, outcome_of
from workers.ollama.benchmark import OllamaBenchmarkHandler


def line(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", **fields}, separators=(",", ":")).encode() + b"\n"


TOKENS = [line(response=" a", done=False)] * 20
THOUGHTS = [line(response="", thinking=" a", done=False)] * 5


def last(**fields: Any) -> bytes:
    return line(response="", done=True, **fields)


async def outcome(parts: Sequence[bytes], status: int = 200) -> Outcome:
    """The outcome of the benchmark's request, answered with `parts`."""
    server = PreparedAnswer(parts, status, "application/x-ndjson")
    handler = OllamaBenchmarkHandler(model_name="tiny")
    async with caller_of(server.app()) as caller:
        payload = handler.make_benchmark_payload()
        found = await outcome_of(handler.call_model(caller, payload), caller)
    request = {"prompt": payload.input["prompt"], "raw": True, "options": {"num_predict": 500}}
    assert server.asked == [("/api/generate", {**request, "model": "tiny"})]
    return found


@pytest.mark.parametrize(
    ("parts", "events", "tokens"),
    [
        ([*TOKENS, last(eval_count=20)], 20, 20),
        ([*TOKENS, last(eval_count=33)], 20, 33),
        ([*TOKENS, last()], 20, 20),
        ([*TOKENS, last(eval_count="5")], 20, 20),
        ([*THOUGHTS, *TOKENS, last()], 25, 25),
        (TOKENS, 20, 20),
        ([b"".join(TOKENS[:3]) + last(eval_count=3)], 3, 3),
        ([b"".join(TOKENS)[:50], b"".join(TOKENS)[50:], last(eval_count=20)], 20, 20),
        ([line(response=" a", done=True, eval_count=8)], 1, 8),
    ],
)
async def test_the_tokens_of_a_stream(parts: list[bytes], events: int, tokens: int) -> None:
    found = await outcome(parts)
    assert (found.status, found.events, found.workloads) == (200, events, [tokens])


@pytest.mark.parametrize("parts", [[b" "], [b"no JSON"], [last()], [b"{}\n"]])
async def test_an_answer_without_a_token_is_a_failure(parts: list[bytes]) -> None:
    found = await outcome(parts)
    assert (found.status, found.workloads) == (502, [])
    assert "the answer has no token: " in found.text


async def test_an_error_in_the_stream_is_a_failure() -> None:
    error = json.dumps({"error": "CUDA error"})
    for parts in ([*TOKENS, error.encode() + b"\n"], [error.encode()]):
        found = await outcome(parts)
        assert (found.status, found.text, found.workloads) == (502, error, [])


async def test_the_status_and_body_of_an_error_are_passed_on() -> None:
    error = json.dumps({"error": "model 'tiny' not found"})
    found = await outcome([error.encode()], status=404)
    assert (found.status, found.text, found.events, found.workloads) == (404, error, 0, [])
