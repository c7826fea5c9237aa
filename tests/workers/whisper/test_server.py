"""The whisper worker's backend and routes, with and without environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.errors import SettingsError
from workers.whisper import server
from workers.whisper.benchmark import WhisperBenchmarkHandler


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({})
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:18000"
    assert backend.model_log_file == Path("/var/log/portal/whisper.log")
    assert [(r.method, r.path) for r in routes] == [
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/v1/audio/translations"),
        ("POST", "/inference"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/models"),
        ("GET", "/v1/models"),
    ]
    assert backend.allow_parallel_requests
    assert isinstance(handler, WhisperBenchmarkHandler)
    assert (handler.endpoint, handler.healthcheck_endpoint) == ("/v1/audio/transcriptions", "/health")


def test_environment_variables_override_the_defaults() -> None:
    backend, _ = server.build({"MODEL_NAME": "small", "MODEL_HEALTH_ENDPOINT": "/", "MAX_QUEUE_TIME": "3"})
    handler = backend.benchmark_handler

    assert isinstance(handler, WhisperBenchmarkHandler)
    assert (handler.model_name, handler.healthcheck_endpoint) == ("small", "/")


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"(?s)MODEL_SERVER_URL.*MAX_QUEUE_TIME"):
        server.build({"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long"})
