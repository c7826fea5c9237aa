from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.errors import ModelUnreachable, SettingsError
from lib.model.caller import ModelCaller
from lib.model.connection import ModelServer
from workers.comfyui import server
from workers.comfyui.data_types import GenerateInput, PromptInput, ViewQuery
from workers.comfyui.dialects import Choice
from workers.comfyui.server import GenerateSyncHandler, PromptHandler, ViewHandler
from workers.comfyui.settings import ComfySettings

ROOT = Path(__file__).parents[3]


def test_the_defaults_of_the_worker() -> None:
    backend, routes = server.build({"COMFYUI_DIALECT": "native"})

    assert [(route.method, route.path) for route in routes] == [
        ("POST", "/generate/sync"),
        ("POST", "/generate/stream"),
        ("POST", "/prompt"),
        ("POST", "/custom-workflow"),
        ("GET", "/view"),
        ("POST", "/generate"),
        ("GET", "/result/{id}"),
        ("POST", "/cancel/{id}"),
        ("GET", "/queue-info"),
    ]
    assert backend.model_server_url == "http://127.0.0.1:18188"
    assert not backend.allow_parallel_requests
    assert backend.lifecycle is None
    assert backend.benchmark_handler
    assert backend.benchmark_handler.healthcheck_endpoint == "/prompt"
    assert backend.benchmark_handler.endpoint == "/generate/sync"


def test_without_a_dialect_its_detection_is_the_lifecycle() -> None:
    backend, _ = server.build({})

    assert backend.lifecycle is not None
    assert backend.benchmark_handler
    assert backend.benchmark_handler.healthcheck_endpoint is None


@pytest.mark.parametrize(
    ("env", "path"),
    [
        ({"COMFYUI_DIALECT": "wrapper"}, "/generate/sync"),
        ({"COMFYUI_DIALECT": "runsync"}, "/prompt"),
        ({"COMFYUI_DIALECT": "native", "BENCHMARK_ROUTE": "/prompt"}, "/prompt"),
    ],
)
def test_the_benchmarks_route(env: dict[str, str], path: str) -> None:
    backend, _ = server.build(env)

    assert backend.benchmark_handler
    assert backend.benchmark_handler.endpoint == path


def choice(**env: str) -> Choice:
    return Choice(ComfySettings.from_env({"COMFYUI_DIALECT": "native", **env}))


def test_benchmark_payloads_differ_and_count_as_one_job() -> None:
    handler = GenerateSyncHandler(choice=choice(), path="/generate/sync")
    payloads = [handler.make_benchmark_payload() for _ in range(8)]

    assert len({str(p.input) for p in payloads}) == 8
    assert {p.count_workload() for p in payloads} == {100.0}
    assert not any(p.uploads for p in payloads)


def test_the_benchmark_of_prompts_counts_in_tokens() -> None:
    handler = PromptHandler(choice=choice(COMFY_MODEL="sd3"), path="/prompt")
    payload = handler.make_benchmark_payload()

    assert (payload.width, payload.height, payload.steps, payload.model) == (512, 512, 20, "sd3")
    assert payload.count_workload() == pytest.approx(1200 * 260 / 785 * 18.77 / 23.65)


def test_another_benchmark_has_another_name() -> None:
    names = {
        handler.benchmark_name
        for handler in (
            GenerateSyncHandler(choice=choice(), path="/generate/sync"),
            GenerateSyncHandler(choice=choice(COMFY_MODEL="sd3"), path="/generate/sync"),
            GenerateSyncHandler(choice=choice(BENCHMARK_TEST_STEPS="3"), path="/generate/sync"),
            GenerateSyncHandler(choice=choice(COMFYUI_DIALECT="wrapper"), path="/generate/sync"),
            PromptHandler(choice=choice(), path="/prompt"),
        )
    }
    assert len(names) == 5


def test_clients_do_not_choose_the_model() -> None:
    handler = PromptHandler(choice=choice(COMFY_MODEL="sd3"), path="/prompt")
    payload = handler.read_payload({"payload": {"prompt": "x", "model": "flux"}, "auth_data": {}})

    assert isinstance(payload, PromptInput)
    assert payload.model == "sd3"


async def test_a_file_is_passed_on_from_comfyui() -> None:
    asked: list[str] = []

    async def view(request: web.Request) -> web.Response:
        asked.append(request.path_qs)
        return web.Response(body=b"content")

    app = web.Application()
    app.router.add_get("/view", view)
    async with TestServer(app) as comfyui, ModelServer("http://127.0.0.1:9") as model:
        url = str(comfyui.make_url("")).rstrip("/")
        handler = ViewHandler(choice=choice(COMFYUI_DIALECT="wrapper", COMFYUI_URL=url), path="/view")
        payload = ViewQuery("a&b=ü.png", "x/y", "temp")
        async with handler.call_model(ModelCaller(model, {}), payload) as answer:
            assert await answer.read() == b"content"
    assert asked == ["/view?filename=a%26b%3D%C3%BC.png&subfolder=x/y&type=temp"]
    assert handler.allow_parallel_requests


def test_calls_before_the_detection_raise_model_unreachable() -> None:
    unknown = Choice(ComfySettings.from_env({}))
    handler = GenerateSyncHandler(choice=unknown, path="/generate/sync")
    payload = handler.read_payload({"payload": {"input": {"modifier": "x"}}, "auth_data": {}})

    assert isinstance(payload, GenerateInput)
    with pytest.raises(ModelUnreachable):
        handler.call_model(cast(Any, None), payload)


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"(?s)MODEL_SERVER_URL.*COMFY_MODEL"):
        server.build({"MODEL_SERVER_URL": "nowhere", "COMFY_MODEL": "sd1"})
