from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.client import (
    CA_PATH,
    CLOUD_ENGINE,
    LOCAL_ENGINE,
    EngineError,
    NoWorker,
    RouteAnswer,
    RouteClient,
    Target,
    add_target_arguments,
    describe_workers,
    print_waiting,
    raise_unless_ok,
    run_client,
    target_from_args,
)
from tests.guard import GUARD_S
from tests.lib.tools.fakes import Answer, FakeEngine, FakeWorker, engine_and_worker, ok
from tests.manual_clock import ManualClock


@asynccontextmanager
async def engine_worker_and_http() -> AsyncGenerator[
    tuple[FakeEngine, FakeWorker, aiohttp.ClientSession], None
]:
    async with engine_and_worker() as (engine, worker), aiohttp.ClientSession() as http:
        yield engine, worker, http


def answering(status: int, body: str) -> Answer:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    return answer


async def test_a_ready_worker_is_returned_immediately() -> None:
    async with engine_worker_and_http() as (engine, worker, http):
        answer = await RouteClient(http, engine.target).route(256.0)
        assert (answer.url, answer.request_idx) == (worker.url, 1)

    assert engine.requests == [{"endpoint": "small", "api_key": "key-1", "cost": 256.0, "request_idx": 0}]
    assert answer.auth_data["__request_id"] == "r-1"


async def test_while_no_worker_is_ready_the_engine_is_asked_again_for_the_same_request() -> None:
    clock = ManualClock()
    waits: list[Any] = []
    async with engine_worker_and_http() as (engine, _, http):
        engine.not_ready = 2
        client = RouteClient(http, engine.target, poll_s=3.0, clock=clock)
        routing = asyncio.ensure_future(client.route(1.0, on_wait=waits.append))
        for _ in range(2):
            await clock.wait_for_timers()
            clock.advance(3.0)
        answer = await routing

    assert [request["request_idx"] for request in engine.requests] == [0, 1, 1]
    assert answer.request_idx == 1
    assert waits == [{"loading": 1}] * 2


async def test_a_request_can_be_tried_again_with_its_number() -> None:
    async with engine_worker_and_http() as (engine, _, http):
        await RouteClient(http, engine.target).route(1.0, request_idx=41)

    assert [request["request_idx"] for request in engine.requests] == [41]


async def test_the_wait_is_limited_and_the_error_has_the_workers_states() -> None:
    clock = ManualClock()
    async with engine_worker_and_http() as (engine, _, http):
        engine.not_ready = 99
        client = RouteClient(http, engine.target, poll_s=3.0, clock=clock)
        routing = asyncio.ensure_future(client.route(1.0, limit_s=5.0))
        await clock.wait_for_timers()
        clock.advance(3.0)
        with pytest.raises(NoWorker, match="1 loading") as raised:
            await routing

    assert raised.value.workers == {"loading": 1}
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, '{"error": "bad key"}', "engine: HTTP 401 .*bad key"),
        (500, "", "engine: HTTP 500$"),
        (200, "<html>", "not JSON"),
        (200, "[]", "not an object"),
        (200, '{"request_idx": "7"}', "request_idx"),
        (200, '{"request_idx": 7, "url": "ftp://elsewhere"}', "url"),
        (200, '{"request_idx": 7, "url": null}', "url"),
        (200, '{"request_idx": 7, "url": "http://[::1"}', "url"),
    ],
)
async def test_a_refusal_and_a_malformed_answer_of_the_engine_are_errors(
    status: int, body: str, message: str
) -> None:
    async with engine_worker_and_http() as (engine, _, http):
        engine.answer = answering(status, body)
        with pytest.raises(EngineError, match=message) as raised:
            await RouteClient(http, engine.target).route(1.0)

    assert raised.value.status == status


async def test_after_an_answer_without_a_number_the_request_keeps_its_number() -> None:
    async with engine_worker_and_http() as (engine, _, http):
        engine.answer = answering(200, '{"status": {}}')
        with pytest.raises(NoWorker):
            await RouteClient(http, engine.target).route(1.0, request_idx=5, limit_s=0)

    assert engine.requests[0]["request_idx"] == 5


async def test_the_worker_receives_the_engines_answer_unchanged() -> None:
    auth_data = {"cost": 256, "reqnum": 7, "signature": "s", "url": "u", "endpoint": "e", "new": [1.0, "256"]}
    async with engine_worker_and_http() as (engine, worker, http):
        client = RouteClient(http, engine.target)
        answer = RouteAnswer(worker.url + "/", 7, auth_data)
        async with client.call(answer, "/generate", {"prompt": "Hi"}) as response:
            assert (response.status, await response.json()) == (200, {"response": "fine"})
        async with client.call(answer, "/generate", {}, session_id="s-1"):
            pass

    assert worker.paths == ["/generate"] * 2
    # Numbers are compared as text: the signature is over them.
    assert worker.bodies[0] == json.dumps({"auth_data": auth_data, "payload": {"prompt": "Hi"}}).encode()
    assert json.loads(worker.bodies[1]) == {"auth_data": auth_data, "payload": {}, "session_id": "s-1"}


async def test_an_answer_can_be_read_while_it_is_generated() -> None:
    first_read = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        await first_read.wait()
        await response.write(b"two\n")
        return response

    async with engine_worker_and_http() as (engine, worker, http):
        worker.answer = stream
        client = RouteClient(http, engine.target)
        with anyio.fail_after(GUARD_S):
            async with client.call(await client.route(1.0), "/generate_stream", {}) as response:
                assert await response.content.readline() == b"one\n"
                first_read.set()
                assert await response.content.readline() == b"two\n"


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with engine_worker_and_http() as (engine, worker, http):
        worker.answer = elsewhere
        client = RouteClient(http, engine.target)
        async with client.call(await client.route(1.0), "/generate", {}) as response:
            assert response.status == 307

    assert worker.paths == ["/generate"]


def make_certificates(folder: Path) -> None:
    """Make an authority that no system trusts, `ca.pem`, and a certificate for 127.0.0.1 that it signed."""
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for command in (
        f"{new_key} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        f"{new_key} -subj /CN=instance -keyout worker.key -out worker.csr",
        "x509 -req -days 2 -in worker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san"
        " -out worker.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


@asynccontextmanager
async def tls_worker(folder: Path) -> AsyncGenerator[str, None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "worker.pem", folder / "worker.key")
    app = web.Application()
    app.router.add_post("/generate", ok)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    async with server:
        yield str(server.make_url("/"))


async def test_a_worker_with_tls_is_checked_against_the_engines_authority(tmp_path: Path) -> None:
    await asyncio.to_thread(make_certificates, tmp_path)
    certificate = (tmp_path / "ca.pem").read_text()
    fetched: list[str] = []

    async def ca(request: web.Request) -> web.Response:
        fetched.append(request.path)
        return web.Response(text=certificate)

    app = web.Application()
    app.router.add_get(CA_PATH, ca)
    async with TestServer(app) as engine, tls_worker(tmp_path) as url, aiohttp.ClientSession() as http:
        client = RouteClient(http, Target(str(engine.make_url("/")), "e", "k"))
        for _ in range(2):
            async with client.call(RouteAnswer(url, 1, {}), "/generate", {}) as response:
                assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.post(f"{url}generate")

    assert fetched == [CA_PATH]


def parsed_target(*args: str) -> Target:
    parser = argparse.ArgumentParser()
    add_target_arguments(parser)
    return target_from_args(parser, parser.parse_args(args))


def test_the_arguments_give_the_target() -> None:
    assert parsed_target("-k", "KEY", "-e", "mine") == Target(CLOUD_ENGINE, "mine", "KEY")
    assert parsed_target("-l") == Target(LOCAL_ENGINE, "local", "local")
    assert parsed_target("-l", "-e", "mine") == replace(parsed_target("-l"), endpoint="mine")
    assert parsed_target("--engine", "http://[::1]:9") == Target("http://[::1]:9", "local", "local")


@pytest.mark.parametrize("args", [(), ("-k", "KEY"), ("-e", "mine")])
def test_the_cloud_needs_a_key_and_a_name(args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parsed_target(*args)

    assert raised.value.code == 2
    assert "-k KEY and -e NAME" in capsys.readouterr().err


# How example clients report failures


async def nothing() -> None:
    pass


async def no_worker() -> None:
    raise NoWorker({"loading": 1})


async def timed_out() -> None:
    raise asyncio.TimeoutError


async def refused() -> None:
    async with engine_worker_and_http() as (_, worker, http):
        worker.answer = answering(429, "Model is overloaded")
        async with http.post(worker.url + "/generate") as response:
            await raise_unless_ok(response)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (no_worker, "no worker is ready: 1 loading"),
        (refused, "HTTP 429 .*overloaded"),
        (timed_out, "TimeoutError"),
    ],
)
def test_a_failure_ends_the_client_with_one_line(
    client: Callable[[], Coroutine[Any, Any, None]], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_client(client)
    run_client(nothing)


def test_waiting_is_printed_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_waiting({"loading": 2, "stopped": 1, "ready": 0})
    assert capsys.readouterr() == ("", "no worker is ready yet: 2 loading, 1 stopped\n")


@pytest.mark.parametrize("states", [{"loading": 0, "ready": 0}, {}])
def test_for_an_endpoint_without_workers_its_name_is_questioned(
    capsys: pytest.CaptureFixture[str], states: dict[str, int]
) -> None:
    print_waiting(states)
    assert "none has joined this endpoint" in capsys.readouterr().err
    assert str(NoWorker(states)) == "no worker is ready: none has joined this endpoint (is its name right?)"


@pytest.mark.parametrize(
    ("states", "described"),
    [(None, "the engine has not reported their states"), ("unknown endpoint", "unknown endpoint")],
)
def test_a_report_without_states_is_shown_as_it_is(states: str | None, described: str) -> None:
    assert describe_workers(states) == described
