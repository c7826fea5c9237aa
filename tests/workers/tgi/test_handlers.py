"""The detection of errors in streams."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.tgi.data_types import TgiRequest
from workers.tgi.handlers import MAX_LINE_BYTES, FailureScanner, TgiHandler, TgiStreamHandler

FAILED = {"error": "CUDA out of memory", "error_type": "generation"}
REFUSED = {"error": "`temperature` must be strictly positive", "error_type": "validation"}
TOKEN = {"index": 1, "token": {"text": " word"}, "generated_text": None}
QUOTE = {"index": 1, "token": {"text": '{"error": "x"}\ndata:{"error"'}, "generated_text": None}


def is_failed(*pieces: bytes) -> bool:
    events = FailureScanner()
    for piece in pieces:
        events.add(piece)
    return events.outcome(200) == "errored"


@given(
    st.lists(st.sampled_from([FAILED, REFUSED, TOKEN, QUOTE]), max_size=4),
    st.sampled_from(["data:", "data: "]),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.booleans(),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_a_failure_is_found_at_any_chunk_boundaries(
    events: list[Any], name: str, end: str, closed: bool, cuts: list[int]
) -> None:
    stream = end.join(name + json.dumps(event) for event in events) + (end if closed else "")
    places = [0, *sorted(cuts), None]
    pieces = [stream.encode()[a:b] for a, b in pairwise(places)]
    assert is_failed(*pieces) == (FAILED in events or REFUSED in events)


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        (b'data:{"error":"a","error_type":"overloaded"}', True),
        (b'data:{"error":"a","error_type":"incomplete_generation"}', True),
        (b'data:{"error":"a","error_type":null}', True),
        (b'data:{"error":"a"}', True),
        (b'data:{"error":"a', True),
        (b'{"error":"a","error_type":"generation"}', False),
        (b"data:[DONE]", False),
        (b":", False),
        (b"", False),
    ],
)
def test_only_error_events_count_as_errors(line: bytes, failed: bool) -> None:
    assert is_failed(line + b"\n\n") is failed


def test_an_endless_line_is_not_kept_in_memory() -> None:
    events = FailureScanner()
    for _ in range(40):
        events.add(b"x" * MAX_LINE_BYTES)
    events.add(b'\ndata:{"error":"a","error_type":"generation"}')
    assert events.outcome(200) == "errored"


@pytest.mark.parametrize("status", [200, 424, 429, 500])
def test_an_answer_that_is_not_streamed_is_judged_by_its_status(status: int) -> None:
    assert FailureScanner().outcome(status) is None


@pytest.mark.parametrize(
    ("handler", "stream", "endpoint"),
    [
        (TgiHandler(), False, "/generate"),
        (TgiHandler(), True, "/generate_stream"),
        (TgiStreamHandler(), False, "/generate_stream"),
        (TgiStreamHandler(), True, "/generate_stream"),
    ],
)
def test_the_client_may_ask_for_a_stream_on_either_route(
    handler: TgiHandler, stream: bool, endpoint: str
) -> None:
    payload = TgiRequest.from_json_msg({"inputs": "x", "stream": stream})
    assert handler.endpoint_for(payload) == endpoint
