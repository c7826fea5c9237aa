"""The counting of the tokens in streams, whole answers and errors, read over a socket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.noted_answers import NotingCaller, Outcome, PreparedAnswer, caller_of, outcome_of
from workers.openai.benchmark import COMPLETION, OpenAIBenchmarkHandler
from workers.openai.data_types import CompletionRequest
from workers.openai.token_stream import MAX_LAST_EVENTS, TokenCounter

DONE = b"data: [DONE]\n\n"
ERROR = {"message": "CUDA out of memory", "code": 500}


def event(message: Any, name: str = "data") -> bytes:
    return f"{name}: {json.dumps(message)}\n\n".encode()


def text(text: str, **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, **fields}], "usage": None})


def usage(tokens: Any) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": tokens}})


async def outcome(
    parts: Sequence[bytes], status: int = 200, content_type: str = "text/event-stream"
) -> Outcome:
    """The outcome of a request of 500 tokens, answered with `parts`."""
    server = PreparedAnswer(parts, status, content_type)
    async with caller_of(server.app()) as caller:
        return await outcome_of(call(caller), caller)


def call(caller: NotingCaller) -> Any:
    payload = CompletionRequest({"prompt": "Hello", "max_tokens": 500, "model": "tiny"})
    return OpenAIBenchmarkHandler().call_model(caller, payload)


WORDS = [text(" word")] * 20


@pytest.mark.parametrize(
    ("parts", "events", "tokens"),
    [
        ([*WORDS, usage(20), DONE], 20, 20),
        ([*WORDS, text("", finish_reason="length"), usage(20), DONE], 20, 20),
        ([*WORDS, text(" end", finish_reason="length"), usage(21), DONE], 21, 21),
        ([*WORDS, usage(47), DONE], 20, 47),  # several tokens in an event
        ([*WORDS, text(" end", usage=0)[:-2]], 21, 21),  # no line break at the end
        ([*WORDS, event({"choices": [{"text": "."}], "usage": {"completion_tokens": 30}})], 21, 30),
        ([*WORDS, usage(None), DONE], 20, 20),
        ([*WORDS, usage(0), DONE], 20, 20),
        ([*WORDS, usage("5"), DONE], 20, 20),
        ([*WORDS, event({"choices": [], "usage": [5]}), event([]), b"data: {\n\n"], 20, 20),
        (WORDS, 20, 20),
        ([text(" word", finish_reason="stop"), usage(1), DONE], 1, 1),
        ([text("", finish_reason="stop"), usage(1), DONE], 0, 1),  # the end of text only
        ([b": ping\n\n", *WORDS, b": ping\n\n", DONE], 20, 20),
        ([part.replace(b"\n", b"\r\n") for part in (*WORDS, usage(20), DONE)], 20, 20),
        ([text("\ndata: data:"), text('"error": {"message"'), DONE], 2, 2),
    ],
)
async def test_the_tokens_of_a_stream(parts: list[bytes], events: int, tokens: int) -> None:
    found = await outcome(parts)
    assert (found.status, found.events, found.workloads) == (200, events, [tokens])
    assert json.loads(found.text) == {"tokens": tokens}


async def test_progress_is_noted_while_the_answer_arrives() -> None:
    server = PreparedAnswer([*WORDS, usage(20) + DONE])
    async with caller_of(server.app()) as caller:
        server.pause = caller.progressed
        found = await outcome_of(call(caller), caller)
        assert len(caller.progress) >= 2
    assert (found.events, found.workloads) == (20, [20.0])


async def test_parts_may_end_within_an_event() -> None:
    stream = b"".join([*WORDS, text("", finish_reason="length"), usage(20), DONE])
    found = await outcome([stream[i : i + 3] for i in range(0, len(stream), 3)])
    assert (found.status, found.events, found.workloads) == (200, 20, [20.0])


@given(st.lists(st.integers(0, 780), max_size=9))
def test_where_the_parts_end_makes_no_difference(ends: list[int]) -> None:
    stream = b"".join([*[text(" word")] * 9, text("", finish_reason="length"), usage(9), DONE])
    assert len(stream) > 780
    counter, seen = TokenCounter(COMPLETION), 0
    for start, end in zip([0, *sorted(ends)], [*sorted(ends), None], strict=True):
        counter.add(stream[start:end])
        assert seen <= counter.certain <= 9
        seen = counter.certain
    assert (counter.total(), counter.error()) == ((9, 9), None)


def test_a_long_stream() -> None:
    counter = TokenCounter(COMPLETION)
    for i in range(5000):
        counter.add(text(f" word {i}"))
        assert counter.certain == max(0, i + 1 - MAX_LAST_EVENTS)
    counter.add(usage(6000) + DONE)
    assert counter.total() == (5000, 6000)


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ([event({"error": ERROR}), DONE], json.dumps({"error": ERROR})),
        ([event({"error": ERROR})[:-2]], json.dumps({"error": ERROR})),
        ([event(ERROR, "error")], json.dumps(ERROR)),  # older versions of llama.cpp
        ([b"event: error\n", event({"type": "error"})], '{"type": "error"}'),
    ],
)
async def test_an_error_in_a_stream_is_a_failure(ending: list[bytes], message: str) -> None:
    found = await outcome([*WORDS, *ending])
    assert (found.status, found.text, found.workloads) == (502, message, [])


@pytest.mark.parametrize(
    "parts",
    [
        [DONE],
        [text("", finish_reason="stop"), DONE],
        [text("", finish_reason="stop"), usage(0), DONE],
        [event({"choices": [{"text": ""}]}, "data")[:-2]],
    ],
)
async def test_a_stream_without_a_token_is_a_failure(parts: list[bytes]) -> None:
    found = await outcome(parts)
    assert (found.status, found.events, found.workloads) == (502, 0, [])
    assert json.loads(found.text)["error"].startswith("the answer has no token: data: ")


def whole(text: str, **fields: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "text": text}], **fields}, indent=2).encode()


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (whole(" word" * 9, usage={"completion_tokens": 9}), 9.0),
        (whole("", usage={"completion_tokens": 1}), 1.0),
        (whole("data:" * 8), 10.0),  # four characters count as a token
    ],
)
async def test_an_answer_that_is_not_streamed(answer: bytes, tokens: float) -> None:
    found = await outcome([answer], content_type="application/json")
    assert (found.status, found.events, found.workloads) == (200, 0, [tokens])


@pytest.mark.parametrize("answer", [b"", b"<html>", b"{}", b"[]", whole(""), b"[" * 99_999])
async def test_a_whole_answer_without_a_token_is_a_failure(answer: bytes) -> None:
    found = await outcome([answer or b" "], content_type="application/json")
    assert (found.status, found.workloads) == (502, [])
    assert "the answer has no token: " in found.text


async def test_a_whole_answer_with_an_error_is_a_failure() -> None:
    answer = json.dumps({"error": ERROR}).encode()
    found = await outcome([answer], content_type="application/json")
    assert (found.status, found.text, found.workloads) == (502, answer.decode(), [])


async def test_the_status_and_body_of_an_error_are_passed_on() -> None:
    found = await outcome([b"overloaded"], status=503)
    assert (found.status, found.text, found.events, found.workloads) == (503, "overloaded", 0, [])
