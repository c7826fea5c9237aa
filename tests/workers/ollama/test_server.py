"""The Ollama worker's backend and routes, with and without environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.data_types import LogAction
from lib.errors import SettingsError
from workers.ollama import server
from workers.ollama.benchmark import OllamaBenchmarkHandler

GENERATING = ["/api/generate", "/api/chat", "/v1/completions", "/v1/chat/completions", "/v1/responses"]
OTHERS = ["/api/embed", "/api/embeddings", "/api/show", "/v1/embeddings"]
READ = ["/api/tags", "/api/ps", "/api/version", "/v1/models"]


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({"MODEL_NAME": "tiny"})
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:11434"
    assert backend.model_log_file == Path("/var/log/portal/ollama.log")
    assert {r.path for r in routes if r.method == "POST"} == {*GENERATING, *OTHERS, *READ}
    assert [r.path for r in routes if r.method == "GET"] == READ
    assert backend.allow_parallel_requests
    assert backend.model_stall_timeout_s == 120.0
    assert backend.lifecycle is not None
    assert isinstance(handler, OllamaBenchmarkHandler)
    assert (handler.endpoint, handler.healthcheck_endpoint) == ("/api/generate", "/api/version")
    assert (handler.model_name, len({r.path for r in routes})) == ("tiny", 13)


def test_routes_with_json_are_carried_without_aiohttp() -> None:
    backend, routes = server.build({"MODEL_NAME": "tiny"})
    assert set(backend.direct_routes(routes)) == {*GENERATING, *OTHERS}


def test_environment_variables_override_the_defaults() -> None:
    backend, _ = server.build(
        {
            "MODEL_NAME": "tiny",
            "MODEL_SERVER_URL": "http://127.0.0.1:7/ollama/",
            "MODEL_LOG": "/tmp/other.log",
            "MODEL_LOAD_LOG_MSG": "up",
            "MODEL_HEALTH_ENDPOINT": "/",
            "MAX_QUEUE_TIME": "3",
        }
    )
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:7/ollama"
    assert backend.model_log_file == Path("/tmp/other.log")
    assert [text for action, text in backend.log_actions if action is LogAction.ModelLoaded] == ["up"]
    assert handler is not None
    assert handler.healthcheck_endpoint == "/"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ["MODEL_NAME"]),
        ({"MODEL_NAME": " "}, ["MODEL_NAME"]),
        (
            {"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long"},
            ["MODEL_SERVER_URL", "MAX_QUEUE_TIME", "MODEL_NAME"],
        ),
        ({"MODEL_NAME": "tiny", "MAX_QUEUE_TIME": "long"}, ["MAX_QUEUE_TIME"]),
    ],
)
def test_every_missing_or_malformed_variable_is_named(environ: dict[str, str], names: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        server.build(environ)
    assert [problem.partition(":")[0] for problem in refused.value.problems] == names
