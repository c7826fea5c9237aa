from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lib.data_types import JsonDataException
from workers.hello_world.data_types import DEFAULT_TOKENS, MAX_TOKENS, InputData


def test_the_model_server_gets_the_clients_fields() -> None:
    payload = InputData.from_json_msg({"prompt": "Hello", "max_response_tokens": 7})

    assert payload.generate_payload_json() == {"prompt": "Hello", "max_response_tokens": 7}
    assert payload.count_workload() == 7.0


@pytest.mark.parametrize("message", [{"prompt": ""}, {"prompt": "", "max_response_tokens": None}])
def test_a_missing_or_null_number_of_tokens_is_the_default(message: dict[str, Any]) -> None:
    payload = InputData.from_json_msg(message)

    assert payload.generate_payload_json() == {"prompt": "", "max_response_tokens": DEFAULT_TOKENS}
    assert payload.count_workload() == DEFAULT_TOKENS


@pytest.mark.parametrize("tokens", [1, MAX_TOKENS])
def test_the_limits_of_the_range_are_accepted(tokens: int) -> None:
    assert InputData.from_json_msg({"prompt": "", "max_response_tokens": tokens}).tokens == tokens


OUT_OF_RANGE = f"must be from 1 to {MAX_TOKENS}"


@pytest.mark.parametrize(
    ("message", "problems"),
    [
        ({}, {"prompt": "missing parameter"}),
        ({"prompt": None}, {"prompt": "must be a string"}),
        ({"prompt": "", "max_response_tokens": 0}, {"max_response_tokens": OUT_OF_RANGE}),
        ({"prompt": "", "max_response_tokens": MAX_TOKENS + 1}, {"max_response_tokens": OUT_OF_RANGE}),
        ({"prompt": "", "max_response_tokens": True}, {"max_response_tokens": "must be an integer or null"}),
        ({"prompt": "", "max_response_tokens": 5.0}, {"max_response_tokens": "must be an integer or null"}),
        (
            {"prompt": [], "max_response_tokens": -1},
            {"prompt": "must be a string", "max_response_tokens": OUT_OF_RANGE},
        ),
    ],
)
def test_every_wrong_field_is_named(message: dict[str, Any], problems: dict[str, str]) -> None:
    with pytest.raises(JsonDataException) as raised:
        InputData.from_json_msg(message)

    assert raised.value.message == problems


def test_payloads_for_tests_are_valid_and_differ() -> None:
    payloads = [InputData.for_test() for _ in range(8)]

    assert [InputData.from_json_msg(dataclasses.asdict(p)) for p in payloads] == payloads
    assert len({p.prompt for p in payloads}) == 8
