"""The payloads and the workload of requests for embeddings, ranks and classes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.embeddings.benchmark import requests_for
from workers.embeddings.data_types import InputsRequest, TextsRequest, TextsRerankRequest
from workers.openai.data_types import OpenAIRequest

TEXT = "x" * 64  # 16 tokens
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("inputs", "workload"),
    [
        (TEXT, 2.0),
        ([TEXT, TEXT], 4.0),
        ([[TEXT], [TEXT, TEXT]], 6.0),
        ({"source_sentence": TEXT, "sentences": [TEXT]}, 4.0),
        (list(range(80)), 10.0),
        ("", 1.0),
    ],
)
def test_inputs_count_an_eighth_of_their_tokens(inputs: Any, workload: float) -> None:
    assert InputsRequest.from_json_msg({"inputs": inputs}).count_workload() == workload


@pytest.mark.parametrize("name", ["texts", "documents"])
def test_each_text_is_read_together_with_the_query(name: str) -> None:
    request = {"query": TEXT, name: [TEXT, TEXT, TEXT]}
    assert TextsRerankRequest.from_json_msg(request).count_workload() == 12.0


@given(json_values, st.dictionaries(st.text(min_size=7), json_values))
def test_any_inputs_are_passed_on_unchanged(inputs: Any, others: dict[str, Any]) -> None:
    request = {**others, "inputs": inputs}
    payload = InputsRequest.from_json_msg(request)
    assert payload.generate_payload_json() == request
    assert payload.count_workload() >= 1.0


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        (InputsRequest, {}),
        (InputsRequest, {"inputs": None}),
        (TextsRerankRequest, {}),
        (TextsRerankRequest, {"query": "a", "texts": None}),
        (TextsRequest, {}),
        (TextsRequest, {"input": 5}),
    ],
)
def test_the_server_judges_the_fields(kind: type[OpenAIRequest], request_: dict[str, Any]) -> None:
    payload = kind.from_json_msg(request_)
    assert (payload.generate_payload_json(), payload.count_workload()) == (request_, 1.0)


def test_payloads_for_tests_are_valid_and_differ() -> None:
    for kind in (InputsRequest, TextsRerankRequest):
        assert kind.from_json_msg(kind.for_test().input).count_workload() > 4.0
    payloads = [TextsRequest.for_test() for _ in range(4)]
    assert [TextsRequest.from_json_msg(payload.input) for payload in payloads] == payloads
    texts = [text for payload in payloads for text in payload.input["input"]]
    assert len(set(texts)) == len(texts) == 4 * 4


def test_the_benchmarks_request_of_each_task_is_valid_and_counts_its_texts() -> None:
    texts = [f"{TEXT} and more", TEXT]
    for request in requests_for(texts).values():
        assert type(request).from_json_msg(request.input) == request
        assert request.count_workload() >= 4.0
