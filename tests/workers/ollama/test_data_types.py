"""The payloads and the workload of requests of Ollama's API."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ollama.data_types import OllamaEmbeddingRequest, OllamaRequest
from workers.ollama.handlers import OllamaGenerateHandler
from workers.openai.workload import MOST

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(st.text().filter(lambda n: n not in ("options", "input")), json_values, max_size=4)


@given(fields, st.integers(1, MOST))
def test_the_workload_is_the_limit_and_the_request_is_unchanged(others: dict[str, Any], limit: int) -> None:
    request = {**others, "options": {"num_predict": limit}}
    for message in (request, {"input": request}):
        payload = OllamaRequest.from_json_msg(message)
        assert (payload.generate_payload_json(), payload.count_workload()) == (request, limit)


@pytest.mark.parametrize(
    ("request_", "workload"),
    [
        ({}, 256.0),
        ({"options": None}, 256.0),
        ({"options": {}}, 256.0),
        ({"options": {"num_predict": None}}, 256.0),
        ({"options": {"num_predict": -1}}, 256.0),
        ({"options": {"num_predict": -2}}, 256.0),
        ({"options": {"num_predict": 0}}, 1.0),
        ({"options": {"num_predict": 1}}, 1.0),
    ],
)
def test_a_request_without_a_limit_counts_as_256_tokens(request_: dict[str, Any], workload: float) -> None:
    assert OllamaRequest.from_json_msg(request_).count_workload() == workload


@pytest.mark.parametrize(
    ("options", "workload"),
    [
        *(({"num_predict": limit}, 256.0) for limit in ("many", True, [5], {"x": 5})),
        *(({"num_predict": limit}, MOST) for limit in (MOST + 1, 10**300)),
        *(({"num_predict": limit}, 5.0) for limit in (5.0, "5")),
        *((options, 256.0) for options in (["x"], "x", 5, True)),
    ],
)
def test_ollama_judges_the_options(options: Any, workload: float) -> None:
    payload = OllamaRequest.from_json_msg({"options": options})
    assert (payload.generate_payload_json(), payload.count_workload()) == ({"options": options}, workload)


def test_texts_to_embed_count_an_eighth_of_their_tokens() -> None:
    texts = ["x" * 64, "y" * 64]
    assert OllamaEmbeddingRequest.from_json_msg({"input": texts}).count_workload() == 4.0
    assert OllamaEmbeddingRequest.from_json_msg({"input": texts, "model": "a"}).count_workload() == 4.0
    assert OllamaEmbeddingRequest.from_json_msg({"prompt": texts[0]}).count_workload() == 2.0


def test_keep_alive_is_removed_and_the_model_is_set() -> None:
    handler = OllamaGenerateHandler(model_name="tiny")
    request = {"prompt": "Hello", "keep_alive": 0}
    assert handler.generate_payload_json(OllamaRequest(request)) == {"prompt": "Hello", "model": "tiny"}
    own = {"prompt": "Hello", "model": "own"}
    assert handler.generate_payload_json(OllamaRequest(own)) == own


def test_payloads_for_tests_are_valid_and_differ() -> None:
    payloads = [OllamaRequest.for_test() for _ in range(8)]
    assert [OllamaRequest.from_json_msg(payload.input) for payload in payloads] == payloads
    assert {payload.count_workload() for payload in payloads} == {500.0}
    assert len({payload.input["prompt"] for payload in payloads}) == 8
