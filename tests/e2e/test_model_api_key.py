"""A model server with an API key (`MODEL_API_KEY`), in front of which a worker runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.runtime.settings import CarrierKind
from tests.fakes.model_server import malicious_model
from tests.fakes.worker import JobHandler, Setup, altered_worker
from tests.system import with_worker_task

KEY = "k-123-secret"


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_all_that_the_worker_sends_to_the_model_server_carries_its_key(
    tmp_path: Path, carrier: CarrierKind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "lib")
    setup = Setup(health="/health", benchmark="/echo")
    async with with_worker_task(
        tmp_path, setup, carrier=carrier, model_api_key=KEY, benchmark_target_s=0.1
    ) as system:
        # Ready: the health check and the benchmark have succeeded.
        assert system.model.health_checks
        for headers in ({}, system.header(1.0)):
            body = {"workload": 1.0} if headers else system.envelope()
            async with system.http.post(system.url + "/echo", json=body, headers=headers) as answer:
                assert answer.status == 200
                seen = json.loads(await answer.read())["headers"]
                assert seen["Authorization"] == f"Bearer {KEY}"
        assert system.backend is not None
        async with system.backend.session.get("/echo") as answer:
            assert answer.status == 200

        terms: dict[str, Any] = {"on_close_route": "/echo?closing", "on_close_payload": {}}
        auth = system.auth(2.0)
        created: dict[str, Any] = {"auth_data": auth, "payload": terms}
        async with system.http.post(system.url + "/session/create", json=created) as answer:
            session = (await answer.json())["session_id"]
        ended = {"session_id": session, "session_auth": auth}
        async with system.http.post(system.url + "/session/end", json=ended) as answer:
            assert answer.status == 200
        await system.model.until(lambda: system.model.requests[-1].path == "/echo?closing")

        assert {r.header("Authorization") for r in system.model.requests} == {f"Bearer {KEY}"}
        async with system.http.get(system.loopback_url + "/status") as answer:
            assert KEY not in await answer.text()
        async with system.http.get(system.loopback_url + "/metrics") as answer:
            assert KEY not in await answer.text()
    assert KEY not in caplog.text
    assert KEY not in (tmp_path / ".pyworker_benchmark.json").read_text()


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_a_handler_that_calls_another_server_does_not_send_the_key(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with malicious_model() as other:
        path = f"{other.url}/echo"

        def add(backend: Any) -> Any:
            return [web.post("/elsewhere", backend.create_handler(JobHandler(path=path)))]

        make = altered_worker(add)
        async with with_worker_task(tmp_path, make=make, carrier=carrier, model_api_key=KEY) as system:
            status, body = await system.call("/elsewhere")
            assert status == 200
            assert KEY not in body.decode()
            assert "Authorization" not in json.loads(body)["headers"]
