"""The detection of failed generations in answers."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.tgi.handlers import MAX_LINE_BYTES, FailureScanner

FAILED = {"error": "CUDA out of memory", "error_type": "generation"}
REFUSED = {"error": "`temperature` must be strictly positive", "error_type": "validation"}
TOKEN = {"index": 1, "token": {"text": '{"error": "x"}\ndata:{"error"'}, "generated_text": None}


def is_failed(*pieces: bytes) -> bool:
    events = FailureScanner()
    for piece in pieces:
        events.add(piece)
    return events.end()


@given(
    st.lists(st.sampled_from([FAILED, REFUSED, TOKEN]), max_size=4),
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
    assert is_failed(*pieces) == (FAILED in events)


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        (b'data:{"error":"a","error_type":"overloaded"}', False),
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
def test_only_failures_of_the_server_count_as_errors(line: bytes, failed: bool) -> None:
    assert is_failed(line + b"\n\n") is failed


def test_an_endless_line_is_not_kept_in_memory() -> None:
    events = FailureScanner()
    for _ in range(40):
        events.add(b"x" * MAX_LINE_BYTES)
    events.add(b'\ndata:{"error":"a","error_type":"generation"}')
    assert events.end()
