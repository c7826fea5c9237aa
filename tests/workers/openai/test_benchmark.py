"""The benchmark's requests to servers that differ in what they accept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.workers.noted_answers import Outcome, caller_of, outcome_of
from tests.workers.openai.fake_server import MODEL, FakeOpenAI
from workers.openai.benchmark import OpenAIBenchmarkHandler
from workers.openai.data_types import CompletionRequest


@dataclass
class Benchmark:
    """Sends benchmark requests of `handler` to `server`."""

    server: FakeOpenAI
    handler: OpenAIBenchmarkHandler

    async def send(self, payload: CompletionRequest | None = None) -> Outcome:
        sent = payload or self.handler.make_benchmark_payload()
        async with caller_of(self.server.app()) as caller:
            return await outcome_of(self.handler.call_model(caller, sent), caller)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(note["body"]) for note in self.server.requests if note["body"]]


async def test_with_ignore_eos_all_tokens_are_generated() -> None:
    handler = OpenAIBenchmarkHandler(ignore_eos=True, model_name=MODEL)
    bench = Benchmark(FakeOpenAI(eos_after=3), handler)
    found = await bench.send()
    assert (found.status, found.events, found.workloads) == (200, 500, [500.0])
    (message,) = bench.messages
    assert len(message.pop("prompt").split()) == 100
    assert message == {
        "max_tokens": 500,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "model": MODEL,
    }


@pytest.mark.parametrize("usage", [True, False])
async def test_an_answer_that_ends_early_counts_what_was_generated(usage: bool) -> None:
    bench = Benchmark(FakeOpenAI(eos_after=240, usage=usage), OpenAIBenchmarkHandler(model_name=MODEL))
    found = await bench.send()
    assert (found.status, found.events, found.workloads) == (200, 240, [240.0])
    assert len(bench.messages) == 1


async def test_a_model_that_generates_nothing_is_an_error() -> None:
    bench = Benchmark(FakeOpenAI(eos_after=0), OpenAIBenchmarkHandler())
    found = await bench.send()
    assert (found.status, found.workloads, len(bench.messages)) == (502, [], 1)
    assert json.loads(found.text)["error"].startswith("the answer has no token: ")


@pytest.mark.parametrize(
    ("refused", "accepted"),
    [
        ({"stream_options"}, {"prompt", "max_tokens", "model", "stream"}),
        ({"stream_options", "stream"}, {"prompt", "max_tokens", "model"}),
    ],
)
async def test_fields_that_the_server_refuses_are_left_out_from_then_on(
    refused: set[str], accepted: set[str]
) -> None:
    bench = Benchmark(FakeOpenAI(refuses=frozenset(refused)), OpenAIBenchmarkHandler(model_name=MODEL))
    assert (await bench.send()).workloads == [500.0]
    attempts = len(bench.messages)
    assert attempts == 1 + len(refused)
    assert (await bench.send()).workloads == [500.0]
    assert len(bench.messages) == attempts + 1
    assert set(bench.messages[-1]) == accepted


async def test_a_request_that_is_refused_for_another_reason_forgets_nothing() -> None:
    bench = Benchmark(FakeOpenAI(refuses=frozenset({"max_tokens"})), OpenAIBenchmarkHandler(model_name=MODEL))
    found = await bench.send()
    assert (found.status, found.workloads) == (400, [])
    assert "Unrecognized request argument: max_tokens" in found.text
    bench.server.refuses = frozenset()
    assert (await bench.send()).status == 200
    assert "stream_options" in bench.messages[-1]


async def test_a_server_that_does_not_stream_is_measured_by_whole_answers() -> None:
    bench = Benchmark(FakeOpenAI(eos_after=7, streams=False), OpenAIBenchmarkHandler(model_name=MODEL))
    found = await bench.send()
    assert (found.status, found.events, found.workloads) == (200, 0, [7.0])


async def test_an_error_in_the_stream_is_a_failure() -> None:
    bench = Benchmark(FakeOpenAI(), OpenAIBenchmarkHandler(model_name=MODEL))
    payload = CompletionRequest({"prompt": "break", "max_tokens": 9, "stream": True})
    found = await bench.send(payload)
    assert (found.status, found.workloads) == (502, [])
    assert json.loads(found.text)["error"]["message"] == "CUDA out of memory"


async def test_an_unknown_model_is_asked_for_once() -> None:
    bench = Benchmark(FakeOpenAI(), OpenAIBenchmarkHandler(model_name="other"))
    found = await bench.send()
    assert (found.status, len(bench.messages)) == (404, 1)
    assert json.loads(found.text)["error"]["message"] == "The model `other` does not exist."


async def test_the_default_model_is_the_servers_first() -> None:
    bench = Benchmark(FakeOpenAI(), OpenAIBenchmarkHandler())
    for _ in range(2):
        await bench.send()
    assert [message["model"] for message in bench.messages] == [MODEL, MODEL]
    assert [note["path"] for note in bench.server.requests].count("/v1/models") == 1


async def test_a_server_without_a_list_of_models_gets_no_model_name() -> None:
    bench = Benchmark(FakeOpenAI(lacks=frozenset({"/v1/models"})), OpenAIBenchmarkHandler())
    assert (await bench.send()).status == 200
    assert "model" not in bench.messages[0]
