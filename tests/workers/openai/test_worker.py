"""The worker as a process, through the local engine, in front of a fake model server."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.event_loop import until
from tests.fakes.raw_client import connected
from tests.system import GUARD_S
from tests.workers.openai.fake_server import MODEL, SPEECH
from tests.workers.worker_system import PERF, WorkerSystem, worker_system
from workers.openai import client

# Routes with JSON requests: a request for each, and a key of its answer.
ROUTES: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/completions": ({"prompt": "Hello", "max_tokens": 3}, "choices"),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "Hello"}]}, "choices"),
    "/v1/responses": ({"input": "Hello", "max_output_tokens": 3}, "output"),
    "/v1/embeddings": ({"input": ["Hello", "world"]}, "data"),
    "/v1/rerank": ({"query": "Hello", "documents": ["a", "b"]}, "results"),
    "/v1/score": ({"text_1": "Hello", "text_2": ["a", "b"]}, "data"),
    "/v1/images/generations": ({"prompt": "A house", "size": "512x512"}, "data"),
}
SOUND = b"RIFF" + bytes(range(256)) * 8000
FILE = base64.b64encode(SOUND).decode()


async def test_every_route_with_both_request_forms(tmp_path: Path) -> None:
    async with worker_system(
        tmp_path, "openai", env={"MODEL_NAME": MODEL, "PYTHONWARNINGS": "default"}
    ) as here:
        for path, (request, answer_has) in ROUTES.items():
            for payload in (request, {"input": request}):
                status, answer = await here.call(path, payload)
                assert status == 200
                assert answer_has in answer
                assert (await here.received())[-1]["path"] == path
                assert await here.last_message() == {**request, "model": MODEL}
        await check_speech_is_passed_on_unchanged(here)
        await check_files_become_a_form(here)
        await check_models_are_listed(here)
        await check_invalid_files_are_refused(here)
        assert "Warning" not in here.worker.output()
        assert "Traceback" not in here.worker.output()


async def check_speech_is_passed_on_unchanged(here: WorkerSystem) -> None:
    async with here.post("/v1/audio/speech", {"input": "Hello", "voice": "alloy"}) as answer:
        assert answer.content_type == "audio/mpeg"
        assert await answer.read() == SPEECH


async def check_files_become_a_form(here: WorkerSystem) -> None:
    sound = {"name": "file", "filename": "a.wav", "type": "audio/wav", "size": len(SOUND)}
    sound["sha256"] = hashlib.sha256(SOUND).hexdigest()
    for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
        request = {
            "file": FILE,
            "filename": "../up/a.wav",
            "language": "en",
            "temperature": 0.5,
            "timestamp_granularities": ["word", "segment"],
            "prompt": None,
        }
        status, answer = await here.call(path, {"input": request})
        assert status == 200
        assert answer["parts"] == [
            sound,
            {"name": "language", "text": "en"},
            {"name": "temperature", "text": "0.5"},
            {"name": "timestamp_granularities[]", "text": "word"},
            {"name": "timestamp_granularities[]", "text": "segment"},
            {"name": "model", "text": MODEL},
        ]
    image = f"data:image/png;base64,{FILE}"
    request = {"image": [image, {"data": FILE, "filename": "b.webp"}], "mask": image, "model": "own", "n": 2}
    status, answer = await here.call("/v1/images/edits", request)
    assert status == 200
    assert [(p["name"], p.get("filename", p.get("text")), p.get("type")) for p in answer["parts"]] == [
        ("image[]", "image.png", "image/png"),
        ("image[]", "b.webp", "image/webp"),
        ("mask", "mask.png", "image/png"),
        ("model", "own", None),
        ("n", "2", None),
    ]


async def check_models_are_listed(here: WorkerSystem) -> None:
    status, answer = await here.call("/v1/models", {})
    assert (status, answer["data"][0]["id"]) == (200, MODEL)
    assert (await here.received())[-1]["method"] == "GET"


async def check_invalid_files_are_refused(here: WorkerSystem) -> None:
    before = len(await here.received())
    request = {"file": "not base64", "filename": "a.wav"}
    for payload, problems in ((request, None), ({"input": request}, "input")):
        status, answer = await here.call("/v1/audio/transcriptions", payload)
        assert status == 422
        fields = answer["payload"] if problems is None else answer["payload"][problems]
        assert fields["file"].startswith("is not base64")
    assert len(await here.received()) == before


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_streams_are_passed_on_with_and_without_done(tmp_path: Path, carrier: str) -> None:
    request = {"prompt": "Hello", "max_tokens": 3, "stream": True}
    event = b'data: {"object": "text_completion", "choices": [{"index": 0, "text": " word"}]}\n\n'
    async with worker_system(tmp_path, "openai", env={"CARRIER": carrier}, options=["--no-done"]) as here:
        async with here.post("/v1/completions", {"input": request}, 3.0) as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.read() == event * 3
        assert "model" not in await here.last_message()
        async with here.post("/v1/completions", {**request, "prompt": "break"}, 3.0) as answer:
            assert (await answer.read()).startswith(event + b'data: {"error"')
        await here.system.engine.wait_for(lambda: len(here.system.engine.finished) == 2, GUARD_S)
        assert [f.request.status for f in here.system.engine.finished] == ["Success", "Error"]
        # The benchmark is saved, so that it adds no workload.
        await here.system.reported(3.0)
        assert here.system.last_report.max_perf == PERF


async def test_the_model_server_judges_requests_and_its_errors_are_passed_on(tmp_path: Path) -> None:
    async with worker_system(tmp_path, "openai", options=["--lacks", "/v1/score"]) as here:
        invalid: list[dict[str, Any]] = [
            {"messages": "Hello", "n": 10**300},
            {"messages": [], "max_tokens": -1},
        ]
        for wrong in invalid:
            for form in (wrong, {"input": wrong}):
                status, answer = await here.call("/v1/chat/completions", form)
                assert (status, answer["error"]["message"]) == (400, "Invalid request")
                assert await here.last_message() == wrong
        echoed = {"prompt": "Hello", "max_tokens": 0, "echo": True, "logprobs": 1}
        assert (await here.call("/v1/completions", echoed))[0] == 200
        assert await here.last_message() == echoed
        assert await here.call("/v1/audio/translations", {}) == (200, {"text": "word", "parts": []})
        status, answer = await here.call("/v1/completions", {"prompt": "Hello", "model": "other"})
        assert (status, answer["error"]["message"]) == (404, "The model `other` does not exist.")
        assert await here.call("/v1/score", {}) == (404, {"detail": "Not Found"})
        status, answer = await here.call("/v1/completions", {"prompt": "fail"})
        assert (status, answer["error"]["message"]) == (500, "CUDA out of memory")
        # A payload without a valid signature is not read.
        forged = {**here.system.auth(), "signature": "AAAA"}
        unread = {"auth_data": forged, "payload": {"file": "not base64"}}
        async with here.system.http.post(
            here.system.url + "/v1/audio/transcriptions", json=unread
        ) as refused:
            assert refused.status == 401


async def test_a_disconnected_client_ends_the_generation(tmp_path: Path) -> None:
    async with worker_system(tmp_path, "openai") as here, connected(here.system.url) as client:
        payload = {"prompt": "hang", "stream": True}
        await client.post("/v1/completions", {"auth_data": here.system.auth(256.0), "payload": payload})
        assert (await client.head()).status == 200
        await client.chunk()
        client.leave()
        await here.client_left()
        await here.system.reported()
        assert here.system.totals.cur_perf == 0.0


async def test_the_benchmark_streams_and_is_saved(tmp_path: Path) -> None:
    """The model ends its answers after 200 tokens. They are not asked for again."""
    async with worker_system(
        tmp_path, "openai", options=["--eos-after", "200", "--strict"], measured=False
    ) as here:
        received = await here.received()
        assert received[0]["path"] == "/v1/models"
        messages = [json.loads(r["body"]) for r in received[1:]]
        assert {tuple(m) for m in messages} == {("prompt", "max_tokens", "stream", "stream_options", "model")}
        assert {m["model"] for m in messages} == {MODEL}
        assert {m["max_tokens"] for m in messages} == {500}
        assert len({m["prompt"] for m in messages}) == len(messages)
    async with worker_system(tmp_path, "openai", options=["--eos-after", "200"], measured=False) as here:
        await until(lambda: "inputs changed: model_url" in here.worker.output())
    saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
    assert saved["perf"] > 0


async def test_the_example_client_runs_all_examples(tmp_path: Path) -> None:
    async with worker_system(tmp_path, "openai", options=["--no-done"]) as here:
        status, output = await here.run("workers.openai.client", "--tokens", "4")
        assert (status, output.splitlines()) == (
            0,
            [
                *("", "# completion", "", " word word word word"),
                *("", "# chat", "", "user: What is a worker bee?"),
                *("", "# stream", "", " word word word word"),
                *("", "# tools", "", "(the model calls get_weather with {'city': 'Lisbon'})"),
                'tool: {"city": "Lisbon", "celsius": 21, "sky": "clear"}',
            ],
        )
        message = json.loads((await here.received())[0]["body"])
        assert message == {**client.COMPLETION, "prompt": "The capital of France is", "max_tokens": 4}
        status, output = await here.run("workers.openai.client", "--model", "other", "completion")
        assert status == 1
        assert "worker: HTTP 404" in output


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("vllm", "INFO:     Application startup complete."),
        ("sglang", "The server is fired up and ready to roll!"),
        ("llama", "srv  llama_server: listening on http://127.0.0.1:8080"),
    ],
)
async def test_each_server_is_ready_by_its_log_line_and_measured(
    tmp_path: Path, name: str, line: str
) -> None:
    """Without `ignore_eos`, each answer would end after one token."""
    async with worker_system(
        tmp_path, name, "openai", options=["--line", line, "--eos-after", "1"], measured=False
    ) as here:
        messages = [json.loads(r["body"]) for r in await here.received() if r["body"]]
        assert {(m["max_tokens"], m["ignore_eos"]) for m in messages} == {(500, True)}
        status, output = await here.run(f"workers.{name}.client", "--tokens", "1", "completion")
        assert (status, output.splitlines()[-1]) == (0, " word")
        status, output = await here.run(f"workers.{name}.test_load", "-n", "2", "-rps", "1000")
        assert status == 0
        assert "2 of 2 requests" in output
