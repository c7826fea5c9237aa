"""Which worker describes an endpoint's routes to the engine, and what is said where none does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request

from lib.local import descriptions
from lib.local.descriptions import Descriptions, NotDescribed, described_by
from lib.local.engine import LocalEngine
from lib.local.request_reading import loopback_url_in
from lib.local.serving import serve_engine
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import PortLease, engine_key

WORKER_URL = READY.url
OPERATION: dict[str, Any] = {"summary": "Tell.", "parameters": [], "requestBody": {"content": {}}}


def document(url: str = WORKER_URL, **paths: Any) -> dict[str, Any]:
    """An OpenAPI document of a worker at `url`, with a POST route for each name in `paths`."""
    return {
        "servers": [{"url": url}],
        "paths": {f"/{name}": {"post": operation} for name, operation in paths.items()},
        "components": {"schemas": {}},
    }


@dataclass
class Asked:
    """A loopback port, which answers `body` once `gate` is set, and how often it was asked."""

    url: str
    body: Any
    status: int = 200
    count: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, _: web.Request) -> web.Response:
        self.count += 1
        self.came.set()
        await self.gate.wait()
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return web.Response(body=body, status=self.status, headers={"Location": "/openapi.json"})


@asynccontextmanager
async def loopback_port(body: Any, status: int = 200) -> AsyncGenerator[Asked, None]:
    asked, app = Asked("", body, status), web.Application()
    asked.gate.set()
    app.router.add_get("/openapi.json", asked.answer)
    server = TestServer(app)
    await server.start_server()
    try:
        asked.url = str(server.make_url("")).rstrip("/")
        yield asked
    finally:
        asked.gate.set()
        await server.close()


@dataclass
class Asking:
    """An engine and its descriptions."""

    engine: LocalEngine
    descriptions: Descriptions

    def report(self, loopback_url: str, **fields: Any) -> None:
        self.engine.take_report("local", replace(READY, **fields), loopback_url)

    async def refusal(self, endpoint: str = "local") -> str:
        with pytest.raises(NotDescribed) as raised:
            await self.descriptions.ask(endpoint)
        assert raised.value.status == 503
        return raised.value.message


@asynccontextmanager
async def asking(**limits: Any) -> AsyncGenerator[Asking, None]:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    async with aiohttp.ClientSession() as http:
        yield Asking(engine, Descriptions(engine, http, **limits))


async def test_a_ready_worker_is_asked_before_others() -> None:
    mine, others = document("http://127.0.0.1:5", a=OPERATION), document(b=OPERATION)
    async with asking() as here, loopback_port(mine) as first, loopback_port(others) as second:
        here.report(first.url, id=1, url="http://127.0.0.1:5", loadtime=0.0)
        here.report(second.url, id=2)
        description = await here.descriptions.ask("local")
        assert (description.worker_id, description.worker_url) == (2, WORKER_URL)
        assert [(route.method, route.path) for route in description.routes] == [("POST", "/b")]
        assert (first.count, second.count) == (0, 1)


async def test_another_worker_is_asked_if_the_first_gives_none() -> None:
    async with asking() as here, loopback_port(document(a=OPERATION)) as port:
        here.report("", id=1)
        here.report(port.url, id=2)
        assert (await here.descriptions.ask("local")).worker_id == 2


async def test_the_latest_description_is_kept_until_none_can_be_had() -> None:
    async with asking() as here, loopback_port(document(a=OPERATION)) as port:
        here.report(port.url)
        for _ in range(2):
            assert (await here.descriptions.latest("local")).worker_id == 7
        assert port.count == 1
        port.body = b"{}"
        await here.refusal()
        port.body = document(b=OPERATION)
        assert [route.path for route in (await here.descriptions.latest("local")).routes] == ["/b"]


async def test_who_asks_at_the_same_time_gets_the_same_answer() -> None:
    async with asking() as here, loopback_port(document(a=OPERATION)) as port:
        here.report(port.url)
        port.gate.clear()
        asks = [asyncio.create_task(here.descriptions.ask("local")) for _ in range(5)]
        await port.came.wait()
        port.gate.set()
        first, *others = await asyncio.gather(*asks)
        assert all(each is first for each in others)
        assert port.count == 1
        port.body = b"{}"
        assert len(set(await asyncio.gather(*(here.refusal() for _ in range(5))))) == 1
        assert port.count == 2


async def test_who_waits_for_an_answer_is_not_held_up_if_the_first_leaves() -> None:
    async with asking() as here, loopback_port(document(a=OPERATION)) as port:
        here.report(port.url)
        port.gate.clear()
        first, second = (asyncio.create_task(here.descriptions.ask("local")) for _ in range(2))
        await port.came.wait()
        first.cancel()
        port.gate.set()
        assert (await second).worker_id == 7


async def test_a_slow_worker_does_not_hold_up_the_next() -> None:
    async with (
        asking(patience_s=0.01) as here,
        loopback_port(document(a=OPERATION)) as slow,
        loopback_port(document(b=OPERATION)) as other,
    ):
        slow.gate.clear()
        here.report(slow.url, id=1)
        here.report(other.url, id=2)
        with anyio.fail_after(descriptions.ANSWER_TIMEOUT_S / 2):
            assert (await here.descriptions.ask("local")).worker_id == 2


async def test_all_workers_have_one_limit() -> None:
    async with (
        asking(patience_s=0.0, timeout_s=0.01) as here,
        loopback_port(document(a=OPERATION)) as port,
    ):
        port.gate.clear()
        for worker_id in (1, 2, 3):
            here.report(port.url, id=worker_id)
        told = " ".join(f"Worker {worker_id} did not answer within 0.01 s." for worker_id in (1, 2, 3))
        assert await here.refusal() == told


async def test_an_engine_that_is_named_as_its_own_worker() -> None:
    engine = LocalEngine(clock=ManualClock(), key=engine_key())
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        engine.take_report("local", READY, url)
        with anyio.fail_after(descriptions.ANSWER_TIMEOUT_S / 2):
            async with http.get(f"{url}/docs") as answer:
                assert f"Worker 7 answers at {url}/openapi.json with no description" in await answer.text()
        async with http.get(f"{url}/openapi.json", headers={descriptions.ASKED_BY_ENGINE: "1"}) as answer:
            assert answer.status == 404
            assert "this is an engine" in await answer.text()


async def test_an_endpoint_that_nobody_joined() -> None:
    async with asking() as here:
        assert await here.refusal() == "No worker has joined the endpoint 'local' yet."
        assert await here.refusal("nope") == "No worker has joined the endpoint 'nope' yet."


async def test_a_worker_elsewhere() -> None:
    async with asking() as here:
        here.report("")
        text = await here.refusal()
        assert "Worker 7 can't be asked" in text
        assert "http://127.0.0.1:3001/docs" in text


async def test_a_worker_that_is_gone() -> None:
    lease = PortLease()
    lease.close()
    async with asking() as here:
        here.report(f"http://127.0.0.1:{lease.port}")
        assert "does not answer" in await here.refusal()
        here.engine.see(here.engine.worker(7), unreachable="connection refused")
        assert await here.refusal() == "Worker 7 is stopped: can't be reached: connection refused."


async def test_of_many_workers_some_are_named() -> None:
    async with asking() as here:
        for worker_id in range(1, 20):
            here.report("", id=worker_id)
        assert (await here.refusal()).count("can't be asked") == descriptions.MAX_TOLD


@pytest.mark.parametrize("status", [200, 302, 404, 500])
async def test_a_port_of_another_program(status: int) -> None:
    async with asking() as here, loopback_port(b"<h1>Hello</h1>", status) as port:
        here.report(port.url)
        assert f"Worker 7 answers at {port.url}/openapi.json with no description" in await here.refusal()
        assert port.count == 1  # a redirect is not followed


async def test_an_answer_that_is_too_large_is_none() -> None:
    whole = document(WORKER_URL, **{str(number): OPERATION for number in range(100)})
    async with asking(max_bytes=1000) as here, loopback_port(whole) as port:
        here.report(port.url)
        assert "no description" in await here.refusal()
    async with asking() as here, loopback_port({**whole, "x": "x" * 2**20}) as port:
        here.report(port.url)
        assert "no description" in await here.refusal()


DEEP = json.loads('{"anyOf": [' * 400 + "{}" + "]}" * 400)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        document("http://127.0.0.1:9"),
        {**document(), "paths": []},
        {**document(), "components": {}, "paths": {"/a": {"post": OPERATION}}},
        document(a={}),
        document(a={**OPERATION, "parameters": [{"name": "a"}]}),
        document(a={**OPERATION, "requestBody": 3}),
        document(
            a={
                **OPERATION,
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/x"}}}},
            }
        ),
        document(a={**OPERATION, "requestBody": {"content": {"application/json": {"schema": {"enum": 1}}}}}),
    ],
)
def test_what_is_no_description(body: Any) -> None:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = described_by(7, WORKER_URL, encoded)
    assert found is None or not found.routes[0].fields  # of a schema, only what is shown has to be right


def test_a_deep_type_is_no_error() -> None:
    operation = {
        **OPERATION,
        "parameters": [{"name": "a", "in": "query", "required": False, "schema": DEEP}],
    }
    described_by(7, WORKER_URL, json.dumps(document(a=operation)).encode())


def nested(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


SHARED = {f"f{number}": {"type": "string"} for number in range(1000)}
SHARING = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Many"}}}}


@pytest.mark.parametrize(
    ("changes", "is_one"),
    [
        ({}, True),
        ({"components": None}, False),
        ({"components": []}, False),
        ({"components": {"schemas": []}}, True),
        ({"x": nested(descriptions.MAX_DEPTH - 2)}, True),
        ({"x": nested(descriptions.MAX_DEPTH)}, False),
        ({"x": float("nan")}, False),
        ({"x": 10**500}, False),
        (
            {
                "paths": {
                    f"/{number}": {"post": {**OPERATION, "requestBody": SHARING}} for number in range(100)
                },
                "components": {"schemas": {"Many": {"properties": SHARED}}},
            },
            False,
        ),
        *(
            ({"paths": {path: {"post": OPERATION}}}, is_one)
            for path, is_one in (
                ("/", True),
                ("/voices/{id}/%C3%A9;a=b@c:d", True),
                # These could lead to another host, or to another path than the one that is shown.
                ("", False),
                ("a", False),
                ("..", False),
                ("@127.0.0.1:1/x", False),
                (":99999999/x", False),
                ("\\@x", False),
                ("[", False),
                ("/a?x=", False),
                ("/a#x", False),
                ("/a\\b", False),
                ("/a b", False),
                ("/a\r\nX: y", False),
                ("/a\n", False),
                ("/\xe9", False),
                ("/\ud800", False),
                ("/\x7f", False),
            )
        ),
    ],
)
def test_what_can_be_shown_and_tried(changes: Mapping[str, Any], is_one: bool) -> None:
    body = {name: value for name, value in {**document(a=OPERATION), **changes}.items() if value is not None}
    assert (described_by(7, WORKER_URL, json.dumps(body).encode()) is not None) == is_one


URL = "http://127.0.0.1:3001"


@pytest.mark.parametrize(
    ("named", "remote", "url"),
    [
        (URL, "127.0.0.1", URL),
        ("http://[::1]:3001", "::1", "http://[::1]:3001"),
        ("http://localhost:3001", "127.0.0.1", "http://localhost:3001"),
        (URL, "192.0.2.7", ""),  # another machine is not believed
        ("http://192.0.2.7:3001", "127.0.0.1", ""),
        ("http://engine.example:3001", "127.0.0.1", ""),
        ("file:///etc/passwd", "127.0.0.1", ""),
        # It is a port's URL and no more: what the engine appends must stay the whole path.
        (f"{URL}/", "127.0.0.1", ""),
        (f"{URL}/shutdown", "127.0.0.1", ""),
        (f"{URL}/?x=", "127.0.0.1", ""),
        (f"{URL}?", "127.0.0.1", ""),
        (f"{URL}#", "127.0.0.1", ""),
        (f"{URL}/shutdown#", "127.0.0.1", ""),
        (f"{URL}\\@192.0.2.7", "127.0.0.1", ""),
        ("http://user@127.0.0.1:3001", "127.0.0.1", ""),
        ("http://192.0.2.7@127.0.0.1:3001", "127.0.0.1", ""),
        ("https://127.0.0.1:3001", "127.0.0.1", ""),
        ("http://127.0.0.1", "127.0.0.1", ""),
        ("http://127.0.0.1:0", "127.0.0.1", ""),
        ("http://127.0.0.1:65536", "127.0.0.1", ""),
        ("http://127.0.0.1:\N{ARABIC-INDIC DIGIT THREE}001", "127.0.0.1", ""),
        ("nonsense", "127.0.0.1", ""),
        ("http://[", "127.0.0.1", ""),
        ("", "127.0.0.1", ""),
    ],
)
def test_the_loopback_port_of_a_report(named: str, remote: str, url: str) -> None:
    request = make_mocked_request("POST", "/worker_status/", headers={"X-PyWorker-Loopback": named})
    assert loopback_url_in(request.clone(remote=remote)) == url


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
def test_the_loopback_port_of_a_report_through_a_proxy_is_not_believed(header: str) -> None:
    headers = {"X-PyWorker-Loopback": URL, header: "192.0.2.7"}
    request = make_mocked_request("POST", "/worker_status/", headers=headers)
    assert loopback_url_in(request.clone(remote="127.0.0.1")) == ""
