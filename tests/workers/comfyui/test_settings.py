from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lib.data_types import LogAction
from lib.errors import SettingsError
from tests.workers.comfyui.graphs import image, node
from workers.comfyui import storage
from workers.comfyui.settings import ComfySettings, DialectName

S3 = {
    "S3_ACCESS_KEY_ID": "key",
    "S3_SECRET_ACCESS_KEY": "secret",
    "S3_ENDPOINT_URL": "https://s3.example.com",
    "S3_BUCKET_NAME": "bucket",
}


@pytest.mark.parametrize(
    ("dialect", "url", "load_line", "health"),
    [
        ("wrapper", "http://127.0.0.1:18288", "BACKENDS_READY", "/health"),
        ("native", "http://127.0.0.1:18188", "To see the GUI go to:", "/prompt"),
        ("runsync", "http://127.0.0.1:38188", "To see the GUI go to:", None),
    ],
)
def test_each_dialect_has_its_defaults(dialect: str, url: str, load_line: str, health: str | None) -> None:
    settings = ComfySettings.from_env({"COMFYUI_DIALECT": dialect.upper()})

    assert settings.dialect == DialectName(dialect)
    assert settings.candidates == ((DialectName(dialect), url),)
    assert (settings.model.server_url, settings.model.health) == (url, health)
    assert (LogAction.ModelLoaded, load_line) in settings.model.log_actions
    assert settings.comfyui_url == "http://127.0.0.1:18188"


def test_without_a_dialect_all_three_are_candidates() -> None:
    settings = ComfySettings.from_env({})
    assert settings.dialect is None
    assert [url for _, url in settings.candidates] == [
        *("http://127.0.0.1:18288", "http://127.0.0.1:18188", "http://127.0.0.1:38188"),
    ]
    assert (LogAction.ModelError, "BACKEND_UNRECOVERABLE") in settings.model.log_actions
    own = ComfySettings.from_env({"MODEL_SERVER_URL": "http://a:1/"})
    assert {url for _, url in own.candidates} == {"http://a:1"}


def test_environment_variables_override_the_defaults() -> None:
    settings = ComfySettings.from_env(
        {
            "COMFYUI_DIALECT": "native",
            "MODEL_SERVER_URL": "http://127.0.0.1:7",
            "MODEL_LOG": "/tmp/own.log",
            "MODEL_HEALTH_ENDPOINT": "/system_stats",
            "MODEL_LOAD_LOG_MSG": "up",
            "MODEL_ERROR_LOG_MSGS": "down\nbroken",
            "MAX_QUEUE_TIME": "90",
        }
    )

    assert (settings.model.log, settings.model.health) == ("/tmp/own.log", "/system_stats")
    assert settings.model.max_queue_time == 90.0
    assert settings.model.error_lines == ("down", "broken")
    assert settings.comfyui_url == "http://127.0.0.1:7"


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError) as raised:
        ComfySettings.from_env(
            {
                "COMFYUI_DIALECT": "gradio",
                "MODEL_SERVER_URL": "nowhere",
                "COMFYUI_URL": "ftp://a",
                "COMFY_MODEL": "sd1",
                "MAX_QUEUE_TIME": "long",
                "BENCHMARK_TEST_WIDTH": "1",
                "BENCHMARK_TEST_STEPS": "many",
                "BENCHMARK_ROUTE": "/view",
                "S3_BUCKET_NAME": "bucket",
            }
        )

    text = str(raised.value)
    assert "COMFYUI_DIALECT: 'gradio' is none of wrapper, native, runsync" in text
    for name in (
        *("MODEL_SERVER_URL", "COMFYUI_URL", "COMFY_MODEL", "MAX_QUEUE_TIME", "BENCHMARK_TEST_WIDTH"),
        *("BENCHMARK_TEST_STEPS", "BENCHMARK_ROUTE", "S3_ACCESS_KEY_ID", "S3_ENDPOINT_URL"),
    ):
        assert f"- {name}: " in text


def inputs(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(n["inputs"] for n in graph.values() if n["class_type"] == kind)


def test_the_default_benchmark() -> None:
    graph = ComfySettings.from_env({}).benchmark_graph
    size = inputs(graph, "EmptySD3LatentImage")
    assert (size["width"], size["height"], inputs(graph, "BasicScheduler")["steps"]) == (512, 512, 20)
    assert inputs(graph, "CLIPTextEncode")["text"] == "{{PROMPT}}"

    own = {"COMFY_MODEL": "sd3", "BENCHMARK_TEST_WIDTH": "768", "BENCHMARK_TEST_STEPS": "8"}
    settings = ComfySettings.from_env(own)
    assert inputs(settings.benchmark_graph, "KSampler")["steps"] == 8
    assert (settings.benchmark_size, settings.benchmark_steps) == ((768, 512), 8)


def test_the_operators_own_benchmark(tmp_path: Path) -> None:
    file, other = tmp_path / "benchmark.json", tmp_path / "other.json"
    other.write_text(json.dumps(image(steps=3)))
    env = {"BENCHMARK_JSON_PATH": str(other)}

    assert ComfySettings.from_env(env, file).benchmark_graph == image(steps=3)
    file.write_text(json.dumps(image(steps=4)))
    assert ComfySettings.from_env(env, file).benchmark_graph == image(steps=4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read"),
        ("{", "can't be read"),
        ("[]", "must be an object"),
        (json.dumps({"1": node("EmptyImage", color=1)}), "ComfyUI answers it from its cache"),
    ],
)
def test_a_malformed_benchmark_is_refused(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "own.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=rf"BENCHMARK_JSON_PATH: .*{problem}"):
        ComfySettings.from_env({"BENCHMARK_JSON_PATH": str(path)})


def test_a_benchmark_may_have_random_integers_instead_of_seeds(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"1": node("EmptyImage", color="__RANDOM_INT__")}))

    assert ComfySettings.from_env({"BENCHMARK_JSON_PATH": str(path)}).benchmark_graph


def test_the_bucket_of_the_environment() -> None:
    pytest.importorskip("boto3")
    bucket = ComfySettings.from_env(S3).bucket

    assert bucket == storage.Bucket("key", "secret", "https://s3.example.com", "bucket")
    assert "secret" not in repr(bucket)
    assert ComfySettings.from_env({}).bucket is None
