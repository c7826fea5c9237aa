from __future__ import annotations

from pathlib import Path

import pytest

from lib.backend import Backend
from lib.data_types import LogAction
from lib.errors import SettingsError
from workers.hello_world import server
from workers.hello_world.data_types import InputData
from workers.hello_world.server import GenerateHandler, GenerateStreamHandler

ROOT = Path(__file__).parents[3]


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({})

    assert isinstance(backend, Backend)
    assert backend.model_server_url == "http://127.0.0.1:5001"
    assert [(route.method, route.path) for route in routes] == [
        ("POST", "/generate"),
        ("POST", "/generate_stream"),
    ]
    assert (LogAction.ModelLoaded, "infer server has started") in backend.log_actions
    assert (LogAction.ModelError, "Exception: corrupted model file") in backend.log_actions


def test_the_benchmark_streams_and_leaves_the_counting_to_the_library() -> None:
    handler = server.build({})[0].benchmark_handler

    assert isinstance(handler, GenerateStreamHandler)
    assert handler.passes_answers_on


def test_both_routes_are_carried_without_aiohttp() -> None:
    backend, routes = server.build({})
    assert set(backend.direct_routes(routes)) == {"/generate", "/generate_stream"}


def test_environment_variables_override_the_defaults() -> None:
    backend, _ = server.build(
        {
            "MODEL_SERVER_URL": "http://127.0.0.1:7/",
            "MODEL_LOG": "/tmp/other.log",
            "MODEL_LOAD_LOG_MSG": "up",
            "MODEL_HEALTH_ENDPOINT": "/alive",
            "MAX_QUEUE_TIME": "3",
        }
    )
    handler = backend.benchmark_handler

    assert backend.model_server_url == "http://127.0.0.1:7"
    assert backend.model_log_file == Path("/tmp/other.log")
    assert (LogAction.ModelLoaded, "up") in backend.log_actions
    assert handler
    assert handler.healthcheck_endpoint == "/alive"
    assert handler.max_queue_time == 3.0


def test_the_handlers_differ_in_their_endpoints() -> None:
    assert GenerateHandler().endpoint == "/generate"
    assert GenerateStreamHandler().endpoint == "/generate_stream"
    assert GenerateStreamHandler().payload_cls() is InputData


def test_benchmark_payloads_differ_and_have_the_configured_number_of_words() -> None:
    handler = GenerateHandler(benchmark_words=30)
    payloads = [handler.make_benchmark_payload() for _ in range(8)]

    assert {len(p.prompt.split()) for p in payloads} == {30}
    assert len({p.prompt for p in payloads}) == 8


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"(?s)MODEL_SERVER_URL.*MAX_QUEUE_TIME"):
        server.build({"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long"})
