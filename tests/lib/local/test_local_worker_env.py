"""The environment of a worker with a local engine, whatever the caller's environment has."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.local.local_worker_env import instance_variables
from lib.runtime.settings import Settings


@pytest.mark.parametrize(
    "inherited",
    [
        {},
        {"ENGINE": "none", "WORKER_HOST": "127.0.0.1"},
        {"REPORT_ADDR": "https://other.example", "USE_SSL": "true"},
        {"CONTAINER_ID": "x", "PUBLIC_IPADDR": "x", "WORKER_PORT": "x", "WORKER_HTTP_PORT": "x"},
    ],
)
def test_a_worker_starts_with_the_local_engine(inherited: dict[str, str]) -> None:
    settings = Settings.from_env(
        {**inherited, **instance_variables("http://127.0.0.1:9", 3000, 3001, Path("/w"))}
    )
    assert settings.engine == "vast"
    assert (settings.worker_port, settings.worker_http_port) == (3000, 3001)
    assert "http://127.0.0.1:9" in str(settings.report_addrs)
