"""What a TGI request must be, what it is sent as, and how much it counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from workers.tgi.data_types import MAX_TOKENS, InputData

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(), st.dictionaries(st.text().filter(lambda n: n != "max_new_tokens"), json_values, max_size=4))
def test_everything_but_the_limit_passes_untouched(inputs: str, parameters: dict[str, Any]) -> None:
    payload = InputData.from_json_msg({"inputs": inputs, "parameters": parameters})
    assert payload.generate_payload_json() == {
        "inputs": inputs,
        "parameters": {**parameters, "max_new_tokens": 256},
    }
    assert payload.count_workload() == 256.0


@given(st.integers(1, MAX_TOKENS))
def test_the_workload_is_what_may_be_generated(tokens: int) -> None:
    payload = InputData.from_json_msg({"inputs": "", "parameters": {"max_new_tokens": tokens}})
    assert payload.count_workload() == tokens
    assert payload.generate_payload_json()["parameters"] == {"max_new_tokens": tokens}


@pytest.mark.parametrize("parameters", [{}, {"max_new_tokens": None}])
def test_left_out_it_is_256(parameters: dict[str, Any]) -> None:
    assert InputData.from_json_msg({"inputs": "x", "parameters": parameters}).count_workload() == 256.0
    assert InputData.from_json_msg({"inputs": "x"}).count_workload() == 256.0


@pytest.mark.parametrize("tokens", [0, -1, MAX_TOKENS + 1, 10**300, 1.5, "5", True, [5]])
def test_a_limit_that_is_none_is_refused(tokens: Any) -> None:
    with pytest.raises(JsonDataException) as refused:
        InputData.from_json_msg({"inputs": 5, "parameters": {"max_new_tokens": tokens}})
    assert refused.value.message == {
        "inputs": "must be a string",
        "parameters": {"max_new_tokens": f"must be an integer from 1 to {MAX_TOKENS}"},
    }


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(JsonDataException) as refused:
        InputData.from_json_msg({"parameters": []})
    assert refused.value.message == {"inputs": "missing parameter", "parameters": "must be an object"}


def test_load_is_not_told_apart_from_traffic() -> None:
    prompts = {InputData.for_test().inputs for _ in range(10)}
    assert len(prompts) == 10
