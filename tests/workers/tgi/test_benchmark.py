"""The benchmark's requests, to a TGI with prepared answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from workers.tgi.benchmark import TgiBenchmarkHandler
from workers.tgi.data_types import TgiRequest


class PreparedAnswers:
    """Give the prepared answers in their order; `asked` are the received requests."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def generate(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        status, answer = self._answers.pop(0)
        return web.Response(status=status, text=answer if isinstance(answer, str) else json.dumps(answer))

    @property
    def limits(self) -> Sequence[int]:
        return [request["parameters"]["max_new_tokens"] for request in self.asked]


def generated(tokens: Any) -> tuple[int, Any]:
    return 200, {
        "generated_text": " a",
        "details": {"finish_reason": "eos_token", "generated_tokens": tokens},
    }


async def measured(answers: PreparedAnswers) -> tuple[int, bytes]:
    """Status and body of the benchmark handler's answer to a request of 256 tokens."""
    app = web.Application()
    app.router.add_post("/generate", answers.generate)
    async with TestServer(app) as tgi, ModelServer(str(tgi.make_url("/"))) as server:
        payload = TgiRequest.of("Hello", max_new_tokens=256)
        async with TgiBenchmarkHandler().call_model(ModelCaller(server, {}), payload) as answer:
            assert isinstance(answer.body, bytes)
            return answer.status, answer.body


async def test_missing_tokens_are_requested_with_another_prompt() -> None:
    answers = PreparedAnswers(generated(200), generated(1), generated(55))
    assert (await measured(answers))[0] == 200
    assert answers.limits == [256, 56, 55]
    assert len({request["inputs"] for request in answers.asked}) == 3
    assert all(request["parameters"]["details"] is True for request in answers.asked)


@pytest.mark.parametrize(
    "answer",
    [
        generated(256),
        generated(0),
        generated(-5),
        generated("5"),
        generated(None),
        (200, []),
        (200, "no JSON"),
    ],
)
async def test_an_answer_without_a_token_count_counts_as_complete(answer: tuple[int, Any]) -> None:
    answers = PreparedAnswers(answer)
    assert (await measured(answers))[0] == 200
    assert answers.limits == [256]


async def test_an_error_ends_the_benchmark_request_and_is_returned() -> None:
    error = {"error": "CUDA out of memory", "error_type": "generation"}
    assert await measured(PreparedAnswers(generated(1), (424, error))) == (424, json.dumps(error).encode())
