from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from workers.openai.data_types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ImageEditRequest,
    ImageRequest,
    LookupRequest,
    ModelsRequest,
    OpenAIRequest,
    PassedRequest,
    RecordingRequest,
    RerankRequest,
    ResponseRequest,
    ScoreRequest,
    SpeechRequest,
    TokenizeRequest,
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
    (TokenizeRequest, {"prompt": "x" * 1000}, 1),
    (PassedRequest, {}, 1),
    (PassedRequest, {"prompt": "x" * 320, "n": 2}, 10),
    (PassedRequest, {"prompt": "x" * 320, "n_predict": 5}, 5),
    (PassedRequest, {"messages": [{"content": "x" * 320}], "max_tokens": 0}, 10),
    (LookupRequest, {"id": "x" * 320}, 0),
    # What the model server refuses, or means in its own way.
    (CompletionRequest, {"prompt": "x" * 320, "max_tokens": 0, "echo": True, "logprobs": 1}, 10),
    (CompletionRequest, {}, 256),
    (CompletionRequest, {"prompt": 5, "n": 0}, 1),
    (ChatRequest, {"messages": {}, "max_tokens": -1}, 256),
    (ChatRequest, {"max_tokens": "5"}, 5),
    (ChatRequest, {"max_tokens": 10**300}, 2**40),
    (ResponseRequest, {"input": 5, "max_output_tokens": None}, 256),
    (EmbeddingRequest, {"input": 5}, 1),
    (RerankRequest, {}, 1),
    (SpeechRequest, {"input": ["a"]}, 1),
    (ImageRequest, {"size": "513x512", "n": "many"}, 435),
    (RecordingRequest, {}, 1),
    (ImageEditRequest, {"url": "https://images.example/a.png", "n": 2}, 1570),
]


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
        (RecordingRequest, {"file": "AAAA"}, {"file": "needs a filename, a string"}),
        (
            ImageEditRequest,
            {"image": "AAAA", "mask": "AAAA"},
            {"image": "needs a filename, a string", "mask": "needs a filename, a string"},
        ),
    ],
)
def test_every_wrong_file_is_named(
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


FIELDS = (
    *("prompt", "messages", "input", "n", "max_tokens", "max_completion_tokens", "max_output_tokens"),
    *("n_predict", "query", "documents", "text_1", "items", "size"),
)
KINDS = {kind for kind, _, _ in RIGHT}


@settings(deadline=None)
@given(kind=st.sampled_from(sorted(KINDS, key=repr)), request_=st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_json_a_request_is_its_workload_is_finite(
    kind: type[OpenAIRequest], request_: dict[str, Any]
) -> None:
    payload = kind.from_json_msg(request_)
    assert 0 <= payload.count_workload() < math.inf
    assert isinstance(payload, LookupRequest) or payload.count_workload() > 0


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
