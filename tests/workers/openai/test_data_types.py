from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from workers.openai import data_types
from workers.openai.data_types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ImageEditRequest,
    ImageRequest,
    ModelsRequest,
    OpenAIRequest,
    RecordingRequest,
    RerankRequest,
    ResponseRequest,
    ScoreRequest,
    SpeechRequest,
)
from workers.openai.handlers import HANDLERS, ChatHandler, OpenAIHandler

# A valid request of each kind, and its workload.
RIGHT: list[tuple[type[OpenAIRequest], dict[str, Any], float]] = [
    (CompletionRequest, {"prompt": ""}, 256),
    (CompletionRequest, {"prompt": ["a", "b"], "max_tokens": 5, "n": 2}, 20),
    (CompletionRequest, {"prompt_embeds": "AAAA", "prompt": None, "max_tokens": 5}, 5),
    (ChatRequest, {"messages": [], "max_completion_tokens": 7, "max_tokens": None}, 7),
    (ResponseRequest, {"input": "Hello", "max_output_tokens": 9}, 9),
    (ResponseRequest, {"previous_response_id": "r"}, 256),
    (EmbeddingRequest, {"input": "x" * 320}, 10),
    (EmbeddingRequest, {"messages": [{"role": "user", "content": "x" * 304}]}, 9.625),
    (RerankRequest, {"query": "x" * 32, "documents": ["x" * 64] * 10}, 30),
    (ScoreRequest, {"text_1": "x" * 32, "text_2": ["x" * 64] * 10}, 30),
    (ScoreRequest, {"query": "x" * 32, "items": ["x" * 64] * 10}, 30),
    (ScoreRequest, {}, 1),
    (SpeechRequest, {"input": "x" * 150}, 500),
    (ImageRequest, {"prompt": "a house", "n": 2}, 1570),
    (RecordingRequest, {"file": "A" * 32_000, "filename": "a.mp3"}, 15),
    (ImageEditRequest, {"image": "data:image/png;base64,AAAA", "size": "512x512"}, 260),
    (ModelsRequest, {}, 0),
]
TOKENS = "must be an integer from 1 to 1048576"
N = "must be an integer from 1 to 128"
MISSING = "missing parameter"


@pytest.mark.parametrize(("kind", "request_", "workload"), RIGHT)
def test_a_request_is_read_in_both_forms(
    kind: type[OpenAIRequest], request_: dict[str, Any], workload: float
) -> None:
    for payload in (kind.from_json_msg(request_), kind.from_json_msg({"input": request_})):
        assert payload.input == request_
        assert payload.count_workload() == workload


@pytest.mark.parametrize(
    ("kind", "request_", "problems"),
    [
        (CompletionRequest, {}, {"prompt": MISSING}),
        (CompletionRequest, {"prompt": None}, {"prompt": MISSING}),
        (CompletionRequest, {"prompt": 5, "n": 0}, {"prompt": "must be a string or a list", "n": N}),
        (CompletionRequest, {"prompt": ["a"] * 2049}, {"prompt": "must have at most 2048 prompts"}),
        (ChatRequest, {"messages": {}}, {"messages": "must be a list"}),
        (ChatRequest, {"messages": [], "max_tokens": 10**300}, {"max_tokens": TOKENS}),
        (ChatRequest, {"messages": [], "max_tokens": 1.0}, {"max_tokens": TOKENS}),
        (ChatRequest, {"messages": [], "max_tokens": True}, {"max_tokens": TOKENS}),
        (ChatRequest, {"messages": [], "max_completion_tokens": "5"}, {"max_completion_tokens": TOKENS}),
        (ChatRequest, {"messages": [], "n": 129}, {"n": N}),
        (ChatRequest, {"max_tokens": -1}, {"messages": MISSING, "max_tokens": TOKENS}),
        (ResponseRequest, {"input": 5}, {"input": "must be a string or a list"}),
        (ResponseRequest, {"max_output_tokens": 0}, {"max_output_tokens": TOKENS}),
        (EmbeddingRequest, {}, {"input": MISSING}),
        (EmbeddingRequest, {"input": 5}, {"input": "must be a string or a list"}),
        (RerankRequest, {}, {"query": MISSING, "documents": MISSING}),
        (SpeechRequest, {"input": ["a"]}, {"input": "must be a string"}),
        (
            ImageRequest,
            {"size": "8193x1", "n": 0},
            {"prompt": MISSING, "n": N, "size": "must be at most 8192x8192"},
        ),
        (RecordingRequest, {}, {"file": MISSING}),
        (RecordingRequest, {"file": []}, {"file": MISSING}),
        (RecordingRequest, {"file": "AAAA"}, {"file": "needs a filename, a string"}),
        (ImageEditRequest, {"n": 0}, {"n": N, "image": MISSING}),
    ],
)
def test_every_wrong_field_is_named(
    kind: type[OpenAIRequest], request_: dict[str, Any], problems: dict[str, str]
) -> None:
    with pytest.raises(JsonDataException) as bare:
        kind.from_json_msg(request_)
    with pytest.raises(JsonDataException) as wrapped:
        kind.from_json_msg({"input": request_})
    assert bare.value.message == problems
    assert wrapped.value.message == {"input": problems}


def test_an_input_object_beside_other_fields_is_a_bare_request() -> None:
    request: dict[str, Any] = {"messages": [], "input": {"mine": 1}}
    assert ChatRequest.from_json_msg(request).input == request
    special = {"input": {"prompt_string": "x"}, "model": "m"}
    assert EmbeddingRequest.from_json_msg(special).input == special


def test_the_limits_bound_the_workload() -> None:
    most = CompletionRequest.from_json_msg(
        {
            "prompt": ["a"] * data_types.MAX_PROMPTS,
            "max_tokens": data_types.MAX_TOKENS,
            "n": data_types.MAX_N,
        }
    )
    assert most.count_workload() == 2.0**38


def test_a_payload_for_tests_is_a_valid_request() -> None:
    payload = CompletionRequest.for_test()
    assert CompletionRequest.from_json_msg({"input": payload.input}) == payload
    assert payload.count_workload() == 500
    assert CompletionRequest.for_test() != payload


# The request to the model server

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FREE = st.dictionaries(
    st.text().filter(lambda name: name not in {"model", "n", "messages"}), JSON, max_size=6
)


@settings(deadline=None)
@given(
    unknown=FREE,
    wrapped=st.booleans(),
    name=st.sampled_from(["", "tiny"]),
    model=st.sampled_from([..., None, "own"]),
)
def test_any_request_is_passed_on_unchanged_except_for_the_model(
    unknown: dict[str, Any], wrapped: bool, name: str, model: Any
) -> None:
    """Including the order of fields, and nulls."""
    request: dict[str, Any] = {k: v for k, v in unknown.items() if not k.startswith("max_")}
    request["messages"] = []
    if model is not ...:
        request["model"] = model
    text = json.dumps(request)
    received = json.loads(text)

    payload = ChatRequest.from_json_msg({"input": received} if wrapped else received)
    sent = ChatHandler(model_name=name).generate_payload_json(payload)

    if name and model in (..., None):
        assert sent["model"] == name
        sent = {k: v for k, v in sent.items() if k != "model" or model is None}
        if model is None:
            sent["model"] = None
    assert json.dumps(sent) == text
    assert json.dumps(received) == text


@pytest.mark.parametrize("handler", HANDLERS)
def test_each_route_calls_the_same_path(handler: type[OpenAIHandler]) -> None:
    here = handler(health="/health")
    assert here.endpoint == handler.path
    assert here.healthcheck_endpoint == "/health"
    assert here.payload_cls() is handler.payload


def test_a_form_has_all_fields_of_the_request() -> None:
    request = {"file": "c291bmQ=", "filename": "a.mp3", "include[]": ["a"], "list": [], "model": None}
    form = RecordingRequest.from_json_msg(request).generate_payload_multipart()
    assert form == {
        "file": ("a.mp3", b"sound", "audio/mpeg"),
        "include[]": ["a"],
        "list[]": [],
        "model": None,
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_invalid_file_is_named(wrapped: bool) -> None:
    uri = "data:image/png;base64,AAA"
    request = {"image": uri, "mask": uri}
    payload = ImageEditRequest.from_json_msg({"input": request} if wrapped else request)
    with pytest.raises(JsonDataException) as raised:
        payload.generate_payload_multipart()
    assert set(raised.value.message["input"] if wrapped else raised.value.message) == {"image", "mask"}
