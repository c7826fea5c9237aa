"""Declared workers whose samples for the benchmark, parsers and payload classes come from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.backend import Backend
from lib.data_types import ApiPayload, JsonDataException
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.authors.other_package import Generate, Make, Prompt
from tests.fakes.worker import Setup
from tests.system import System, with_worker_task


async def add(a: int, b: int = 1) -> int:
    return a + b


def a_worker(*handlers: HandlerConfig, **config: Any) -> Make:
    def make(model_url: str, _: Setup) -> tuple[Backend, Sequence[web.AbstractRouteDef]]:
        given: dict[str, Any] = {"model_server_url": model_url, "model_healthcheck_url": "/health", **config}
        worker = Worker(WorkerConfig(handlers=list(handlers), **given))
        return worker.backend, worker.routes

    return make


async def answer_of(system: System, path: str, payload: Any) -> tuple[int, Any]:
    async with system.http.post(
        system.url + path, json={"auth_data": system.auth(), "payload": payload}
    ) as answer:
        return answer.status, await answer.json()


def benchmarked(config: HandlerConfig) -> Any:
    """The handler that the benchmark of a worker with `config` measures."""
    backend, _ = a_worker(config)("http://127.0.0.1:8000", Setup())
    assert backend.benchmark_handler is not None
    return backend.benchmark_handler


# The benchmark's payloads


@dataclass
class Picture(ApiPayload):
    """A form and nothing else."""

    data: bytes

    @classmethod
    def for_test(cls) -> Picture:
        return cls(b"a test picture")

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Picture:
        return cls(str(json_msg["data"]).encode())

    def generate_payload_json(self) -> dict[str, Any]:
        raise NotImplementedError("pictures are sent as a form")

    def generate_payload_multipart(self) -> dict[str, Any]:
        return {"image": ("a.png", self.data, "image/png"), "strength": 0.5}

    def count_workload(self) -> float:
        return 2.0


def nested(payload: dict[str, Any]) -> dict[str, Any]:
    """A parser of clients' payloads, which refuses its own result."""
    return {"prompt": payload["input"]["text"]}


def nested_or_type_error(payload: Any) -> dict[str, Any]:
    return {"prompt": payload["prompt"]["text"]}  # a TypeError for a string


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (
            HandlerConfig("/echo", payload_class=Picture, benchmark_config=BenchmarkConfig(runs=2)),
            [b'filename="a.png"', b"a test picture", b"0.5"],
        ),
        (
            HandlerConfig(
                "/echo", request_parser=nested, benchmark_config=BenchmarkConfig([{"prompt": "as it is"}])
            ),
            [b'{"prompt": "as it is"}'],
        ),
        (
            HandlerConfig(
                "/echo",
                request_parser=nested_or_type_error,
                benchmark_config=BenchmarkConfig(generator=lambda: {"prompt": "as it is"}),
            ),
            [b'{"prompt": "as it is"}'],
        ),
        (
            HandlerConfig("/echo", payload_class=Prompt, benchmark_config=BenchmarkConfig([{}])),
            [b'{"prompt": "a test of the model", "max_tokens": 4}'],
        ),
        (
            HandlerConfig("/echo", handler_class=Generate, benchmark_config=BenchmarkConfig([{}])),
            [b'{"prompt": "a test of the model", "max_tokens": 4}'],
        ),
        (
            HandlerConfig(
                "/echo",
                payload_class=Prompt,
                request_parser=nested,
                benchmark_config=BenchmarkConfig([{"prompt": "accepted by the class"}]),
            ),
            [b'{"prompt": "accepted by the class", "max_tokens": 16}'],
        ),
    ],
)
async def test_a_sample_that_a_client_could_not_send_is_measured_all_the_same(
    tmp_path: Path, handler: HandlerConfig, expected: list[bytes]
) -> None:
    async with with_worker_task(tmp_path, make=a_worker(handler)) as system:
        assert system.last_report.max_perf > 0
        sent = [r.body for r in system.model.requests if r.method == "POST"]
        assert sent
        assert all(part in body for body in sent for part in expected)


def test_a_sample_that_was_replaced_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    benchmark = BenchmarkConfig([{}, {"prompt": "fine"}])
    handler = benchmarked(HandlerConfig("/a", payload_class=Prompt, benchmark_config=benchmark))
    prompts = [handler.make_benchmark_payload().json["prompt"] for _ in range(4)]
    assert prompts == ["a test of the model", "fine"] * 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("a sample of the benchmark was refused (JsonDataException(")
    assert record.getMessage().endswith("): used for_test() instead")


def test_a_sample_that_nothing_accepts_is_an_error() -> None:
    class Strict(Prompt):
        @classmethod
        def for_test(cls) -> Any:
            raise RuntimeError("no test either")

    benchmark = BenchmarkConfig([{"max_tokens": "many"}])
    handler = benchmarked(HandlerConfig("/a", payload_class=Strict, benchmark_config=benchmark))
    with pytest.raises(JsonDataException, match="max_tokens"):
        handler.make_benchmark_payload()


def test_a_workload_calculator_counts_a_form() -> None:
    config = HandlerConfig(
        "/a",
        payload_class=Picture,
        workload_calculator=lambda form: form["strength"],
        benchmark_config=BenchmarkConfig(),
    )
    handler = benchmarked(config)
    assert handler.make_benchmark_payload().count_workload() == 0.5


# What a request parser returns


@pytest.mark.parametrize(
    ("parsed", "sent"),
    [
        (["a", {"b": 1}], b'["a", {"b": 1}]'),
        ("text", b'"text"'),
        ("", b'""'),
        ([], b"[]"),
        ((1, 2), b"[1, 2]"),
        (7, b"7"),
        (False, b"false"),
        ({}, b"{}"),
    ],
)
async def test_what_a_parser_returns_is_sent_as_json(tmp_path: Path, parsed: Any, sent: bytes) -> None:
    make = a_worker(HandlerConfig("/echo", request_parser=lambda _: parsed))
    async with with_worker_task(tmp_path, make=make) as system:
        status, _ = await answer_of(system, "/echo", {"any": "thing"})
        assert status == 200
        (request,) = (r for r in system.model.requests if r.method == "POST")
        assert (request.body, request.header("content-type")) == (sent, "application/json")


@pytest.mark.parametrize(
    "fields",
    [{"remote_function": add}, {"method": "GET"}, {"method": "DELETE"}],
    ids=["function", "GET", "DELETE"],
)
def test_where_only_fields_can_be_sent_anything_else_is_an_error(fields: dict[str, Any]) -> None:
    config = HandlerConfig("/a", request_parser=lambda _: [1], **fields)
    handler = config.build(None)
    with pytest.raises(TypeError, match="request_parser returned list, but "):
        handler.read_payload({"payload": {}})
