"""The TGI worker's backend and routes, with and without environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.data_types import LogAction
from lib.errors import SettingsError
from workers.tgi import server
from workers.tgi.benchmark import TgiBenchmarkHandler


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({"HF_TOKEN": "hf_x", "MODEL_ID": "bigscience/bloom"})
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:5001"
    assert [(route.method, route.path) for route in routes] == [
        ("POST", "/generate"),
        ("POST", "/generate_stream"),
    ]
    assert backend.allow_parallel_requests
    assert backend.model_stall_timeout_s == 120.0
    assert isinstance(handler, TgiBenchmarkHandler)
    assert (handler.endpoint, handler.healthcheck_endpoint) == ("/generate_stream", "/health")
    rules = backend.log_actions
    assert [text for action, text in rules if action is LogAction.ModelError] == [
        "Error: WebserverFailed",
        "Error: DownloadError",
    ]
    assert [text for action, text in rules if action is LogAction.Info] == ['"message":"Download']


def test_both_routes_are_carried_without_aiohttp() -> None:
    backend, routes = server.build({})
    assert set(backend.direct_routes(routes)) == {"/generate", "/generate_stream"}


def test_environment_variables_override_the_defaults() -> None:
    backend, _ = server.build(
        {
            "MODEL_SERVER_URL": "http://127.0.0.1:7/tgi/",
            "MODEL_LOG": "/tmp/other.log",
            "MODEL_LOAD_LOG_MSG": "up",
            "MODEL_HEALTH_ENDPOINT": "/alive",
            "MAX_QUEUE_TIME": "3",
        }
    )
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:7/tgi"
    assert backend.model_log_file == Path("/tmp/other.log")
    assert [text for action, text in backend.log_actions if action is LogAction.ModelLoaded] == ["up"]
    assert handler is not None
    assert handler.healthcheck_endpoint == "/alive"


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"(?s)MODEL_SERVER_URL.*MAX_QUEUE_TIME"):
        server.build({"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long"})


def test_benchmark_payloads_differ_and_have_the_configured_number_of_words() -> None:
    handler = TgiBenchmarkHandler(benchmark_words=30)
    payloads = [handler.make_benchmark_payload() for _ in range(8)]

    assert {len(payload["inputs"].split()) for payload in payloads} == {30}
    assert len({payload["inputs"] for payload in payloads}) == 8
