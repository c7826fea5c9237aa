from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.openai import workload
from workers.openai.workload import MOST, number_in, of_generation, tokens_in

TEXTS = st.text(max_size=50)


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({}, 256),
        ({"max_tokens": None, "n": None}, 256),
        ({"n": 3}, 768),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 10}, 10),
        ({"max_output_tokens": 10}, 10),
        ({"max_tokens": 10, "n": 4}, 40),
        ({"max_tokens": 10, "max_completion_tokens": 30}, 30),
        ({"max_tokens": 10, "prompt": "a"}, 10),
        ({"max_tokens": 10, "prompt": ["a", "b"]}, 20),
        ({"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ({"max_tokens": 10, "prompt": [[1, 2], [3]], "n": 2}, 40),
        ({"max_tokens": 10, "prompt": []}, 10),
        ({"n_predict": 10, "prompt": "a"}, 10),
        ({"max_tokens": 0, "prompt": "x" * 320}, 10),
        ({"max_tokens": 0, "messages": [{"role": "user", "content": "x" * 304}]}, 9.625),
        ({"max_tokens": 0}, 1),
        ({"max_tokens": 0, "max_completion_tokens": 7}, 7),
        ({"max_tokens": -1}, 256),
        ({"max_tokens": 5.0, "n": "2"}, 10),
        ({"max_tokens": True, "n": {}}, 256),
        ({"max_tokens": float("nan"), "n": float("inf")}, 256 * MOST),
    ],
)
def test_generated_tokens(request_: dict[str, Any], tokens: float) -> None:
    assert of_generation(request_) == tokens


EMPTY: list[Any] = [[], {}]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((value, None) for value in (None, True, False, "", "x", "-1", -1, -0.5, "nan", "9" * 33, *EMPTY)),
        *((value, 0) for value in (0, 0.0, "0", -0.0)),
        *((value, MOST) for value in (MOST + 1, 10**400, 1e300, float("inf"), "1e999", "Infinity")),
        *((value, 5) for value in (5, 5.0, "5", " 5 ")),
    ],
)
def test_numbers(value: Any, number: float | None) -> None:
    assert number_in(value) == number


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (None, 0),
        ("", 0),
        ("four", 1),
        (["four", "eight..."], 3),
        ([5, 6, 7], 3),
        ([[5, 6], [7]], 3),
        ([{"role": "user", "content": [{"text": "four"}, {"url": "data:image/png;base64,AAAA"}]}], 787),
    ],
)
def test_tokens_in_texts(value: Any, tokens: float) -> None:
    assert tokens_in(value) == tokens


def test_nesting_does_not_change_the_count() -> None:
    nested: Any = "four"
    for _ in range(100_000):
        nested = [nested]
    assert tokens_in(nested) == 1


def test_reading_counts_an_eighth_of_generating() -> None:
    assert workload.of_reading("x" * 320) == 10
    assert workload.of_reading(None, [{"role": "user", "content": "x" * 304}]) == 9.625
    assert workload.of_reading("") == workload.of_reading(None) == 1


def test_a_query_is_read_with_each_document() -> None:
    query, document = "x" * 32, "x" * 64
    assert workload.of_pairs(query, [document] * 10) == (10 * 8 + 10 * 16) / 8
    assert workload.of_pairs([query] * 10, [document] * 10) == (10 * 8 + 10 * 16) / 8
    assert workload.of_pairs(query, document) == (8 + 16) / 8
    assert workload.of_pairs(None, None) == 1


def test_speech_and_recordings_are_counted_by_their_seconds() -> None:
    assert workload.of_speech("x" * 150) == 500
    assert workload.of_recording(160_000) == 100
    assert workload.of_speech("") == workload.of_recording(0) == 1


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({}, 785),
        ({"size": None}, 785),
        ({"size": "auto"}, 785),
        ({"size": [1, 2]}, 785),
        ({"size": "1024x1024", "n": 2}, 1570),
        ({"size": "512x512"}, 260),
        ({"size": "513x512"}, 435),
        ({"size": "0x512"}, 85),
    ],
)
def test_images_are_counted_by_their_tiles(request_: dict[str, Any], tokens: float) -> None:
    assert workload.of_images(request_) == tokens


@settings(deadline=None)
@given(tokens=st.integers(1), n=st.integers(1), prompts=st.lists(TEXTS, max_size=20))
def test_a_larger_request_never_counts_less(tokens: int, n: int, prompts: list[str]) -> None:
    less = of_generation({"max_tokens": tokens, "n": n, "prompt": prompts})
    assert less <= of_generation({"max_tokens": tokens + 1, "n": n + 1, "prompt": [*prompts, ""]})
    assert 1 <= less <= MOST * MOST * max(1, len(prompts))


@settings(deadline=None)
@given(
    st.recursive(st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=5), max_leaves=30)
)
def test_any_input_has_a_finite_positive_workload(value: Any) -> None:
    assert 1 <= workload.of_reading(value) < 1e9
    assert 1 <= workload.of_pairs(value, value) < 1e9
