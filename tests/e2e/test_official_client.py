"""The unmodified official client, through the local engine to a worker, over HTTP and over TLS."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lib.client import CA_PATH
from lib.local.engine import LocalEngine
from lib.local.hello_world import hello_world
from lib.local.local_worker_env import WORKER_ID
from lib.local.serving import serve_engine
from tests.guard import GUARD_S
from tests.system import engine_key

# Typed as Any: the package has no types that a checker could use.
vastai: Any = pytest.importorskip("vastai", reason="the official client, `vastai`, can't be installed here")

TOKENS_PER_S = 5000
MASTER_TOKEN = "master-token"
PAYLOAD = {"prompt": "Alice was", "max_response_tokens": 5}


@dataclass
class ClientSystem:
    """The engine, a ready worker, and the official client on them."""

    engine: LocalEngine
    worker_url: str
    client: Any
    force_update: Path


@asynccontextmanager
async def start_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> AsyncGenerator[ClientSystem, None]:
    engine = LocalEngine(key=engine_key())
    variables = {
        "MASTER_TOKEN": MASTER_TOKEN,
        "FORCE_UPDATE_FILE": str(tmp_path / "force_update"),
        **(certified(engine, tmp_path) if tls else {}),
    }
    async with (
        serve_engine(engine) as url,
        hello_world(url, os.environ, tmp_path, TOKENS_PER_S, variables=variables) as running,
    ):
        await engine.wait_for(lambda: engine.worker(WORKER_ID).state == "ready", GUARD_S)
        monkeypatch.setattr(vastai.Serverless, "SSL_CERT_URL", url + CA_PATH)
        async with vastai.Serverless(api_key="any", autoscaler_url=url, webserver_url=url) as client:
            yield ClientSystem(engine, running.worker_url, client, tmp_path / "force_update")


def certified(engine: LocalEngine, folder: Path) -> dict[str, str]:
    """The variables of a worker with a certificate of the engine's authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(names, critical=False)
    pem = engine.certify(WORKER_ID, request.sign(key, SHA256()).public_bytes(Encoding.PEM))
    (folder / "instance.crt").write_text(pem)
    (folder / "instance.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return {
        "USE_SSL": "true",
        "SSL_CERT": str(folder / "instance.crt"),
        "SSL_KEY": str(folder / "instance.key"),
    }


@pytest.fixture(params=["http", "https"])
async def system(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[ClientSystem, None]:
    async with start_system(tmp_path, monkeypatch, tls=request.param == "https") as running:
        assert running.worker_url.startswith(f"{request.param}://")
        yield running


async def test_requests_streams_sessions_and_the_list_of_workers(system: ClientSystem) -> None:
    endpoint = await system.client.get_endpoint("local")
    assert (endpoint.id, endpoint.name) == (1, "local")

    answer = await endpoint.request("/generate", PAYLOAD, cost=5)
    assert (answer["ok"], answer["status"], answer["url"]) == (True, 200, system.worker_url)
    assert answer["response"]["tokens"] == 5

    streamed = await endpoint.request("/generate_stream", PAYLOAD, cost=5, stream=True)
    assert streamed["ok"]
    assert len([line["token"] async for line in streamed["response"]]) == 5

    refused = await endpoint.request("/generate", {**PAYLOAD, "max_response_tokens": 0}, cost=5)
    assert (refused["ok"], refused["status"]) == (False, 422)
    assert "max_response_tokens" in refused["response"]["payload"]

    async with await endpoint.session(cost=20, lifetime=30.0) as session:
        assert await session.is_open()
        inside = await session.request("/generate", PAYLOAD)
        assert inside["response"]["tokens"] == 5
        again = await endpoint.get_session(session.session_id, session.auth_data)
        assert again.session_id == session.session_id
    with pytest.raises(ValueError, match="closed session"):
        await session.request("/generate", PAYLOAD)

    (worker,) = await endpoint.get_workers()
    assert (worker.id, worker.status) == (WORKER_ID, "ready")
    assert worker.perf == worker.measured_perf > 0

    statuses = ["Success", "Success", "Error", "Success"]
    await system.engine.wait_for(lambda: len(system.engine.finished) == len(statuses), GUARD_S)
    assert [f.request.status for f in system.engine.finished] == statuses
    assert len(system.engine.open_requests) == 0
    # Two requests of 5 and a session of 20; the invalid request counts nothing.
    await system.engine.wait_for(lambda: system.engine.worker(WORKER_ID).totals.cur_perf == 30.0, GUARD_S)


async def test_many_requests_at_once(system: ClientSystem) -> None:
    endpoint = await system.client.get_endpoint("local")
    answers = await asyncio.gather(*(endpoint.request("/generate", PAYLOAD, cost=5) for _ in range(20)))
    assert [answer["status"] for answer in answers] == [200] * 20
    assert len({answer["request_idx"] for answer in answers}) == 20


async def test_endpoints_and_worker_groups_are_managed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = importlib.import_module("vastai.data.endpoint").EndpointConfig("chat", max_workers=3)
    async with start_system(tmp_path, monkeypatch, tls=False) as system:
        assert [endpoint.name for endpoint in await system.client.get_endpoints()] == ["local"]
        made = await system.client.create_endpoint(config)
        data = await system.client.fetch_endpoint(made.id)
        assert (data.config.endpoint_name, data.config.max_workers, data.config.cold_workers) == (
            "chat",
            3,
            5,
        )
        group = await made.add_workergroup("a-template")
        assert await system.client.find_workergroup_for_endpoint(made.id) == group
        await system.client.delete_workergroup(group)
        assert await system.client.find_workergroup_for_endpoint(made.id) is None
        await made.delete()
        with pytest.raises(Exception, match="chat could not be found"):
            await system.client.get_endpoint("chat")

        group = await system.client.find_workergroup_for_endpoint(1)
        assert group is not None
        updated = await system.client.update_workers(group)
        assert updated["result"] == {str(WORKER_ID): "asked"}
        assert system.force_update.exists()


async def test_the_consoles_older_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start_system(tmp_path, monkeypatch, tls=False) as system:
        url = system.client.autoscaler_url
        console = vastai.VastAI(api_key="any", server_url=url)

        def manage() -> dict[str, Any]:
            console.create_endpoint(endpoint_name="chat", max_workers=2)
            console.update_endpoint(2, max_workers=4)
            console.create_workergroup(endpoint_name="chat", template_hash="abc", gpu_ram=48.0)
            answers = {
                "endpoints": console.show_endpoints(),
                "groups": console.show_workergroups(),
                "workers": console.get_endpoint_workers(1),
                "logs": console.get_endpt_logs(1, tail=5),
                "group_logs": console.get_wrkgrp_logs(1),
                "update": console.update_workers(1, cancel=True),
            }
            console.delete_workergroup(2)
            console.delete_endpoint(2)
            return answers

        answers = await asyncio.to_thread(manage)
        assert [(e["endpoint_name"], e["max_workers"]) for e in answers["endpoints"]] == [
            ("local", 20),
            ("chat", 4),
        ]
        assert [(g["endpoint_name"], g["gpu_ram"]) for g in answers["groups"]] == [
            ("local", 24.0),
            ("chat", 48.0),
        ]
        assert [worker["id"] for worker in answers["workers"]] == [WORKER_ID]
        assert "is ready" in answers["logs"]["info0"]
        assert "is ready" in answers["group_logs"]["info0"]
        assert answers["update"]["success"]
