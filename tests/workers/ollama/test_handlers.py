"""The detection of failures in streams of JSON lines."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ollama.handlers import NdjsonScanner
from workers.openai.error_events import MAX_LINE_BYTES

ERROR = {"error": "CUDA error"}
TOKEN = {"model": "tiny", "response": " word", "done": False}
QUOTE = {"model": "tiny", "response": '{"error": "x"}\n{"error":"x"} "done": true', "done": False}
LAST = {"model": "tiny", "response": "", "done": True, "context": [7] * 50}


def outcome(*pieces: bytes, status: int = 200) -> str | None:
    scanner = NdjsonScanner()
    for piece in pieces:
        scanner.add(piece)
    return scanner.outcome(status)


@given(
    st.lists(st.sampled_from([ERROR, TOKEN, QUOTE]), max_size=4),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(0, 600), max_size=8),
)
def test_a_failure_or_a_missing_end_is_found_at_any_chunk_boundaries(
    lines: list[Any], is_done: bool, separators: tuple[str, str], end: str, cuts: list[int]
) -> None:
    messages = [*lines, LAST] if is_done else lines
    stream = "".join(json.dumps(line, separators=separators) + end for line in messages)
    places = [0, *sorted(cuts), None]
    found = outcome(*(stream.encode()[a:b] for a, b in pairwise(places)))
    assert (found == "errored") == (ERROR in lines or not is_done)


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        (b'{"error":"a"}', True),
        (b'{"error":{"message":"a"}}', True),
        (b'{"error":"a', True),
        (b'{"error":null}', False),
        (b'{"message":{"content":"an error"},"done":false}', False),
        (b"error", False),
        (b"", False),
    ],
)
def test_only_lines_with_an_error_count_as_errors(line: bytes, failed: bool) -> None:
    assert (outcome(b'{"done":true}\n', line) == "errored") is failed


def test_an_endless_line_is_not_kept_in_memory() -> None:
    scanner = NdjsonScanner()
    for _ in range(4):
        scanner.add(b"x" * MAX_LINE_BYTES)
    scanner.add(b'\n{"error":"a"}')
    assert scanner.outcome(200) == "errored"


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_is_not_streamed_is_judged_by_its_status(status: int) -> None:
    assert outcome(status=status) is None
    assert outcome(b'{"error":"a"}', status=404) is None
