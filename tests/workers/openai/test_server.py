from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.data_types import LogAction
from lib.errors import SettingsError
from workers.llama import server as llama
from workers.openai import server
from workers.openai.benchmark import OpenAIBenchmarkHandler
from workers.sglang import server as sglang
from workers.vllm import server as vllm

ROOT = Path(__file__).parents[3]
NAMES = ("openai", "vllm", "sglang", "llama")
PATHS = [
    *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"),
    *("/v1/score", "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
    *("/v1/images/generations", "/v1/images/edits", "/v1/models"),
]
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")


def paths(routes: Sequence[web.RouteDef], method: str) -> list[str]:
    return [route.path for route in routes if route.method == method]


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_the_worker(name: str) -> None:
    module: Any = importlib.import_module(f"workers.{name}.server")
    backend, routes = module.build({})

    assert backend.model_server_url == "http://127.0.0.1:18000"
    assert backend.allow_parallel_requests
    assert paths(routes, "POST")[: len(PATHS)] == PATHS
    assert paths(routes, "GET")[0] == "/v1/models"
    assert len({(route.method, route.path) for route in routes}) == len(routes)
    benchmark = backend.benchmark_handler
    assert isinstance(benchmark, OpenAIBenchmarkHandler)
    assert (benchmark.endpoint, benchmark.healthcheck_endpoint) == ("/v1/completions", "/health")
    assert benchmark.ignore_eos == (name != "openai")
    assert backend.model_stall_timeout_s == 120.0


@pytest.mark.parametrize("name", NAMES)
def test_routes_with_json_are_carried_without_aiohttp(name: str) -> None:
    module: Any = importlib.import_module(f"workers.{name}.server")
    backend, routes = module.build({})
    direct = set(backend.direct_routes(routes))
    assert direct & set(PATHS) == set(PATHS) - {*FORMS, "/v1/models"}
    assert direct >= {"/v1/messages", "/tokenize", "/completion", "/chat/completions"}


def test_any_server_is_ready_by_its_health_check() -> None:
    backend, _ = server.build({})
    assert (backend.model_log_file, backend.log_actions) == (None, ())

    backend, _ = server.build({"MODEL_LOG": "/tmp/any.log"})
    assert {action for action, _ in backend.log_actions} == {LogAction.ModelError}


def test_each_server_has_its_log_and_its_lines() -> None:
    loaded = {
        engine: [line for action, line in build({})[0].log_actions if action is LogAction.ModelLoaded]
        for engine, build in (("vllm", vllm.build), ("sglang", sglang.build), ("llama", llama.build))
    }
    assert loaded == {
        "vllm": ["Application startup complete."],
        "sglang": ["The server is fired up and ready to roll!"],
        "llama": list(llama.LOAD_LINES),
    }
    errors = [line for action, line in vllm.build({})[0].log_actions if action is LogAction.ModelError]
    assert errors == ["INFO exited: vllm", "RuntimeError: Engine"]
    assert sglang.build({})[0].model_log_file == Path("/var/log/portal/sglang.log")


@pytest.mark.parametrize("name", NAMES)
def test_environment_variables_override_the_defaults(name: str) -> None:
    module: Any = importlib.import_module(f"workers.{name}.server")
    backend, _ = module.build(
        {
            "MODEL_SERVER_URL": "http://127.0.0.1:7/base/",
            "MODEL_LOG": "/tmp/other.log",
            "MODEL_LOAD_LOG_MSG": "up",
            "MODEL_ERROR_LOG_MSGS": "down\nbroken",
            "MODEL_INFO_LOG_MSGS": "on its way",
            "MODEL_HEALTH_ENDPOINT": "/v1/models",
            "MODEL_NAME": " tiny ",
        }
    )

    assert backend.model_server_url == "http://127.0.0.1:7/base"
    assert backend.model_log_file == Path("/tmp/other.log")
    assert backend.log_actions == (
        (LogAction.ModelLoaded, "up"),
        (LogAction.ModelError, "down"),
        (LogAction.ModelError, "broken"),
        (LogAction.Info, "on its way"),
    )
    benchmark = backend.benchmark_handler
    assert isinstance(benchmark, OpenAIBenchmarkHandler)
    assert (benchmark.model_name, benchmark.healthcheck_endpoint) == ("tiny", "/v1/models")


def test_every_malformed_variable_is_named() -> None:
    wrong = {"MODEL_SERVER_URL": "nowhere", "MAX_QUEUE_TIME": "long", "MODEL_PASS_ROUTES": "sleep"}
    with pytest.raises(SettingsError) as refused:
        server.build(wrong)
    assert {problem.partition(":")[0] for problem in refused.value.problems} == set(wrong)
