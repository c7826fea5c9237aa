"""`ENGINE=none`: a worker without an engine, an instance's variables or signatures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import ROOT, PortLease, WorkerProcess

INSTANCE = ("CONTAINER_ID", "PUBLIC_IPADDR", "REPORT_ADDR", "MASTER_TOKEN", "WORKER_PORT", "WORKER_HTTP_PORT")


class StandaloneWorker:
    """A worker process without an engine; `url` is its public port, `loopback_url` the port of /status."""

    def __init__(self, model: MaliciousModel, http: aiohttp.ClientSession, ports: tuple[int, int]) -> None:
        self.model = model
        self.http = http
        self.port, self.loopback_port = ports
        self.url = f"http://127.0.0.1:{self.port}"
        self.loopback_url = f"http://127.0.0.1:{self.loopback_port}"
        self.process: WorkerProcess

    async def state(self) -> str:
        try:
            async with self.http.get(self.url + "/readyz") as answer:
                return await answer.text()
        except aiohttp.ClientConnectionError:
            return "not listening"

    async def ready(self) -> None:
        await self.until(self.state, "ready")

    async def until(self, ask: Callable[[], Awaitable[Any]], expected: Any) -> None:
        """Call `ask` repeatedly until it returns `expected`."""
        with anyio.fail_after(GUARD_S):
            while await ask() != expected:
                assert self.process.process.returncode is None, self.process.output()
                await anyio.sleep(0.02)

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        async with self.http.post(self.url + path, json=body, **options) as answer:
            return answer.status, await answer.json(content_type=None)

    async def metric(self, name: str) -> float:
        async with self.http.get(self.loopback_url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])


@asynccontextmanager
async def worker_process(
    tmp_path: Path, setup: Setup | None = None, env: dict[str, str] | None = None
) -> AsyncGenerator[StandaloneWorker, None]:
    leases = (PortLease(), PortLease())
    log = tmp_path / "worker.log"
    timeout = aiohttp.ClientTimeout(total=GUARD_S)
    try:
        async with malicious_model() as model, aiohttp.ClientSession(timeout=timeout) as http:
            worker = StandaloneWorker(model, http, (leases[0].port, leases[1].port))
            kept = {k: v for k, v in os.environ.items() if not k.startswith("VAST_") and k not in INSTANCE}
            environ = {
                **kept,
                "PYTHONPATH": str(ROOT),
                "ENGINE": "none",
                "WORKER_PORT": str(worker.port),
                "WORKER_HTTP_PORT": str(worker.loopback_port),
                "TEST_MODEL_URL": model.url,
                "TEST_WORKER": json.dumps(asdict(setup or Setup(health="/health"))),
                **(env or {}),
            }
            with log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.fakes.worker"),
                    cwd=tmp_path,
                    env=environ,
                    stdout=output,
                    stderr=output,
                )
            worker.process = WorkerProcess(process, log)
            try:
                yield worker
            finally:
                if process.returncode is None:
                    worker.process.terminate()
                    await worker.process.exit_status()
    finally:
        for lease in leases:
            lease.close()


async def test_a_worker_without_an_engine_serves_queues_reports_metrics_and_drains(tmp_path: Path) -> None:
    setup = Setup(health="/health", benchmark="/echo", handler={"max_concurrency": 1, "benchmark_runs": 1})
    async with worker_process(tmp_path, setup) as worker:
        await worker.ready()
        job: dict[str, Any] = {"workload": 5.0, "data": {"n": 1}}
        status, body = await worker.post("/echo", job)
        assert (status, json.loads(body["body"])) == (200, job)
        async with anyio.create_task_group() as requests:
            for _ in range(2):
                requests.start_soon(worker.post, "/held", job)
            await worker.until(partial(worker.metric, "pyworker_requests_waiting"), 1.0)
            assert await worker.metric("pyworker_requests_working") == 1.0
            assert await worker.metric("pyworker_workload_in_flight") == 10.0
            worker.process.terminate()
            await worker.until(worker.state, "draining")
            assert (await worker.post("/echo", job))[0] == 503
            worker.model.release()
        assert await worker.process.exit_status() == 0
        output = worker.process.output()
        assert "Traceback" not in output
        assert "signature" not in output


async def test_an_envelope_is_accepted_as_well_as_a_bare_payload(tmp_path: Path) -> None:
    async with worker_process(tmp_path) as worker:
        await worker.ready()
        job: dict[str, Any] = {"workload": 2.0, "data": {}}
        auth = {
            "signature": "x",
            "cost": 2,
            "endpoint": "e",
            "reqnum": 1,
            "url": "http://x",
            "request_idx": 9,
        }
        outside: list[dict[str, Any]] = [{}, {"session_id": None}]
        for fields in outside:
            status, body = await worker.post("/echo", {"auth_data": auth, "payload": job, **fields})
            assert (status, json.loads(body["body"])) == (200, job)
        async with worker.http.get(worker.loopback_url + "/status") as answer:
            result = await answer.json()
        assert (result["requests"]["served"], result["reports"]) == (2, [])


@pytest.mark.parametrize(
    ("body", "status", "answer"),
    [
        (b"[1]", 422, {"body": "must be a JSON object"}),
        (b"{", 422, {"body": "not JSON"}),
        (b'{"workload": "x"}', 422, {"payload": {"workload": "must be a number"}}),
        (b'{"auth_data": {}, "payload": {}}', 422, {"auth_data": "…"}),
        (b'{"payload": {}, "session_id": 5}', 422, {"session_id": "must be a string or null"}),
        (b'{"payload": {}, "session_id": "none"}', 410, {"error": "the session is unknown"}),
    ],
)
async def test_bad_input_is_refused_by_name(
    tmp_path: Path, body: bytes, status: int, answer: dict[str, Any]
) -> None:
    async with worker_process(tmp_path) as worker:
        await worker.ready()
        headers = {"Content-Type": "application/json"}
        async with worker.http.post(worker.url + "/echo", data=body, headers=headers) as refused:
            result = await refused.json()
            assert refused.status == status
        assert list(result) == list(answer)
        (error_text,), (expected,) = result.values(), answer.values()
        if expected != "…" and isinstance(expected, str):
            assert error_text.startswith(expected)


async def test_a_session_is_identified_by_its_id_alone(tmp_path: Path) -> None:
    async with worker_process(tmp_path) as worker:
        await worker.ready()
        status, session = await worker.post("/session/create", {"lifetime": 30})
        assert status == 201
        named = {"session_id": session["session_id"]}
        assert await worker.post("/session/health", named) == (200, {"ok": True})
        job: dict[str, Any] = {"workload": 2.0, "data": {}}
        status, body = await worker.post("/echo", {"payload": job, **named})
        assert (status, json.loads(body["body"])) == (200, job)
        status, ended = await worker.post("/session/end", named)
        assert (status, ended["removed_session"]) == (200, session["session_id"])
        assert (await worker.post("/echo", {"payload": job, **named}))[0] == 410
        assert await worker.post("/session/health", named) == (200, {"ok": False})
        assert (await worker.post("/session/get", {}))[0] == 422


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
async def test_clients_whose_requests_are_served_are_no_strangers(tmp_path: Path, carrier: str) -> None:
    """They need not make room for others."""
    async with worker_process(tmp_path, env={"CARRIER": carrier}) as worker:
        await worker.ready()

        async def strangers_bytes() -> int:
            async with worker.http.get(worker.loopback_url + "/status") as answer:
                return (await answer.json())["strangers"]["memory_bytes"]

        job: dict[str, Any] = {"workload": 1.0, "data": {}}
        before = await strangers_bytes()  # of the connection that asks for the state
        async with anyio.create_task_group() as requests:
            for _ in range(5):
                requests.start_soon(worker.post, "/held", job)
            await worker.model.until(lambda: worker.model.working == 5)
            assert await strangers_bytes() <= before
            worker.model.release()


async def test_bodies_that_trickle_make_room_for_others(tmp_path: Path) -> None:
    mib = 1024 * 1024
    env = {"MAX_SPOOL_BYTES": str(16 * mib), "MAX_REQUEST_BYTES": str(8 * mib)}
    async with worker_process(tmp_path, env=env) as worker, contextlib.AsyncExitStack() as clients:
        await worker.ready()
        fields = {"Content-Type": "application/json", "Content-Length": str(60 * mib)}
        begin = request_bytes("/echo", b'{"x": "' + b"y" * 8 * mib, fields)
        answers: list[int] = []
        is_refused = anyio.Event()

        async def wait(client: RawClient) -> None:
            answers.append((await client.head()).status)
            is_refused.set()

        async with anyio.create_task_group() as waits:
            for number in range(4):
                address = f"127.0.0.{2 + number}"
                client = await clients.enter_async_context(connected(worker.url, local_address=address))
                waits.start_soon(client.send, begin)
                waits.start_soon(wait, client)
            with anyio.fail_after(GUARD_S):
                await is_refused.wait()
            job = {"workload": 1.0, "data": {"x": "y" * (mib - 100)}}
            assert (await worker.post("/echo", job))[0] == 200
            assert set(answers) == {503}
            waits.cancel_scope.cancel()


async def test_the_default_address_is_loopback(tmp_path: Path) -> None:
    async with worker_process(tmp_path) as worker:
        await worker.ready()
        with pytest.raises(aiohttp.ClientConnectionError):
            async with worker.http.get(f"http://127.0.0.2:{worker.port}/ping"):
                pass
        assert "whoever reaches" not in worker.process.output()


async def test_an_address_other_than_loopback_causes_a_warning(tmp_path: Path) -> None:
    hosts = {"WORKER_HOST": "0.0.0.0", "WORKER_HTTP_HOST": "0.0.0.0", "WORKER_HTTP_NAMES": "worker.example"}
    async with worker_process(tmp_path, env=hosts) as worker:
        await worker.ready()
        for port, path in ((worker.port, "/ping"), (worker.loopback_port, "/metrics")):
            async with worker.http.get(f"http://127.0.0.2:{port}{path}") as answer:
                assert answer.status == 200
        for host, status in (("worker.example", 200), ("evil.example", 421)):
            headers = {"Host": host}
            async with worker.http.get(f"{worker.loopback_url}/metrics", headers=headers) as answer:
                assert answer.status == status, host
        output = worker.process.output()
        assert "ENGINE=none and WORKER_HOST=0.0.0.0" in output
        assert "WORKER_HTTP_HOST=0.0.0.0" in output


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("REPORT_ADDR", "http://127.0.0.1:1", "must be unset with ENGINE=none"),
        ("MASTER_TOKEN", "secret", "must be unset with ENGINE=none"),
        ("AUTH_SCHEME", "full", "must be unset with ENGINE=none"),
        ("AUTH_CHECK_URL", "false", "must be unset with ENGINE=none"),
        ("UNSECURED", "false", "can't be false with ENGINE=none"),
    ],
)
async def test_what_contradicts_it_is_an_error_at_the_start(
    tmp_path: Path, name: str, value: str, text: str
) -> None:
    async with worker_process(tmp_path, env={name: value}) as worker:
        assert await worker.process.exit_status() == 2
        assert f"{name}: {text}" in worker.process.output()


@pytest.mark.parametrize("name", ["WORKER_HOST", "WORKER_HTTP_HOST"])
@pytest.mark.parametrize("address", ["192.0.2.1"])
async def test_an_address_that_cannot_be_bound_is_named(tmp_path: Path, name: str, address: str) -> None:
    async with worker_process(tmp_path, env={name: address}) as worker:
        assert await worker.process.exit_status() == 2
        output = worker.process.output()
        assert f"{name}: cannot listen on {address}, port " in output
        assert "Traceback" not in output


async def test_an_unknown_engine_is_an_error_at_start(tmp_path: Path) -> None:
    async with worker_process(tmp_path, env={"ENGINE": "other"}) as worker:
        assert await worker.process.exit_status() == 2
        assert "ENGINE: 'other' is none of vast, none" in worker.process.output()
