from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from tests.workers.openai.fake_server import MODEL, FakeOpenAI
from workers.openai.benchmark import MAX_ANSWERS, OpenAIBenchmarkHandler


@asynccontextmanager
async def answered(
    server: FakeOpenAI, handler: OpenAIBenchmarkHandler
) -> AsyncGenerator[tuple[int, Any, list[Any]], None]:
    """Status and JSON of the answer to a benchmark's request, and the messages to the server."""
    async with (
        TestServer(server.app()) as listening,
        ModelServer(str(listening.make_url("/"))) as model,
        handler.call_model(ModelCaller(model, {}), handler.make_benchmark_payload()) as answer,
    ):
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        messages = [json.loads(note["body"]) for note in server.requests if note["body"]]
        yield answer.status, json.loads(answer.body), messages


async def test_one_answer_suffices_with_ignore_eos() -> None:
    handler = OpenAIBenchmarkHandler(ignore_eos=True, model_name=MODEL)
    async with answered(FakeOpenAI(eos_after=3), handler) as (status, answer, messages):
        assert (status, answer["usage"]["completion_tokens"]) == (200, 500)
        assert [(m["max_tokens"], m["ignore_eos"], m["model"]) for m in messages] == [(500, True, MODEL)]


async def test_without_ignore_eos_missing_tokens_are_requested() -> None:
    handler = OpenAIBenchmarkHandler(model_name=MODEL)
    async with answered(FakeOpenAI(eos_after=240), handler) as (status, _, messages):
        assert status == 200
        assert [m["max_tokens"] for m in messages] == [500, 260, 20]
        assert len({m["prompt"] for m in messages}) == 3


async def test_answers_without_usage_count_as_complete() -> None:
    handler = OpenAIBenchmarkHandler(model_name=MODEL)
    async with answered(FakeOpenAI(eos_after=5, usage=False), handler) as (status, _, messages):
        assert status == 200
        assert [m["max_tokens"] for m in messages] == [500]


async def test_a_model_that_generates_nothing_is_an_error() -> None:
    async with answered(FakeOpenAI(eos_after=0), OpenAIBenchmarkHandler()) as (status, answer, messages):
        assert len(messages) == MAX_ANSWERS
        assert status == 502
        assert answer == {"error": "50 answers have 0 of 500 tokens: the model stops too early"}


async def test_the_first_error_ends_the_benchmark_request() -> None:
    handler = OpenAIBenchmarkHandler(model_name="other")
    async with answered(FakeOpenAI(), handler) as (status, answer, messages):
        assert (status, len(messages)) == (404, 1)
        assert answer["error"]["message"] == "The model `other` does not exist."


async def test_the_default_model_is_the_servers_first() -> None:
    server, handler = FakeOpenAI(), OpenAIBenchmarkHandler()
    for _ in range(2):
        async with answered(server, handler) as (_, _, messages):
            assert {m["model"] for m in messages} == {MODEL}
    assert [note["path"] for note in server.requests].count("/v1/models") == 1


async def test_a_server_without_a_list_of_models_gets_no_model_name() -> None:
    server = FakeOpenAI(lacks=frozenset({"/v1/models"}))
    async with answered(server, OpenAIBenchmarkHandler()) as (status, _, messages):
        assert status == 200
        assert [set(m) for m in messages] == [{"prompt", "max_tokens"}]
