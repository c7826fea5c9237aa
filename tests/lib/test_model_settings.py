from __future__ import annotations

import pytest

from lib.data_types import LogAction
from lib.errors import SettingsError
from lib.model_settings import ModelSettings


def read(environ: dict[str, str]) -> ModelSettings:
    return ModelSettings.from_env(
        environ,
        server_url="http://127.0.0.1:5001",
        log="/tmp/model.log",
        load_lines=["started"],
        error_lines=["broken", "lost"],
        info_lines=["loading"],
        health="/health",
        max_queue_time=60.0,
    )


def test_unset_and_empty_variables_have_the_defaults() -> None:
    expected = ModelSettings(
        server_url="http://127.0.0.1:5001",
        log="/tmp/model.log",
        load_lines=("started",),
        error_lines=("broken", "lost"),
        info_lines=("loading",),
        health="/health",
        max_queue_time=60.0,
    )

    assert read({}) == expected
    assert read({"MODEL_LOG": "", "MODEL_LOAD_LOG_MSG": " \n ", "MAX_QUEUE_TIME": ""}) == expected


def test_everything_can_be_overridden() -> None:
    settings = read(
        {
            "MODEL_SERVER_URL": "https://model.local:8000/base/",
            "MODEL_LOG": "/var/log/other.log",
            "MODEL_LOAD_LOG_MSG": "ready",
            "MODEL_ERROR_LOG_MSGS": "out of memory\r\n\n  Traceback: a, b  \n",
            "MODEL_INFO_LOG_MSGS": "download",
            "MODEL_HEALTH_ENDPOINT": "http://127.0.0.1:9/up",
            "MAX_QUEUE_TIME": "2.5",
        }
    )

    assert settings == ModelSettings(
        server_url="https://model.local:8000/base",
        log="/var/log/other.log",
        load_lines=("ready",),
        error_lines=("out of memory", "Traceback: a, b"),
        info_lines=("download",),
        health="http://127.0.0.1:9/up",
        max_queue_time=2.5,
    )


def test_none_removes_the_limit_of_the_queue() -> None:
    assert read({"MAX_QUEUE_TIME": "None"}).max_queue_time is None


def test_log_actions_are_pairs_of_action_and_text() -> None:
    assert read({}).log_actions == [
        (LogAction.ModelLoaded, "started"),
        (LogAction.ModelError, "broken"),
        (LogAction.ModelError, "lost"),
        (LogAction.Info, "loading"),
    ]


def test_only_the_address_and_the_log_are_required() -> None:
    settings = ModelSettings.from_env({}, server_url="http://127.0.0.1:1", log="/tmp/model.log")

    assert (settings.health, settings.max_queue_time, settings.log_actions) == (None, None, [])


def test_every_malformed_variable_is_named() -> None:
    with pytest.raises(SettingsError) as raised:
        read({"MODEL_SERVER_URL": "localhost:5001", "MODEL_HEALTH_ENDPOINT": "health", "MAX_QUEUE_TIME": "0"})

    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "MODEL_SERVER_URL",
        "MODEL_HEALTH_ENDPOINT",
        "MAX_QUEUE_TIME",
    ]


@pytest.mark.parametrize("url", ["ftp://model", "http://", "http://model:0", "http://model:x", "http://[::1"])
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="MODEL_SERVER_URL"):
        read({"MODEL_SERVER_URL": url})


@pytest.mark.parametrize("limit", ["soon", "nan", "inf", "-1"])
def test_a_malformed_limit_is_refused(limit: str) -> None:
    with pytest.raises(SettingsError, match="MAX_QUEUE_TIME"):
        read({"MAX_QUEUE_TIME": limit})
