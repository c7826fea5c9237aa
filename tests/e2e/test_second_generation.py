"""A repository of the second generation: a declared worker with handler classes, its client, a load test."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from tests.e2e.author_runs import assert_totals, loud_lines, output_of, write_files
from tests.fakes.worker import Setup
from tests.system import engine_and_model_server, worker_process
from tests.workers.openai.fake_server import FakeOpenAI

pytest.importorskip("vastai", reason="the official client, `vastai`, can't be installed here")

LOADED = "INFO:     Application startup complete.\n"
CLIP = bytes(range(256)) * 8

WORKER = """
import os

from lib.worker import BenchmarkConfig, HandlerConfig, LogActionConfig, Worker, WorkerConfig

from payloads import TranscriptionHandler, TranslationHandler
from streams import lines_of_text

MODEL_LOAD_LOG_MSG = ["Application startup complete."]
MODEL_ERROR_LOG_MSGS = ["INFO exited: vllm", "RuntimeError: Engine", "Traceback (most recent call last):"]


def request_parser(request):
    data = request.get("input", request)
    return {**data, "max_tokens": int(data["max_tokens"]), "stream": True}


def workload_calculator(data):
    return data.get("max_tokens", 0)


def benchmark_generator():
    return {"prompt": "Once upon a time", "max_tokens": 8}


worker_config = WorkerConfig(
    model_server_url=os.environ["MODEL_SERVER_URL"],
    model_server_port=None,
    model_log_file=os.environ["MODEL_LOG"],
    model_healthcheck_url="/health",
    handlers=[
        HandlerConfig(
            route="/v1/completions",
            allow_parallel_requests=True,
            max_queue_time=600.0,
            request_parser=request_parser,
            response_generator=lines_of_text,
            workload_calculator=workload_calculator,
            benchmark_config=BenchmarkConfig(generator=benchmark_generator, concurrency=4, runs=2),
        ),
        HandlerConfig(
            route="/v1/audio/transcriptions",
            allow_parallel_requests=True,
            handler_class=TranscriptionHandler,
        ),
        HandlerConfig(
            route="/v1/audio/translations",
            allow_parallel_requests=True,
            max_queue_time=600.0,
            handler_class=TranslationHandler,
        ),
    ],
    log_action_config=LogActionConfig(
        on_load=MODEL_LOAD_LOG_MSG, on_error=MODEL_ERROR_LOG_MSGS, on_info=["Downloading"]
    ),
)

if __name__ == "__main__":
    Worker(worker_config).run()
"""

PAYLOADS = """
import base64
import binascii
from dataclasses import dataclass
from typing import Any, Dict, Optional, Type, Union

from aiohttp import ClientResponse, web

from lib.data_types import ApiPayload, EndpointHandler, JsonDataException
from lib.uploads import Upload

SECONDS_PER_CLIP = 30.0


class TranscriptionPayload(ApiPayload):
    # {"file": "<base64>", "filename": "a.wav", "language": "en", ...}: JSON in, multipart out.

    def __init__(self, fields: Dict[str, Any], audio: bytes, filename: str):
        self.fields = fields
        self.audio = audio
        self.filename = filename

    @classmethod
    def for_test(cls) -> "TranscriptionPayload":
        return cls({}, b"RIFF" + bytes(1000), "benchmark.wav")

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "TranscriptionPayload":
        fields = dict(json_msg)
        encoded = fields.pop("file", None)
        if encoded is None:
            raise JsonDataException({"file": "field missing"})
        try:
            audio = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise JsonDataException({"file": "must be base64"})
        return cls(fields, audio, fields.pop("filename", "audio.wav"))

    def generate_payload_json(self) -> Dict[str, Any]:
        raise NotImplementedError("this payload is sent as multipart, not JSON")

    def generate_payload_multipart(self) -> Optional[Dict[str, Any]]:
        return {"file": (self.filename, self.audio, "audio/wav"), **self.fields}

    def count_workload(self) -> float:
        return SECONDS_PER_CLIP


@dataclass
class TranscriptionHandler(EndpointHandler[TranscriptionPayload]):
    max_queue_time: float = 600.0

    @property
    def endpoint(self) -> str:
        return "/v1/audio/transcriptions"

    @property
    def healthcheck_endpoint(self) -> Optional[str]:
        return None

    @classmethod
    def payload_cls(cls) -> Type[TranscriptionPayload]:
        return TranscriptionPayload

    def make_benchmark_payload(self) -> TranscriptionPayload:
        return TranscriptionPayload.for_test()

    async def call_remote_dispatch_function(self, params: dict) -> Any:
        raise NotImplementedError

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> Union[web.Response, web.StreamResponse]:
        body = await model_response.read()
        return web.Response(body=body, status=model_response.status, content_type="application/json")


class Clip(Upload):
    def count_workload(self) -> float:
        return SECONDS_PER_CLIP


class TranslationHandler(EndpointHandler[Clip]):
    has_benchmark = False

    @property
    def endpoint(self) -> str:
        return "/v1/audio/translations"

    @classmethod
    def payload_cls(cls) -> Type[Clip]:
        return Clip
"""

STREAMS = """
import json

from aiohttp import web


async def lines_of_text(client_request, model_response):
    if model_response.status != 200:
        return web.Response(body=await model_response.read(), status=model_response.status)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(client_request)
    async for line in model_response.content:
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]":
            text = json.loads(data)["choices"][0]["text"]
            await response.write(json.dumps({"text": text}).encode() + b"\\n")
    await response.write_eof()
    return response
"""

CLIENT = """
import asyncio
import base64
import os

from vastai import Serverless

ENGINE = os.environ["TEST_ENGINE"]
# Instead of the authority of the cloud's workers, that of the local engine's.
Serverless.SSL_CERT_URL = ENGINE + "/static/jvastai_root.cer"


async def main():
    async with Serverless(api_key="any", autoscaler_url=ENGINE, webserver_url=ENGINE) as client:
        endpoint = await client.get_endpoint(name="local")

        payload = {"input": {"prompt": "Once", "max_tokens": "3"}}
        streamed = await endpoint.request("/v1/completions", payload, cost=3, stream=True)
        print("".join([line["text"] async for line in streamed["response"]]))

        with open("clip.wav", "rb") as f:
            payload = {"file": base64.b64encode(f.read()).decode(), "filename": "a.wav", "language": "en"}
        answer = await endpoint.request("/v1/audio/transcriptions", payload, cost=30)
        for part in answer["response"]["parts"]:
            print(*part.values())

        refused = await endpoint.request("/v1/audio/transcriptions", {"file": "?"}, cost=30)
        print(refused["ok"], refused["status"], refused["response"])


if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.one_python
async def test_its_worker_client_and_load_tests_run_end_to_end(tmp_path: Path) -> None:
    files = {"worker.py": WORKER, "payloads.py": PAYLOADS, "streams.py": STREAMS, "client.py": CLIENT}
    write_files(tmp_path, files)
    (tmp_path / "clip.wav").write_bytes(CLIP)
    fake = FakeOpenAI()
    async with TestServer(fake.app()) as model, engine_and_model_server(tmp_path) as system:
        system.write_log(LOADED)
        env = {"MODEL_SERVER_URL": str(model.make_url("")), "MODEL_LOG": str(system.model_log)}
        async with worker_process(system, tmp_path, Setup(), env, module="worker") as worker:
            system.worker = worker
            await system.ready()
            assert system.last_report.max_perf > 0
            assert {request["path"] for request in fake.requests} == {"/v1/completions"}

            fake.requests.clear()
            called = await output_of(tmp_path, "python", "client.py", env={"TEST_ENGINE": system.engine_url})
            digest = hashlib.sha256(CLIP).hexdigest()
            assert called.splitlines() == [
                " word word word",
                f"file a.wav audio/wav {len(CLIP)} {digest}",
                "language en",
                "False 422 {'payload': {'file': 'must be base64'}}",
            ]

            load = ("load-test", "--engine", system.engine_url, "-c", "4")
            form = ("--route", "/v1/audio/translations", "--file", "file=@clip.wav", "--cost", "30")
            uploads = await output_of(tmp_path, *load, *form, "-n", "12", "--payload", '{"language": "en"}')
            prompt = ("--route", "/v1/completions", "--payload", '{"prompt": "Once", "max_tokens": 5}')
            lines = await output_of(tmp_path, *load, *prompt, "-n", "20", "--cost", "5")
            read = r'12 of 12 .*\n  ok +12  .*"name": "language", "text": "en".*"clip.wa'
            assert re.match(read, uploads), uploads
            assert re.match(r'20 of 20 .*\n  ok +20  ({"text": " word"} ?){5}\n', lines), lines
            # The client's 3 tokens and its clip of 30 s, then the load tests' clips and tokens.
            await assert_totals(system, 3 + 30 + 12 * 30 + 20 * 5.0, Success=34, Error=1)
            assert Counter(request["path"] for request in fake.requests) == {
                "/v1/audio/transcriptions": 1,
                "/v1/audio/translations": 12,
                "/v1/completions": 21,
            }
            log = await worker.final_output()
        assert await worker.exit_status() == 0
    assert loud_lines(log) == []
