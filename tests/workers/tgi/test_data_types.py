"""The checks of a TGI request, its JSON for TGI, and its workload."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from workers.tgi.data_types import DEFAULT_TOKENS, MAX_TOKENS, TEST_TOKENS, TgiRequest

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OWN = {"inputs", "parameters", "stream", "max_new_tokens"}
others = st.dictionaries(st.text().filter(lambda name: name not in OWN), json_values, max_size=4)


@given(st.text(), others, others, st.integers(1, MAX_TOKENS))
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


@pytest.mark.parametrize("tokens", [0, -1, MAX_TOKENS + 1, 10**300, 1.5, 5.0, "5", True, [5]])
def test_every_wrong_field_is_named(tokens: Any) -> None:
    with pytest.raises(JsonDataException) as refused:
        TgiRequest.from_json_msg({"inputs": 5, "parameters": {"max_new_tokens": tokens}, "stream": 1})
    assert refused.value.message == {
        "inputs": "must be a string",
        "parameters": {"max_new_tokens": f"must be an integer from 1 to {MAX_TOKENS}"},
        "stream": "must be true or false",
    }


@pytest.mark.parametrize("parameters", [[], None, "x", 5])
def test_missing_inputs_and_wrong_parameters_are_named(parameters: Any) -> None:
    with pytest.raises(JsonDataException) as refused:
        TgiRequest.from_json_msg({"parameters": parameters})
    assert refused.value.message == {"inputs": "missing parameter", "parameters": "must be an object"}


@given(
    st.text() | json_values,
    st.fixed_dictionaries(
        {}, optional={"max_new_tokens": st.integers(-1, MAX_TOKENS + 1) | json_values, "x": json_values}
    )
    | json_values,
    st.booleans() | json_values,
)
def test_any_json_is_either_accepted_or_refused(inputs: Any, parameters: Any, stream: Any) -> None:
    message = {"inputs": inputs, "parameters": parameters, "stream": stream}
    wrong: dict[str, Any] = {}
    try:
        assert 1 <= TgiRequest.from_json_msg(message).count_workload() <= MAX_TOKENS
    except JsonDataException as e:
        wrong = e.message
    assert set(wrong) <= set(message)


def test_payloads_for_tests_are_valid_and_differ() -> None:
    payloads = [TgiRequest.for_test() for _ in range(8)]
    assert [TgiRequest.from_json_msg(payload) for payload in payloads] == payloads
    assert {payload.count_workload() for payload in payloads} == {TEST_TOKENS}
    assert len({payload["inputs"] for payload in payloads}) == 8
