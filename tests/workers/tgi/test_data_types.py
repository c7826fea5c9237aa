"""The checks of a TGI request, its JSON for TGI, and its workload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from workers.openai.workload import MOST
from workers.tgi.data_types import DEFAULT_TOKENS, TEST_TOKENS, TgiRequest

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OWN = {"inputs", "parameters", "stream", "max_new_tokens"}
others = st.dictionaries(st.text().filter(lambda name: name not in OWN), json_values, max_size=4)


@given(st.text(), others, others, st.integers(0, MOST))
def test_all_fields_except_stream_are_passed_on_unchanged(
    inputs: str, parameters: dict[str, Any], beside: dict[str, Any], tokens: int
) -> None:
    request = {**beside, "inputs": inputs, "parameters": {**parameters, "max_new_tokens": tokens}}
    for message in (request, {**request, "stream": True}, {**request, "stream": False}):
        payload = TgiRequest.from_json_msg(message)
        assert payload.generate_payload_json() == request
        assert payload.count_workload() == tokens
        assert payload.stream is message.get("stream", False)


@given(others)
def test_the_default_limit_is_256_tokens(parameters: dict[str, Any]) -> None:
    for given_parameters in (parameters, {**parameters, "max_new_tokens": None}):
        before = dict(given_parameters)
        payload = TgiRequest.from_json_msg({"inputs": "x", "parameters": given_parameters})
        assert payload.generate_payload_json()["parameters"] == {
            **parameters,
            "max_new_tokens": DEFAULT_TOKENS,
        }
        assert payload.count_workload() == 256.0
        assert given_parameters == before


def test_a_request_without_parameters_has_the_default_limit() -> None:
    sent = TgiRequest.from_json_msg({"inputs": "x"}).generate_payload_json()
    assert sent == {"inputs": "x", "parameters": {"max_new_tokens": 256}}


@pytest.mark.parametrize(
    ("tokens", "workload"),
    [(0, 0), (-1, 256), (10**300, MOST), (1.5, 1.5), (5.0, 5), ("5", 5), (True, 256), ([5], 256)],
)
def test_tgi_judges_the_limit(tokens: Any, workload: float) -> None:
    message = {"inputs": 5, "parameters": {"max_new_tokens": tokens}}
    payload = TgiRequest.from_json_msg(message)
    assert payload.generate_payload_json() == message
    assert payload.count_workload() == workload


@pytest.mark.parametrize("parameters", [[], None, "x", 5])
def test_tgi_judges_parameters_that_are_no_object(parameters: Any) -> None:
    payload = TgiRequest.from_json_msg({"parameters": parameters})
    assert payload.generate_payload_json() == {"parameters": parameters}
    assert payload.count_workload() == DEFAULT_TOKENS


@given(
    st.text() | json_values,
    st.dictionaries(st.sampled_from(["max_new_tokens", "x"]), json_values) | json_values,
    st.booleans() | json_values,
)
def test_only_a_stream_that_is_no_boolean_is_refused(inputs: Any, parameters: Any, stream: Any) -> None:
    message = {"inputs": inputs, "parameters": parameters, "stream": stream}
    if isinstance(stream, bool):
        assert 0 <= TgiRequest.from_json_msg(message).count_workload() <= MOST
        return
    with pytest.raises(JsonDataException) as refused:
        TgiRequest.from_json_msg(message)
    assert refused.value.message == {"stream": "must be true or false"}


def test_payloads_for_tests_are_valid_and_differ() -> None:
    payloads = [TgiRequest.for_test() for _ in range(8)]
    assert [TgiRequest.from_json_msg(payload) for payload in payloads] == payloads
    assert {payload.count_workload() for payload in payloads} == {TEST_TOKENS}
    assert len({payload["inputs"] for payload in payloads}) == 8
