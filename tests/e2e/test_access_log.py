"""The line of the access log has the status that the client got, with both carriers."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.backend import Backend
from lib.runtime.logs import JsonFormatter, TextFormatter
from lib.runtime.settings import CarrierKind
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.event_loop import until
from tests.fakes import varied_routes
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import System, with_worker_task

KEEPALIVE_S = 0.1


@asynccontextmanager
async def system_of(
    tmp_path: Path, carrier: CarrierKind, **handler: Any
) -> AsyncGenerator[tuple[System, RawClient], None]:
    """A worker with the `carrier`, and a client that is connected to it."""
    setup = Setup(health="/health", handler=handler)
    async with with_worker_task(tmp_path, setup, carrier=carrier) as system, connected(system.url) as client:
        yield system, client


class Lines:
    """The access log: the words of each line after the request's id."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "lib.access")
        self._caplog = caplog

    def all(self) -> list[list[str]]:
        lines = [r.getMessage() for r in self._caplog.records if r.name == "lib.access"]
        return [line.split()[1:] for line in lines]

    def all_ids(self) -> list[str]:
        """The request's id in each line."""
        return [r.getMessage().split()[0] for r in self._caplog.records if r.name == "lib.access"]

    async def only(self) -> list[str]:
        """The one line, once it is there."""
        await until(lambda: bool(self.all()))
        (line,) = self.all()
        return line[:4]


both_carriers = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])


def signed(path: str, **data: Any) -> Callable[[System], bytes]:
    return lambda system: request_bytes(path, json.dumps(system.envelope(data=data)).encode())


REQUESTS: list[tuple[str, Callable[[System], bytes], list[str]]] = [
    ("served", signed("/echo"), ["POST", "/echo", "200", "served"]),
    ("of the author", signed("/raising", status=418), ["POST", "/raising", "418", "served"]),
    ("a bug", signed("/raising", **{"raise": "response"}), ["POST", "/raising", "500", "errored"]),
    ("of the model", signed("/error500"), ["POST", "/error500", "500", "errored"]),
    ("unreachable", signed("/close"), ["POST", "/close", "502", "errored"]),
    ("unsigned", lambda _: request_bytes("/echo", b"{}"), ["POST", "/echo", "422", "refused"]),
    (
        "a bad chunk",
        lambda _: request_bytes("/echo", b"x\r\n", {"Transfer-Encoding": "chunked"}),
        ["POST", "/echo", "400", "refused"],
    ),
    ("no HTTP", lambda _: b"no HTTP\r\n\r\n", ["-", "-", "400", "refused:"]),
    ("a long head", lambda _: b"POST /" + b"x" * 40_000, ["-", "-", "431", "refused:"]),
    (
        "a coding",
        lambda _: request_bytes("/echo", b"", {"Transfer-Encoding": "gzip, chunked"}),
        ["-", "-", "501", "refused:"],
    ),
]


@both_carriers
@pytest.mark.parametrize(("request_", "expected"), [r[1:] for r in REQUESTS], ids=[r[0] for r in REQUESTS])
async def test_it_is_that_of_the_answer(
    tmp_path: Path,
    carrier: CarrierKind,
    request_: Callable[[System], bytes],
    expected: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier) as (system, client):
        await client.send(request_(system))
        assert str((await client.head()).status) == expected[2]
        assert await lines.only() == expected


@dataclass
class Picture:
    prompt: str
    width: int = 64


REFUSED: list[tuple[str, Callable[[System], bytes], str]] = [
    (
        "a wrong field",
        signed("/picture", prompt="s3cret", width="s3cret"),
        "payload.data.width must be an integer",
    ),
    ("a missing field", signed("/picture"), "payload.data.prompt missing parameter"),
    ("no authentication", lambda _: request_bytes("/picture", b"{}"), "auth_data "),
    ("no JSON", lambda _: request_bytes("/picture", b"{s3cret"), "body not JSON"),
    (
        "a coding",
        lambda _: request_bytes("/picture", b"{}", {"Content-Encoding": "br"}),
        "request bodies in 'br' are not supported",
    ),
    (
        "a large body",
        lambda _: request_bytes("/picture", b"s3cret" * 20_000),
        "the body is larger than 100000",
    ),
]


@both_carriers
@pytest.mark.parametrize(("request_", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
async def test_the_line_of_a_refused_request_has_the_reason(
    tmp_path: Path,
    carrier: CarrierKind,
    request_: Callable[[System], bytes],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines(caplog)
    settings: dict[str, Any] = {"carrier": carrier, "max_json_bytes": 100_000}
    async with (
        with_worker_task(tmp_path, make=_make_drawing, **settings) as system,
        connected(system.url) as client,
    ):
        await client.send(request_(system))
        assert 400 <= (await client.head()).status < 500
        await lines.only()
    (record,) = [r for r in caplog.records if r.name == "lib.access"]
    assert f" refused: {reason}" in record.getMessage()
    line = json.loads(JsonFormatter().format(record))
    assert line["reason"].startswith(reason)
    assert (line["message"], line["route"]) == ("request ended", "POST /picture")
    assert "s3cret" not in caplog.text


def _draw(data: Picture, workload: float) -> str:
    return data.prompt


def _make_drawing(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
    worker = Worker(WorkerConfig(handlers=[HandlerConfig("/picture", remote_function=_draw)]))
    return worker.backend, worker.routes


CHUNKED = {"Transfer-Encoding": "chunked"}


@both_carriers
@pytest.mark.parametrize(
    ("sent", "rest", "status"),
    [
        (request_bytes("/echo", b"{", {"Content-Length": "9999"}), b"x" * 9998, "413"),
        (request_bytes("/echo", b"{", {"Content-Length": "9999"}), b"x", "413"),
        (request_bytes("/echo", b"7d0\r\n%s\r\n" % (b" " * 2000), CHUNKED), b"no chunk", "413"),
        (request_bytes("/echo", b"{", {"Content-Length": "99"}), b"x" * 98, "408"),
        (request_bytes("/echo", b"{", {"Content-Length": "99"}), b"x", "408"),
        (request_bytes("/echo", b"1\r\n{\r\n", CHUNKED), b"no chunk", "408"),
    ],
)
async def test_a_refused_body_has_one_line_whatever_follows(
    tmp_path: Path,
    carrier: CarrierKind,
    sent: bytes,
    rest: bytes,
    status: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines(caplog)
    settings: dict[str, Any] = {"max_json_bytes": 1000, "request_body_timeout_s": 0.1, "carrier": carrier}
    async with with_worker_task(tmp_path, **settings) as system:
        async with connected(system.url) as client:
            await client.send(sent)
            assert str((await client.answer())[0].status) == status
            await client.send(rest)
        async with connected(system.url) as client:
            await client.post("/echo", system.envelope())
            await client.answer()
            await until(lambda: len(lines.all()) > 1)
    served = ["POST", "/echo", "200", "served"]
    assert [line[:4] for line in lines.all()] == [["POST", "/echo", status, "refused"], served]


@both_carriers
@pytest.mark.parametrize("path", ["/cut_stream", "/cut_large"])
async def test_an_answer_that_breaks_off_has_the_status_of_its_head(
    tmp_path: Path, carrier: CarrierKind, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier) as (system, client):
        await client.post(path, system.envelope())
        assert (await client.head()).status == 200
        await client.rest()
        assert await lines.only() == ["POST", path, "200", "errored"]


@both_carriers
async def test_an_error_after_the_heartbeat_has_the_status_200(
    tmp_path: Path, carrier: CarrierKind, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier, keepalive_s=KEEPALIVE_S) as (system, client):
        await client.post("/held", system.envelope())
        assert (await client.head()).status == 200
        await client.chunk()
        await system.model.stop()
        assert await lines.only() == ["POST", "/held", "200", "errored"]


async def _leave_at_once(system: System, client: RawClient) -> None:
    client.leave()


async def _leave_after_the_answer(system: System, client: RawClient) -> None:
    await client.answer()
    client.leave()


@both_carriers
@pytest.mark.parametrize(
    ("path", "leave", "status", "outcome"),
    [("/held", _leave_at_once, "499", "cancelled"), ("/echo", _leave_after_the_answer, "200", "served")],
)
async def test_a_client_that_leaves(
    tmp_path: Path,
    carrier: CarrierKind,
    path: str,
    leave: Callable[[System, RawClient], Awaitable[None]],
    status: str,
    outcome: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier) as (system, client):
        await client.post(path, system.envelope())
        await system.model.until(lambda: len(system.model.requests) == 1)
        await leave(system, client)
        assert await lines.only() == ["POST", path, status, outcome]


@both_carriers
async def test_a_path_cannot_forge_a_line(
    tmp_path: Path, carrier: CarrierKind, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    forged = b"GET /items/x%0a2026-01-31%20INFO%20FORGED/echo HTTP/1.1\r\nHost: w\r\n\r\n"
    make, setup = varied_routes.build, Setup(health="/health")
    async with (
        with_worker_task(tmp_path, setup, make=make, carrier=carrier) as system,
        connected(system.url) as client,
    ):
        await client.send(forged)
        assert (await client.head()).status in (401, 422)
        await until(lines.all)
    (record,) = [r for r in caplog.records if r.name == "lib.access"]
    assert "\n2026-01-31 INFO FORGED" in record.getMessage()
    assert r"/items/x\n2026-01-31 INFO FORGED/echo" in TextFormatter("%(message)s").format(record)


# The fields of JSON lines

JSON_REQUESTS: list[tuple[str, Callable[[System], bytes], list[dict[str, Any]]]] = [
    (
        "served",
        signed("/echo", n=1),
        [
            {
                "level": "INFO",
                "message": "request ended",
                "method": "POST",
                "path": "/echo",
                "route": "POST /echo",
                "status": 200,
                "outcome": "served",
                "workload": 1.0,
            }
        ],
    ),
    (
        "a bug",
        signed("/raising", **{"raise": "response"}),
        [
            {"level": "ERROR", "message": "unexpected error", "route": "POST /raising", "status": 500},
            {"level": "INFO", "message": "request ended", "outcome": "errored"},
        ],
    ),
    (
        "unreachable",
        signed("/close"),
        [
            {"level": "WARNING", "status": 502, "outcome": "errored", "path": "/close"},
            {"level": "INFO", "message": "request ended", "status": 502},
        ],
    ),
    (
        "unsigned",
        lambda _: request_bytes("/echo", b"{}"),
        [{"message": "request ended", "outcome": "refused", "workload": 0.0}],
    ),
]


@both_carriers
@pytest.mark.parametrize(
    ("request_", "expected"), [r[1:] for r in JSON_REQUESTS], ids=[r[0] for r in JSON_REQUESTS]
)
async def test_a_json_line_has_the_facts_of_its_request_as_fields(
    tmp_path: Path,
    carrier: CarrierKind,
    request_: Callable[[System], bytes],
    expected: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier) as (system, client):
        await client.send(request_(system))
        await client.head()
        await lines.only()
    records = [r for r in caplog.records if r.name in ("lib.access", "lib.request.exchange")]
    actual: list[dict[str, Any]] = [json.loads(JsonFormatter().format(record)) for record in records]
    assert [{**line, **facts} for line, facts in zip(actual, expected, strict=True)] == actual
    (request_id,) = {line["request_id"] for line in actual}
    assert lines.all_ids() == [request_id]
    for line in actual:
        assert request_id not in line["message"]
        assert 0 <= line["queue_s"] <= line["total_s"]


@both_carriers
async def test_a_json_line_of_what_is_no_request(
    tmp_path: Path, carrier: CarrierKind, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(caplog)
    async with system_of(tmp_path, carrier) as (_, client):
        await client.send(b"no HTTP\r\n\r\n")
        await client.head()
        await lines.only()
    (record,) = [r for r in caplog.records if r.name == "lib.access"]
    line = json.loads(JsonFormatter().format(record))
    del line["time"]
    assert line == {
        "level": "INFO",
        "logger": "lib.access",
        "message": "the request is not valid HTTP/1.1",
        "status": 400,
        "outcome": "refused",
    }
