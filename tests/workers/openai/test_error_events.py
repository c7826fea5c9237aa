"""The detection of errors in streams, and which routes look for them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.openai.error_events import MAX_LINE_BYTES, ErrorScanner
from workers.openai.handlers import HANDLERS

ERROR = {"message": "CUDA out of memory", "type": "BadRequestError", "param": None, "code": 400}
RESPONSE: dict[str, Any] = {"id": "resp_1", "object": "response", "output": []}
FAILED: dict[str, Any] = {
    "type": "response.failed",
    "response": {**RESPONSE, "error": {"code": "server_error"}},
}
CREATED: dict[str, Any] = {"type": "response.created", "response": {**RESPONSE, "error": None}}


def chunk(text: str, **fields: Any) -> str:
    """An event of a chat's stream, as text."""
    message = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
    return f"data: {json.dumps({**message, **fields})}"


ERRORS = [
    f"data: {json.dumps({'error': ERROR})}",  # vLLM, SGLang, llama.cpp
    f"data:{json.dumps({'error': 'CUDA out of memory'}, separators=(',', ':'))}",
    chunk("", error=ERROR),
    f"error: {json.dumps(ERROR)}",  # older llama.cpp
    f"event: error\ndata: {json.dumps({'type': 'error', 'code': None, 'message': 'broken'})}",
    "event: error\ndata: broken",
    f"event: response.failed\ndata: {json.dumps(FAILED)}",
]
OTHERS = [
    chunk(" word"),
    chunk(" word", error=None),
    chunk('{"error": "x"}'),
    chunk('\ndata: {"error": {"message": "x"}}\n\nevent: error\n\nerror: {}\n'),
    f"event: response.created\ndata: {json.dumps(CREATED)}",
    f"data: {json.dumps({'type': 'response.output_text.delta', 'delta': 'error'})}",
    'data: {"error": null}',
    'data: "error"',
    'data: ["error"]',
    "data: [DONE]",
    "data: error",
    "error: broken",
    "event: errors",
    ": error",
    "error",
    '{"error": {"message": "an answer that is not a stream"}}',
]


def is_error(*pieces: bytes) -> bool:
    scanner = ErrorScanner()
    for piece in pieces:
        scanner.add(piece)
    return scanner.outcome(200) == "errored"


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", ""])
@pytest.mark.parametrize("event", ERRORS)
def test_each_form_of_an_error_is_found(event: str, end: str) -> None:
    assert is_error(event.encode() + end.encode())


@pytest.mark.parametrize("event", ERRORS)
def test_an_error_is_found_between_other_events(event: str) -> None:
    assert is_error(*(f"{each}\n\n".encode() for each in (OTHERS[0], event, "data: [DONE]")))


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", ""])
@pytest.mark.parametrize("event", OTHERS)
def test_nothing_else_is_an_error(event: str, end: str) -> None:
    assert not is_error(event.encode() + end.encode())


@given(
    st.lists(st.sampled_from(ERRORS + OTHERS), max_size=5),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 900), max_size=8),
)
def test_an_error_is_found_at_any_chunk_boundaries(
    events: list[str], end: str, is_closed: bool, cuts: list[int]
) -> None:
    stream = (end.join(events) + (end if is_closed else "")).encode()
    pieces = [stream[a:b] for a, b in pairwise([0, *sorted(cuts), None])]
    assert is_error(*pieces) == is_error(stream) == any(event in ERRORS for event in events)


@given(st.lists(st.sampled_from(ERRORS + OTHERS), min_size=1, max_size=3), st.data())
def test_a_stream_that_ends_anywhere_is_judged_as_a_whole(events: list[str], data: st.DataObject) -> None:
    stream = "\n\n".join(events).encode()
    stream = stream[: data.draw(st.integers(0, len(stream)))]
    assert is_error(*(bytes([byte]) for byte in stream)) == is_error(stream)


@pytest.mark.parametrize(
    "line",
    [b'data: {"error": {"message": "CUDA', b'data: {"error":"CUDA', b'error: {"code"', b"event: error"],
)
def test_an_error_may_be_cut(line: bytes) -> None:
    assert is_error(line)


@pytest.mark.parametrize(
    "line", [b'data: {"error": nul', b'data: {"error"', b'data: {"choices": [{"text": "error']
)
def test_other_events_may_be_cut(line: bytes) -> None:
    assert not is_error(line)


@pytest.mark.parametrize("data", [b"\xff", b"[" * 100_000, b'{"x":' * 100_000])
def test_data_that_cannot_be_read_is_no_error(data: bytes) -> None:
    assert not is_error(b"data: " + data + b" error\n\n")


def test_a_line_without_end_is_not_kept_in_memory() -> None:
    scanner = ErrorScanner()
    for _ in range(4):
        scanner.add(b"x" * MAX_LINE_BYTES)
    scanner.add(f"\n{ERRORS[0]}\n\n".encode())
    assert scanner.outcome(200) == "errored"


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_status_says_enough(status: int) -> None:
    scanner = ErrorScanner()
    scanner.add(f"{ERRORS[0]}\n\n".encode())
    assert scanner.outcome(status) is None


def test_routes_that_stream_events_look_for_errors() -> None:
    assert [handler.path for handler in HANDLERS if handler().scan_answer() is not None] == [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    ]
