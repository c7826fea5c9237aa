"""A worker process from its start to its exit status (docs/operating.md, "States")."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from lib.errors import SettingsError
from lib.runtime.file_limit import MIN_CONNECTIONS
from lib.server import EXIT_FAILED, EXIT_PORT_TAKEN, EXIT_SETTINGS
from tests.fakes.raw_client import RawClient, connected
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import (
    MASTER_TOKEN,
    ROOT,
    System,
    engine_and_model_server,
    with_worker_process,
    with_worker_task,
    worker_process,
)

HEALTHY = Setup(health="/health")


async def run_until_refused(
    tmp_path: Path, setup: Setup, env: dict[str, str], module: str = "tests.fakes.worker"
) -> tuple[int, str]:
    """Run a worker that refuses to start; return its exit status and output."""
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, setup, env, module=module) as worker,
    ):
        status = await worker.exit_status()
        assert system.model.health_checks == 0
        return status, worker.output()


# Starts that fail


async def test_missing_variables_are_reported_together_without_a_traceback(tmp_path: Path) -> None:
    env = {"CONTAINER_ID": "", "PUBLIC_IPADDR": "", "DRAIN_TIMEOUT_S": "soon"}
    status, output = await run_until_refused(tmp_path, HEALTHY, env)
    assert status == EXIT_SETTINGS
    assert "CONTAINER_ID: missing (the instance's id, an integer)" in output
    assert "PUBLIC_IPADDR: missing (the instance's public address)" in output
    assert "DRAIN_TIMEOUT_S: 'soon'" in output
    assert "Traceback" not in output


async def test_a_worker_without_a_ready_signal_says_what_to_configure(tmp_path: Path) -> None:
    status, output = await run_until_refused(tmp_path, Setup(), {})
    assert status == EXIT_SETTINGS
    assert "nothing shows when the model is loaded: give a LogAction.ModelLoaded line" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (Setup(health="/health", backend={"max_perf": float("inf")}), "max_perf is inf"),
        (
            Setup(log="", health="/health"),
            "log_actions has lines to look for, but there is no model_log_file",
        ),
        (Setup(health="/health", handler={"max_concurrency": 0}), "max_concurrency is 0"),
    ],
)
async def test_contradicting_settings_are_refused(tmp_path: Path, setup: Setup, said: str) -> None:
    with pytest.raises(BaseException, match="unhandled errors") as raised:
        async with with_worker_task(tmp_path, setup):
            pytest.fail("it started")
    assert said in str(settings_error(raised.value))


def settings_error(error: BaseException) -> SettingsError:
    """The single error inside the exception groups of the test's task groups."""
    while not isinstance(error, SettingsError):
        (error,) = error.exceptions  # type: ignore[attr-defined]
    return error


async def test_a_taken_port_names_its_holder(tmp_path: Path) -> None:
    async with (
        with_worker_process(tmp_path) as system,
        worker_process(system, tmp_path, HEALTHY, name="second.log") as second,
    ):
        assert system.worker is not None
        assert await second.exit_status() == EXIT_PORT_TAKEN
        port = system.url.rsplit(":", 1)[1]
        assert f"port {port} is taken by process {system.worker.process.pid} (" in second.output()
        assert "Traceback" not in second.output()
        assert (await system.call("/echo"))[0] == 200


async def test_a_taken_loopback_port_names_its_holder(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        port = system.model.url.rsplit(":", 1)[1]
        async with worker_process(system, tmp_path, HEALTHY, {"WORKER_HTTP_PORT": port}) as worker:
            assert await worker.exit_status() == EXIT_PORT_TAKEN
            assert f"port {port} is taken by process" in worker.output()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "instance.crt"), str(folder / "instance.key")
    options = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", cert, *options]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_a_worker_serves_tls(tmp_path: Path, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    trusted = ssl.create_default_context(cafile=cert)
    async with with_worker_process(
        tmp_path, env={"USE_SSL": "true", "SSL_CERT": cert, "SSL_KEY": key}
    ) as system:
        system.url = system.url.replace("http://", "https://")
        assert system.last_report.url == system.url
        closing = {"Connection": "close"}
        assert (await system.call("/echo", ssl=trusted, headers=closing))[0] == 200
        async with system.http.get(system.loopback_url + "/readyz") as answer:  # without TLS, on loopback
            assert answer.status == 200


async def test_missing_tls_files_are_one_message(tmp_path: Path) -> None:
    env = {"USE_SSL": "true", "SSL_CERT": "/none.crt", "SSL_KEY": "/none.key"}
    status, output = await run_until_refused(tmp_path, HEALTHY, env)
    assert status == EXIT_SETTINGS
    assert "/none.crt (SSL_CERT) and /none.key (SSL_KEY) can't be used" in output
    assert "Traceback" not in output


# Stopping


@asynccontextmanager
async def with_calls(system: System, *paths: str) -> AsyncGenerator[dict[str, Any], None]:
    """Send signed requests; yield a dict that gets each answer (status, headers) or exception."""
    answers: dict[str, Any] = {}

    async def call(path: str) -> None:
        try:
            async with system.post(path, 5.0) as answer:
                await answer.read()
                answers[path] = answer.status, answer.headers
        except aiohttp.ClientError as e:
            answers[path] = e

    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(call, path)
        yield answers


async def state_of(system: System) -> str:
    async with system.http.get(system.loopback_url + "/readyz") as answer:
        return await answer.text()


async def wait_for_drain(system: System) -> None:
    with anyio.fail_after(GUARD_S):
        while await state_of(system) != "draining":
            pass


async def test_sigterm_lets_requests_finish_and_reports_them(tmp_path: Path) -> None:
    setup = Setup(health="/health", backend={"allow_parallel_requests": False})
    async with with_worker_process(tmp_path, setup) as system:
        assert system.worker is not None
        await system.call("/echo", 7.0)
        async with with_calls(system, "/held") as first:
            await system.model.until(lambda: system.model.working == 1)
            async with with_calls(system, "/echo") as queued:
                await system.engine.wait_for(lambda: system.last_report.num_requests_working == 2)
                system.worker.terminate()
            status, headers = queued["/echo"]
            assert (status, int(headers["Retry-After"]) >= 1) == (503, True)
            await wait_for_drain(system)
            async with system.post("/echo", 3.0) as late:
                assert (late.status, (await late.json())["state"]) == (503, "draining")
                assert int(late.headers["Retry-After"]) >= 1
            assert first == {}
            system.model.release()
        assert first["/held"][0] == 200
        assert await system.worker.exit_status() == 0
        totals = system.totals
        assert (totals.cur_perf, totals.new_load, totals.rej_load) == (12.0, 17.0, 8.0)
        assert system.last_report.num_requests_working == 0
        reported = sorted(f.request.status for f in system.engine.finished)
        assert reported == ["Rejected", "Rejected", "Success", "Success"]
        assert "Traceback" not in system.worker.output()


async def test_a_request_past_the_drain_timeout_is_cut_and_counts_as_errored(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, env={"DRAIN_TIMEOUT_S": "0.1"}) as system:
        assert system.worker is not None
        async with with_calls(system, "/held", "/stream", "/finish/held") as answers:
            await system.model.until(lambda: len(system.model.requests) == 3)
            system.worker.terminate()
        assert all(isinstance(answer, aiohttp.ClientError) for answer in answers.values())
        assert await system.worker.exit_status() == 0
        assert [f.request.status for f in system.engine.finished] == ["Error"] * 3
        assert system.totals.cur_perf == 0.0
        assert system.last_report.num_requests_working == 0
        await system.model.until(lambda: system.model.cancelled == 3)
        assert "Traceback" not in system.worker.output()


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, env={"DRAIN_TIMEOUT_S": "600"}) as system:
        assert system.worker is not None
        async with with_calls(system, "/held") as answers:
            await system.model.until(lambda: system.model.working == 1)
            system.worker.terminate()
            await wait_for_drain(system)
            system.worker.terminate()
        assert isinstance(answers["/held"], aiohttp.ClientError)
        assert await system.worker.exit_status() == EXIT_FAILED


async def test_an_immediate_stop_cuts_requests(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.stop is not None
        async with with_calls(system, "/held") as answers:
            await system.model.until(lambda: system.model.working == 1)
            system.stop.ask()
            system.stop.ask()
            await anyio.wait_all_tasks_blocked()
            system.model.release()
        assert isinstance(answers["/held"], aiohttp.ClientError)
    assert system.exit_status == EXIT_FAILED


async def test_an_unreachable_engine_does_not_delay_a_second_signal(tmp_path: Path) -> None:
    setup = Setup(health="/health", backend={"clock": ManualClock()})  # on this clock, no time limit passes
    with anyio.fail_after(GUARD_S):
        async with with_worker_task(tmp_path, setup) as system:
            assert system.stop is not None
            system.engine.faults.reports.delay_s = 3600.0
            seen = system.engine.requests_seen["reports"]
            system.stop.ask()
            await system.engine.wait_for(lambda: system.engine.requests_seen["reports"] > seen)
            system.stop.ask()
    assert system.exit_status == EXIT_FAILED


# The lifecycle


class RecordedLifecycle:
    """An async context manager that records entering and leaving."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def __aenter__(self) -> None:
        self.notes.append("entered")

    async def __aexit__(self, *error: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.notes.append("left")


@pytest.mark.parametrize("called", [False, True])
async def test_a_lifecycle_sets_readiness_and_is_left_last(tmp_path: Path, called: bool) -> None:
    lifecycle = RecordedLifecycle()
    setup = Setup(backend={"lifecycle": (lambda: lifecycle) if called else lifecycle})
    async with with_worker_task(tmp_path, setup) as system:
        assert lifecycle.notes == ["entered"]
        assert system.last_report.loadtime > 0
        assert system.stop is not None
        system.stop.ask()
        system.stop.ask()  # stopped immediately, and still left
    assert lifecycle.notes == ["entered", "left"]


BROKEN = "tests.e2e.broken_worker"


async def test_a_lifecycle_that_fails_ends_the_worker_with_an_error_report(tmp_path: Path) -> None:
    env = {"TEST_LIFE": "raises"}
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, HEALTHY, env, module=BROKEN) as worker,
    ):
        assert await worker.exit_status() == EXIT_FAILED
        assert "no licence for this model" in system.last_report.error_msg
        assert "RuntimeError: no licence for this model" in worker.output()


@pytest.mark.parametrize("kind", ["hangs", "plain"])
async def test_sigterm_exits_the_lifecycle(tmp_path: Path, kind: str) -> None:
    async with engine_and_model_server(tmp_path) as system:
        async with worker_process(system, tmp_path, HEALTHY, {"TEST_LIFE": kind}, module=BROKEN) as worker:
            if kind == "plain":
                await system.ready()
            else:
                await system.engine.wait_for(lambda: system.last_report)
            worker.terminate()
            assert await worker.exit_status() == 0
        assert (tmp_path / "left").read_text() == "whole"


# The log


async def test_json_lines_without_payloads_tokens_or_signatures(tmp_path: Path) -> None:
    env = {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"}
    async with with_worker_process(tmp_path, env=env) as system:
        assert system.worker is not None
        envelope = system.envelope(5.0, {"prompt": "a secret prompt"})
        for path in ("/echo", "/raising"):
            headers = {"Authorization": "Bearer a-secret-key"}
            url = f"{system.url}{path}?api_key=another-secret"
            async with system.http.post(url, json=envelope, headers=headers) as answer:
                await answer.read()
            envelope = system.envelope(5.0, {"prompt": "a secret prompt", "raise": "response"})
        system.worker.terminate()
        assert await system.worker.exit_status() == 0
        output = system.worker.output()
        lines = [json.loads(line) for line in output.splitlines()]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert any("RuntimeError: response bug" in line.get("traceback", "") for line in lines)
    assert any(line["logger"] == "lib.access" for line in lines)
    for secret in ("secret", MASTER_TOKEN, envelope["auth_data"]["signature"]):
        assert secret not in output


# Imports

AUDIT = """
import sys
import aiohttp, aiohttp.web, anyio, psutil, yarl, Crypto.PublicKey.RSA, Crypto.Signature.pkcs1_15
import Crypto.Hash.SHA256, anyio._backends._asyncio, anyio.to_thread
from collections.abc import MutableMapping
import os

opened, read = [], []

class Recording(dict):
    def __getitem__(self, key):
        read.append(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        read.append(key)
        return super().get(key, default)

    def __contains__(self, key):
        read.append(key)
        return super().__contains__(key)

def watch(event, args):
    if event.startswith("socket.") or event.startswith("subprocess.") or event == "os.system":
        opened.append((event, str(args)))
    if event == "open" and isinstance(args[0], (str, bytes)):
        if not str(args[0]).endswith((".py", ".pyc", ".so")):
            opened.append((event, str(args[0])))

os.environ = Recording(os.environ)
sys.addaudithook(watch)
import logging
handlers = logging.getLogger().handlers[:]
import lib.backend, lib.server, lib.data_types, lib.metrics
from lib.backend import Backend, LogAction
rules = [(LogAction.ModelLoaded, "ready")]
backend = Backend("http://model:1/", "/no/such.log", True, None, rules, healthcheck_url="/health")
assert logging.getLogger().handlers == handlers
ours = [n for n in read if n.startswith(("VAST", "WORKER", "MODEL", "LOG", "CONTAINER", "REPORT", "MASTER"))]
print(opened, ours)
"""


def test_importing_and_constructing_touch_nothing() -> None:
    """Importing uses no network, file, environment, logging configuration or event loop."""
    done = subprocess.run(
        [sys.executable, "-c", AUDIT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")


async def test_a_worker_whose_log_nobody_reads_serves_and_stops(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, HEALTHY, errors=writing) as worker,
    ):
        os.close(writing)
        await system.ready()
        for _ in range(3):
            assert (await system.call("/echo"))[0] == 200
            assert (await system.call("/error500"))[0] == 500
        async with system.http.get(system.url + "/healthz") as answer:
            assert answer.status == 200
        worker.terminate()
        assert await worker.exit_status() == 0
    os.close(reading)


async def test_a_worker_that_may_open_few_files_refuses_what_is_too_much_and_recovers(tmp_path: Path) -> None:
    async with (
        engine_and_model_server(tmp_path) as system,
        worker_process(system, tmp_path, HEALTHY, module="tests.fakes.few_files") as worker,
        contextlib.AsyncExitStack() as clients,
    ):
        await system.ready()
        working: list[RawClient] = []
        for _ in range(MIN_CONNECTIONS):
            client = await clients.enter_async_context(connected(system.url))
            await client.post("/held", system.envelope())
            await system.model.until(lambda: system.model.working == len(working) + 1)
            working.append(client)
        for _ in range(20):
            async with connected(system.url) as client:
                await client.send(b"GET /healthz HTTP/1.1\r\nHost: w\r\n\r\n")
                head, body = await client.answer()
                assert (head.status, json.loads(body)["state"]) == (503, "no files")
                assert head.headers["retry-after"] == "1"
                await client.rest()
        async with system.http.get(system.loopback_url + "/metrics") as answer:
            assert answer.status == 200
        system.model.release()
        for client in working:
            assert (await client.answer())[0].status == 200
        for _ in range(20):  # an idle connection makes way for a new one
            client = await clients.enter_async_context(connected(system.url))
            await client.post("/echo", system.envelope())
            assert (await client.answer())[0].status == 200
        output = await worker.final_output()
    assert output.count("8 connections are in use") == 1
    assert "Traceback" not in output
    assert system.last_report.error_msg == ""


async def test_a_worker_that_has_run_out_of_files_says_so_and_recovers(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system, connected(system.url) as client:
        assert system.worker is not None
        pid = system.worker.process.pid
        await client.post("/close", system.envelope())  # no connection to the model server is left
        assert (await client.answer())[0].status == 502
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limit[1]))
        for path in ("/echo", "/raising"):
            await client.post(path, system.envelope())
            head, body = await client.answer()
            assert (head.status, json.loads(body)["state"]) == (503, "no files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        await client.post("/echo", system.envelope())
        assert (await client.answer())[0].status == 200
        output = await system.worker.final_output()
    assert "503: the worker has reached its limit on open files" in output
    assert "Traceback" not in output


async def test_requests_import_nothing(tmp_path: Path) -> None:
    """An import needs a free file descriptor, which a busy worker may lack."""
    async with with_worker_process(tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"}) as system:
        assert system.worker is not None
        refused = {"auth_data": {**system.auth(), "signature": "wrong"}, "payload": {}}
        statuses: list[int] = []
        for body, headers in ((refused, {}), ("no envelope", {}), ({"workload": 1.0}, system.header())):
            async with system.http.post(system.url + "/echo", json=body, headers=headers) as answer:
                await answer.read()
                statuses.append(answer.status)
        for path in ("/echo", "/gzip_stream", "/error500", "/raising", "/missing", "/close"):
            statuses.append((await system.call(path))[0])
        assert statuses == [401, 422, 200, 200, 200, 500, 200, 404, 502]
        await system.reported(served=4.0)
        at_start, _, later = system.worker.output().partition("listening on port")
    assert "import time:" in at_start
    assert [line for line in later.splitlines() if line.startswith("import time:")] == []
