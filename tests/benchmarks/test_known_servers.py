"""The servers of known capacity answer as real ones do, and do not exceed their capacity."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest

from benchmarks.known_capacity import worker_command
from benchmarks.known_jobs_worker import worker
from benchmarks.known_servers import (
    SERVERS,
    BatchingServer,
    JobServer,
    KnownServer,
    listen,
    port_of,
)
from tests.guard import GUARD_S

TEXT = BatchingServer(base_s=0.001, each_s=0.0, most=2, prefill_s=0.0, early_end=0.1)
JOBS = JobServer(slots=2, mean_s=0.02, jitter=0.1, workload=1.0)


@asynccontextmanager
async def serving(server: KnownServer) -> AsyncGenerator[aiohttp.ClientSession, None]:
    listening = await listen(server)
    async with listening, aiohttp.ClientSession(f"http://127.0.0.1:{port_of(listening)}") as http:
        with anyio.fail_after(GUARD_S):
            yield http


async def answered(http: aiohttp.ClientSession, path: str, payload: Any) -> Any:
    async with http.post(path, json=payload) as answer:
        assert answer.status == 200
        return await answer.json()


@pytest.mark.parametrize(
    ("name", "capacity"),
    [
        ("fast", 12_012),
        ("mid", 1_384),
        ("slow", 499),
        ("early", 12_012),
        ("compile", 12_012),
        ("images", 33.3),
        ("audio", 400),
    ],
)
def test_the_capacities(name: str, capacity: float) -> None:
    assert SERVERS[name].capacity == pytest.approx(capacity, rel=0.002)
    assert worker_command(name)


async def test_a_completion() -> None:
    async with serving(TEXT) as http:
        payload = {"prompt": "once " * 1000, "max_tokens": 20, "ignore_eos": True}
        answer = await answered(http, "/v1/completions", payload)
        assert answer["choices"][0] == {
            "index": 0,
            "text": " word" * 20,
            "logprobs": None,
            "finish_reason": "length",
        }
        assert answer["usage"] == {"prompt_tokens": 1250, "completion_tokens": 20, "total_tokens": 1270}
        async with http.get("/v1/models") as models:
            assert (await models.json())["data"][0]["id"] == answer["model"]


@pytest.mark.parametrize("has_usage", [True, False])
async def test_a_stream_has_an_event_for_each_token(has_usage: bool) -> None:
    payload = {"prompt": "once", "max_tokens": 5, "ignore_eos": True, "stream": True}
    async with serving(TEXT) as http:
        options = {"stream_options": {"include_usage": True}} if has_usage else {}
        async with http.post("/v1/completions", json={**payload, **options}) as answer:
            assert answer.content_type == "text/event-stream"
            *events, last = (await answer.text()).split("\n\n")[:-1]
    assert last == "data: [DONE]"
    parts = [json.loads(event.removeprefix("data: ")) for event in events]
    if has_usage:
        assert parts.pop()["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons == [None] * 4 + ["length"]


async def test_answers_end_early_unless_the_end_of_text_is_ignored() -> None:
    async with serving(TEXT) as http:
        answers = [
            await answered(http, "/v1/completions", {"prompt": "", "max_tokens": 20}) for _ in range(20)
        ]
    lengths = [answer["usage"]["completion_tokens"] for answer in answers]
    assert 2 <= min(lengths) < max(lengths) <= 20


@pytest.mark.parametrize("body", ["no JSON", "[]", '{"max_tokens": "many"}'])
async def test_wrong_requests_are_refused(body: str) -> None:
    async with serving(TEXT) as http:
        for path, status in (("/v1/completions", 400), ("/run", 404)):
            async with http.post(path, data=body) as answer:
                assert answer.status == status


async def test_requests_beyond_the_batch_wait_and_those_that_leave_make_room() -> None:
    async with serving(TEXT) as http:
        long = {"prompt": "", "max_tokens": 1_000_000, "ignore_eos": True, "stream": True}
        answers = [await http.post("/v1/completions", json=long) for _ in range(2)]
        for answer in answers:
            await answer.content.readline()
        third = asyncio.create_task(
            answered(http, "/v1/completions", {"prompt": "", "max_tokens": 3, "ignore_eos": True})
        )
        while (await facts(http))["in_flight"] < 3:
            pass
        assert not third.done()
        for answer in answers:
            answer.close()
        assert (await third)["usage"]["completion_tokens"] == 3
        assert (await facts(http))["in_flight"] == 0


async def test_jobs_take_their_time_and_wait_for_slots() -> None:
    loop = asyncio.get_running_loop()
    async with serving(JOBS) as http:
        began_s = loop.time()
        await asyncio.gather(*(answered(http, "/run", {}) for _ in range(6)))
        assert loop.time() - began_s >= 3 * JOBS.mean_s * (1 - JOBS.jitter)
        assert (await facts(http)) == {"in_flight": 0, "most_at_once": 6}


async def facts(http: aiohttp.ClientSession) -> Any:
    async with http.get("/known") as answer:
        return await answer.json()


@pytest.mark.parametrize(("name", "limit"), [("images", 1), ("audio", None)])
def test_the_worker_for_jobs_sends_one_or_all_at_once(name: str, limit: int | None) -> None:
    backend = worker(name, "http://127.0.0.1:1").backend
    (handler,) = backend.handlers
    assert (handler.endpoint, backend.lanes.concurrency_of(handler)) == ("/run", limit)
