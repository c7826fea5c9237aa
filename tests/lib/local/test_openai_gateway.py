"""The local engine's door for OpenAI clients, over real sockets: what reaches a worker, what comes back."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lib.local.authority import Authority
from lib.local.engine import LocalEngine
from lib.local.messages import RouteQuery
from lib.local.openai_gateway import DEFAULT_COST, MAX_ERROR_BYTES, MAX_JSON_BYTES, MAX_TOKENS, cost_of
from lib.local.serving import serve_engine
from lib.runtime.clock import Clock, SystemClock
from tests.fakes.model_server import MaliciousModel, malicious_model
from tests.fakes.raw_client import connected, request_bytes
from tests.lib.local.test_authority import request_pem
from tests.lib.local.test_fleet import READY
from tests.manual_clock import ManualClock
from tests.system import GUARD_S, PortLease, engine_key

CHAT = "/openai/local/v1/chat/completions"
KEY = {"Authorization": "Bearer sk-1"}

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def auth(self) -> dict[str, Any]:
        """What the header authentication holds."""
        return json.loads(base64.urlsafe_b64decode(self.headers["X-Vast-Auth"]))


@dataclass
class FakeWorker:
    """Notes each request and answers it as `answer` does, which may read the body itself."""

    url: str = ""
    received: list[Received] = field(default_factory=list[Received])
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.answer is not None:
            return await self.answer(request)
        seen = Received(request.method, request.raw_path, request.headers.copy(), await request.read())
        self.received.append(seen)
        return web.json_response({"number": len(self.received)})

    def answers(self, status: int, body: str | bytes, kind: str = "application/json", **more: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        headers = {name.replace("_", "-"): value for name, value in more.items()}

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, body=data, headers={"Content-Type": kind, **headers})

        self.answer = answer


@asynccontextmanager
async def fake_worker(tls: ssl.SSLContext | None = None) -> AsyncGenerator[FakeWorker, None]:
    worker, app = FakeWorker(), web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", worker.handle)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls)
    try:
        worker.url = str(server.make_url("")).rstrip("/")
        yield worker
    finally:
        await server.close()


@dataclass
class Door:
    """A door, its engine, and a client that knows the key."""

    engine: LocalEngine
    url: str
    http: aiohttp.ClientSession

    def joined(self, worker_id: int, url: str, **told: Any) -> None:
        self.engine.take_report("local", replace(READY, id=worker_id, url=url, **told))

    async def chat(self, payload: Any = None, path: str = CHAT, **options: Any) -> tuple[int, Any]:
        """Status and JSON of the answer to a chat request, or to `data`."""
        if "data" not in options:
            options["json"] = payload if payload is not None else {"messages": []}
        async with self.http.post(self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def refused(self, status: int, path: str = CHAT, **options: Any) -> dict[str, Any]:
        """The error in OpenAI's shape; no request is left open by it."""
        got, answer = await self.chat(path=path, **options)
        assert got == status, answer
        assert list(answer) == ["error"]
        error = answer["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["param"] is None
        assert self.all_closed
        return error

    @property
    def all_closed(self) -> bool:
        return len(self.engine.open_requests) == 0 and not any(
            worker.pending for worker in self.engine.workers.values()
        )

    async def closed(self) -> None:
        """Return once no request is open any more."""
        await self.engine.wait_for(lambda: self.all_closed, GUARD_S)


@asynccontextmanager
async def a_door(api_key: str | None = None, clock: Clock | None = None) -> AsyncGenerator[Door, None]:
    engine = LocalEngine(api_key=api_key, key=engine_key(), clock=clock or ManualClock())
    timeout = aiohttp.ClientTimeout(total=GUARD_S)
    async with (
        serve_engine(engine) as url,
        aiohttp.ClientSession(headers=KEY, timeout=timeout) as http,
    ):
        yield Door(engine, url, http)


@pytest.fixture
async def door() -> AsyncGenerator[Door, None]:
    async with a_door() as door:
        yield door


@pytest.fixture
async def worker(door: Door) -> AsyncGenerator[FakeWorker, None]:
    """A worker that has joined the door's engine."""
    async with fake_worker() as worker:
        door.joined(7, worker.url)
        yield worker


@pytest.fixture
async def model(door: Door) -> AsyncGenerator[MaliciousModel, None]:
    """A worker with malice, which has joined the door's engine; the path's last part says what it does."""
    async with malicious_model() as model:
        door.joined(7, model.url)
        yield model


@pytest.fixture
def nobody() -> Generator[str, None, None]:
    """A URL where nobody listens, and nobody will: the port is taken."""
    lease = PortLease()
    yield f"http://127.0.0.1:{lease.port}"
    lease.close()


# What a worker gets


async def test_a_worker_gets_the_request_as_it_came_and_a_signature(door: Door, worker: FakeWorker) -> None:
    body = b'{ "max_tokens":7,"messages":[] , "n":2}'
    headers = {
        "Content-Type": "application/json",
        "Cookie": "a=b",
        "X-Vast-Auth": "forged",
        "X-Request-Id": "r-1",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
    }
    status, answer = await door.chat(data=body, headers=headers)
    assert (status, answer) == (200, {"number": 1})
    (got,) = worker.received
    assert (got.method, got.path, got.body) == ("POST", "/v1/chat/completions", body)
    assert got.headers["X-Request-Id"] == "r-1"
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["Content-Length"] == str(len(body))
    assert got.headers["Host"] == worker.url.removeprefix("http://")
    assert not {"Authorization", "Cookie", "X-Hop"} & set(got.headers)
    assert sorted(got.auth) == sorted(
        ["__request_id", "cost", "endpoint", "reqnum", "request_idx", "signature", "url"]
    )
    assert (got.auth["cost"], got.auth["endpoint"], got.auth["url"]) == (14.0, "local", worker.url)
    assert door.all_closed


async def test_headers_that_come_twice_and_nothing_that_the_client_did_not_send(
    door: Door, worker: FakeWorker
) -> None:
    async with connected(door.url) as client:
        headers = "Host: door\r\nAuthorization: Bearer sk-1\r\nX-Two: 1\r\nX-Two: 2"
        await client.send(f"GET /openai/local/v1/models HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert (await client.answer())[0].status == 200
    (got,) = worker.received
    names = ["Connection", "Host", "X-Two", "X-Two", "X-Vast-Auth"]
    assert sorted(name for name, _ in got.headers.items()) == names
    assert got.auth["cost"] == 1.0


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_every_method_passes(door: Door, worker: FakeWorker, method: str) -> None:
    async with door.http.request(method, f"{door.url}/openai/local/v1/files/f-1") as answer:
        assert answer.status == 200
    assert [(got.method, got.path, got.body) for got in worker.received] == [(method, "/v1/files/f-1", b"")]


@pytest.mark.parametrize(
    ("came", "passed"),
    [
        ("a?api_key=secret", "a"),
        ("a?x=1&api_key=secret&y=%20+2", "a?x=1&y=%20+2"),
        ("a?api%5Fkey=secret&x", "a?x"),
        ("a%2Fb/c%20d//e/", "a%2Fb/c%20d//e/"),
        ("../b/./c", "../b/./c"),
    ],
)
async def test_path_and_query_pass_as_they_came_less_the_key(
    door: Door, worker: FakeWorker, came: str, passed: str
) -> None:
    async with connected(door.url) as client:
        await client.post(f"/openai/local/v1/{came}", b"{}", KEY)
        assert (await client.answer())[0].status == 200
    assert [got.path for got in worker.received] == [f"/v1/{passed}"]


async def test_other_endpoints_by_name(door: Door, worker: FakeWorker) -> None:
    door.engine.take_report("a b/ü", replace(READY, id=7, url=worker.url + "/"))
    assert (await door.chat(path="/openai/a%20b%2F%C3%BC/v1/responses"))[0] == 200
    (got,) = worker.received
    assert (got.path, got.auth["endpoint"]) == ("/v1/responses", "a b/ü")


@pytest.mark.parametrize(
    ("message", "cost"),
    [
        ({}, DEFAULT_COST),
        ({"max_tokens": 7}, 7.0),
        ({"max_tokens": 0}, 0.0),
        ({"max_tokens": None, "max_completion_tokens": 9}, 9.0),
        ({"max_tokens": 7, "max_output_tokens": 9, "n": 3}, 27.0),
        ({"prompt": ["a", "b"], "max_tokens": 5}, 10.0),
        ({"prompt": [[1, 2], [3]], "max_tokens": 5}, 10.0),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 5.0),
        ({"prompt": [], "n": 2}, 2 * DEFAULT_COST),
        ({"max_tokens": "7", "n": "2"}, DEFAULT_COST),
        ({"max_tokens": True, "n": -1}, DEFAULT_COST),
        ({"max_tokens": 1e300}, DEFAULT_COST),
        ({"max_tokens": MAX_TOKENS + 1, "max_completion_tokens": 3}, 3.0),
    ],
)
def test_what_a_request_costs(message: dict[str, object], cost: float) -> None:
    assert cost_of(message) == cost


async def test_large_json_is_told_its_cost_too(door: Door, worker: FakeWorker) -> None:
    payload = {"messages": ["x" * 2**20] * 3, "max_tokens": 9}
    data = io.BytesIO(json.dumps(payload).encode())
    assert (await door.chat(data=data, headers={"Content-Type": "application/json"}))[0] == 200
    assert json.loads(worker.received[0].body) == payload
    assert worker.received[0].auth["cost"] == 9.0


async def test_a_packed_body_is_unpacked(door: Door, worker: FakeWorker) -> None:
    for kind in ("application/json", "audio/wav"):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        packed = gzip.compress(b'{"max_tokens": 3}')
        assert (await door.chat(data=packed, headers=headers))[0] == 200
    assert [got.body for got in worker.received] == [b'{"max_tokens": 3}'] * 2
    assert [got.auth["cost"] for got in worker.received] == [3.0, DEFAULT_COST]
    assert not any("Content-Encoding" in got.headers for got in worker.received)


async def test_a_client_may_wait_until_its_body_is_asked_for(door: Door, worker: FakeWorker) -> None:
    assert (await door.chat(expect100=True))[0] == 200
    assert "Expect" not in worker.received[0].headers


async def test_an_empty_body_said_to_be_json_is_none(door: Door, worker: FakeWorker) -> None:
    async def nothing() -> AsyncGenerator[bytes, None]:
        return
        yield b""

    for data in (b"", nothing()):
        assert (await door.chat(data=data, headers={"Content-Type": "application/json"}))[0] == 200
    assert [(got.body, got.auth["cost"]) for got in worker.received] == [(b"", 1.0)] * 2


async def test_an_upload_goes_on_as_it_comes(door: Door, worker: FakeWorker) -> None:
    parts: asyncio.Queue[bytes] = asyncio.Queue()
    go_on = asyncio.Event()
    lengths: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        lengths.append(request.headers.get("Content-Length"))
        async for part in request.content.iter_any():
            await parts.put(part)
        return web.Response(text="heard")

    async def sound() -> AsyncGenerator[bytes, None]:
        yield b"first"
        await go_on.wait()
        yield b"second"

    worker.answer = answer
    for headers in ({}, {"Content-Length": "11"}):
        go_on.clear()
        with anyio.fail_after(GUARD_S):
            sending = asyncio.ensure_future(
                door.http.post(
                    f"{door.url}/openai/local/v1/audio/transcriptions", data=sound(), headers=headers
                )
            )
            assert await parts.get() == b"first"
            go_on.set()
            async with await sending as response:
                assert (response.status, await response.text()) == (200, "heard")
            assert await parts.get() == b"second"
    assert lengths == [None, "11"]


async def test_an_upload_that_the_worker_refuses_half_way(door: Door, worker: FakeWorker) -> None:
    worker.answers(413, '{"error": "too large"}')

    async def much() -> AsyncGenerator[bytes, None]:
        for _ in range(64):
            yield bytes(2**20)

    assert (await door.refused(413, data=much(), headers={"Content-Type": "audio/wav"}))["message"] == (
        "too large"
    )


# Refused at the door


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "Basic sk-1", "Bearer sk-2", "Bearer ü"])
async def test_without_the_key_nothing_is_done(sent: str) -> None:
    async with a_door(api_key="sk-1") as door, fake_worker() as worker:
        door.joined(7, worker.url)
        assert (await door.chat())[0] == 200
        error = await door.refused(401, path=f"{CHAT}?api_key=sk-2", headers={"Authorization": sent})
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert len(worker.received) == 1


@pytest.mark.parametrize("path", ["/openai/none/v1/models", "/openai/%0A/v1/models", "/openai/e%2Fx/v1/"])
async def test_an_endpoint_that_nobody_joined(door: Door, worker: FakeWorker, path: str) -> None:
    error = await door.refused(404, path=path)
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")
    assert "no worker has joined the endpoint" in error["message"]


@pytest.mark.parametrize("path", ["/openai/", "/openai/local/chat/completions", "/openai/local/v1"])
async def test_a_wrong_base_url_is_told_the_right_one(door: Door, path: str) -> None:
    error = await door.refused(404, path=path)
    assert (
        error["message"] == f"there is no {path}: the base URL for OpenAI clients ends in /openai/ENDPOINT/v1"
    )


async def test_no_worker_is_ready(door: Door) -> None:
    error = await door.refused(503)
    assert error["message"] == "no worker of 'local' is ready: none has joined it"
    door.joined(1, "http://127.0.0.1:1", loadtime=0.0)
    door.joined(2, "http://127.0.0.1:2", loadtime=0.0)
    door.joined(3, "http://127.0.0.1:3", error_msg="CUDA error")
    error = await door.refused(503)
    assert error["message"] == "no worker of 'local' is ready: 2 loading, 1 error"
    assert (error["type"], error["code"]) == ("server_error", "no_worker_ready")
    async with door.http.get(f"{door.url}/openai/local/v1/models") as answer:
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b'{"max_tokens": NaN}', "not JSON"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/x+json"]
)
async def test_json_that_is_none(door: Door, worker: FakeWorker, body: bytes, said: str, kind: str) -> None:
    error = await door.refused(400, data=body, headers={"Content-Type": kind})
    assert said in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unreadable_body")
    assert worker.received == []


async def test_json_that_is_too_large(door: Door, worker: FakeWorker) -> None:
    async def much() -> AsyncGenerator[bytes, None]:
        for _ in range(MAX_JSON_BYTES // 2**20):
            yield b" " * 2**20
        yield b"{}"

    error = await door.refused(413, data=much(), headers={"Content-Type": "application/json"})
    assert error["message"] == f"a JSON body may have {MAX_JSON_BYTES} bytes"
    assert error["code"] == "body_too_large"
    assert worker.received == []


async def test_a_body_packed_in_an_unknown_way(door: Door, worker: FakeWorker) -> None:
    error = await door.refused(415, data=b"{}", headers={"Content-Encoding": "snappy"})
    assert "'snappy' are not understood" in error["message"]
    assert worker.received == []


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Transfer-Encoding": "chunked"}, b"zz\r\nno size\r\n"),
        ({"Content-Encoding": "gzip"}, b"not packed at all"),
    ],
)
async def test_a_body_that_can_not_be_read(
    door: Door, worker: FakeWorker, headers: dict[str, str], body: bytes, kind: str
) -> None:
    async with connected(door.url) as client:
        given = {**KEY, **headers, "Content-Type": kind}
        head, _, rest = request_bytes(CHAT, body, given).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        await client.send(rest)
        assert (await client.head()).status == 400
    await door.closed()
    assert worker.received == []


# Workers that can't be reached


async def test_another_worker_is_tried_under_the_same_number(
    door: Door, worker: FakeWorker, nobody: str
) -> None:
    door.joined(7, worker.url, cur_load=5.0)
    door.joined(8, nobody)
    door.engine.open_requests.open(0.0)
    assert (await door.chat({"max_tokens": 3}))[0] == 200
    (got,) = worker.received
    assert (got.auth["request_idx"], got.auth["cost"]) == (2, 3.0)
    assert door.engine.worker(8).routed == door.engine.worker(7).routed == 1
    assert 2 not in door.engine.open_requests
    assert door.engine.worker(8).pending == {}


async def test_an_upload_is_tried_elsewhere_whole(door: Door, worker: FakeWorker, nobody: str) -> None:
    async def sound() -> AsyncGenerator[bytes, None]:
        yield b"first"
        yield b"second"

    door.joined(7, worker.url, cur_load=5.0)
    door.joined(8, nobody)
    assert (await door.chat(data=sound(), headers={"Content-Type": "audio/wav"}))[0] == 200
    assert worker.received[0].body == b"firstsecond"


@pytest.mark.parametrize("url", [None, "http://" + "a" * 70, "http://a..b", "http://%zz:80", "http://a b:80"])
async def test_none_of_them_can_be_reached(door: Door, url: str | None, nobody: str) -> None:
    url = url or nobody
    door.joined(7, url)
    door.joined(8, nobody, cur_load=5.0)
    error = await door.refused(502)
    assert error["message"].startswith("the worker at http://127.0.0.1:")
    assert "could not be reached" in error["message"]
    assert (error["type"], error["code"]) == ("server_error", "worker_unreachable")


@pytest.mark.parametrize("how", ["close", "half_head"])
async def test_a_worker_that_hangs_up_before_its_answer(
    door: Door, model: MaliciousModel, worker: FakeWorker, how: str
) -> None:
    door.joined(7, model.url)
    door.joined(8, worker.url, cur_load=5.0)
    error = await door.refused(502, path=f"/openai/local/v1/{how}")
    assert error["message"] == f"the worker at {model.url} hung up before it answered"
    assert worker.received == []  # it may be the request that it died of


# What comes back


async def test_an_answer_keeps_what_is_end_to_end(door: Door, model: MaliciousModel) -> None:
    async with door.http.post(f"{door.url}/openai/local/v1/hop", json={}) as answer:
        assert (answer.status, await answer.read()) == (200, b"{}")
        assert answer.headers["X-End"] == "1"
        assert not {"X-Hop", "Keep-Alive"} & set(answer.headers)
    async with door.http.post(f"{door.url}/openai/local/v1/binary", json={}) as answer:
        assert await answer.read() == bytes(range(256)) * 4096
        assert (answer.content_type, answer.content_length) == ("audio/wav", 2**20)
    async with door.http.delete(f"{door.url}/openai/local/v1/empty") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    async with door.http.post(
        f"{door.url}/openai/local/v1/redirect", json={}, allow_redirects=False
    ) as answer:
        assert (answer.status, answer.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")
    assert door.all_closed


async def test_head(door: Door, worker: FakeWorker) -> None:
    worker.answers(404, '{"error": "nothing"}')
    async with door.http.head(f"{door.url}/openai/local/v1/models") as answer:
        assert (answer.status, answer.content_length) == (404, 20)


async def test_a_stream_is_passed_on_as_it_comes(door: Door, model: MaliciousModel) -> None:
    async with connected(door.url) as client:
        await client.post("/openai/local/v1/stream", b"{}", KEY)
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert head.headers["cache-control"] == "no-cache"
        for number in range(3):
            model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        assert not door.all_closed
        model.release()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        await door.closed()


async def test_a_client_that_does_not_read_slows_the_worker_down(door: Door, model: MaliciousModel) -> None:
    async with connected(door.url, limit=2**16) as client:
        await client.post("/openai/local/v1/flood", b"{}", KEY)
        assert (await client.head()).status == 200
        told, still = -1, 0
        with anyio.fail_after(GUARD_S):
            while still < 200:  # turns of the loop in which nothing moves
                still = still + 1 if model.flooded_bytes == told and told > 0 else 0
                told = model.flooded_bytes
                await asyncio.sleep(0)
            while model.flooded_bytes == told:
                await client.exactly(2**16)


@pytest.mark.parametrize("path", ["held", "silent_stream"])
async def test_a_client_that_leaves_ends_the_call(door: Door, model: MaliciousModel, path: str) -> None:
    async with connected(door.url) as client:
        await client.post(f"/openai/local/v1/{path}", b"{}", KEY)
        await model.until(lambda: len(model.requests) == 1)
        if path == "silent_stream":
            assert (await client.head()).status == 200
            assert await client.chunk() == b"data: token\n\n"
        client.leave()
        await model.until(lambda: model.cancelled == 1)
    await door.closed()


async def test_a_client_that_leaves_within_its_upload_ends_the_call(door: Door, worker: FakeWorker) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        try:
            assert await request.content.read(5) == b"first"
            begun.set()
            await request.content.read()
        except (asyncio.CancelledError, web.RequestPayloadError, OSError) as e:
            ended.set_result(type(e).__name__)
            raise
        raise AssertionError("the upload was taken for a whole one")

    worker.answer = answer
    async with connected(door.url) as client:
        headers = {**KEY, "Content-Type": "audio/wav", "Content-Length": "100"}
        await client.send(request_bytes(CHAT, b"first", headers))
        with anyio.fail_after(GUARD_S):
            await begun.wait()
            client.leave()
            assert await ended
    await door.closed()


@pytest.mark.parametrize("path", ["cut_stream", "cut_large", "cut_whole"])
async def test_an_answer_that_breaks_off_is_no_whole_one(
    door: Door, model: MaliciousModel, path: str
) -> None:
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        async with door.http.post(f"{door.url}/openai/local/v1/{path}", json={}) as answer:
            await answer.read()
    await door.closed()


async def test_an_error_that_breaks_off_is_no_whole_one(door: Door, worker: FakeWorker) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Length": "100", "Content-Type": "application/json"}
        response = web.StreamResponse(status=500, headers=headers)
        await response.prepare(request)
        await response.write(b'{"error": ')
        assert request.transport is not None
        request.transport.close()
        return response

    worker.answer = answer
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await door.chat()
    await door.closed()


# Errors of workers and of model servers


SERVER_ERROR = {"type": "server_error", "param": None, "code": None}
INVALID = {**SERVER_ERROR, "type": "invalid_request_error"}
NO_COST = "auth_data.cost: missing parameter; payload: field missing"
BAD_FIELDS = "n: must be a number; input.file: missing parameter"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"error": "a"}, {"message": "a", "type": "authentication_error"}),
        (404, {"error": "a"}, {"message": "a", "type": "not_found_error"}),
        (413, {"error": "a"}, {**INVALID, "message": "a"}),
        (422, {"body": "breaks off"}, {**INVALID, "message": "body: breaks off"}),
        (
            422,
            {"payload": {"n": "must be a number", "input": {"file": "missing parameter"}}},
            {**INVALID, "message": BAD_FIELDS},
        ),
        (
            422,
            {"auth_data": {"cost": "missing parameter"}, "payload": "field missing"},
            {**INVALID, "message": NO_COST},
        ),
        (429, {"error": "a"}, {"message": "a", "type": "rate_limit_error"}),
        (500, {"error": "a", "request": "r-9"}, {"message": "a (request r-9)"}),
        (503, {"error": "a", "state": "loading"}, {"message": "a", "code": "loading"}),
    ],
)
async def test_a_workers_own_errors_are_told_as_openai_tells_them(
    door: Door, worker: FakeWorker, status: int, body: Any, error: dict[str, Any]
) -> None:
    worker.answers(status, json.dumps(body), Retry_After="12", X_Request_Id="r-1", Connection="close")
    async with door.http.post(door.url + CHAT, json={}) as answer:
        assert (answer.status, answer.content_type) == (status, "application/json")
        assert (answer.headers["Retry-After"], answer.headers["X-Request-Id"]) == ("12", "r-1")
        assert await answer.json() == {"error": {**SERVER_ERROR, **error}}


@pytest.mark.parametrize(
    ("status", "body", "kind", "more"),
    [
        (400, '{"error": {"message": "too long", "type": "BadRequestError"}}', "application/json", {}),
        (422, '{"detail": [{"loc": ["body", "n"]}]}', "application/json", {}),
        (422, "{}", "application/json", {}),
        (404, '{"detail": "Not Found"}', "application/json", {}),
        (500, "[]", "application/json", {}),
        (500, "{", "application/json", {}),
        (500, "<h1>CUDA out of memory</h1>", "text/html", {}),
        (500, f'{{"error": "{"x" * MAX_ERROR_BYTES}"}}', "application/json", {}),
        (200, '{"error": "is a text"}', "application/json", {}),
    ],
)
async def test_any_other_answer_is_passed_on_as_it_is(
    door: Door, worker: FakeWorker, status: int, body: str, kind: str, more: dict[str, str]
) -> None:
    worker.answers(status, body, kind, X_Model="tiny", **more)
    async with door.http.post(door.url + CHAT, json={}) as answer:
        assert (answer.status, answer.content_type) == (status, kind)
        assert answer.headers["X-Model"] == "tiny"
        assert await answer.text() == body


@pytest.mark.parametrize(("accepted", "coding"), [("gzip", "gzip"), ("identity", None)])
async def test_a_packed_error_is_passed_on_as_the_client_takes_it(
    door: Door, worker: FakeWorker, accepted: str, coding: str | None
) -> None:
    worker.answers(500, gzip.compress(b'{"error": "packed"}'), Content_Encoding="gzip")
    async with door.http.post(door.url + CHAT, json={}, headers={"Accept-Encoding": accepted}) as answer:
        assert (answer.headers.get("Content-Encoding"), await answer.text()) == (
            coding,
            '{"error": "packed"}',
        )


# Workers over TLS


def tls_for(authority: Authority, folder: Path, name: x509.GeneralName) -> ssl.SSLContext:
    """A server's context, with a certificate of `authority` for `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert").write_text(authority.sign(request_pem(key, [name])))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


HERE = x509.IPAddress(ip_address("127.0.0.1"))


async def test_a_worker_over_tls(tmp_path: Path) -> None:
    async with (
        a_door(clock=SystemClock()) as door,
        fake_worker(tls_for(door.engine.authority, tmp_path, HERE)) as worker,
    ):
        door.joined(7, worker.url)
        assert await door.chat() == (200, {"number": 1})
        assert worker.url.startswith("https://")


async def test_a_worker_with_a_certificate_for_another_name(tmp_path: Path) -> None:
    async with a_door(clock=SystemClock()) as door:
        tls = tls_for(door.engine.authority, tmp_path, x509.DNSName("elsewhere"))
        await mistrusted(door, tls)


async def test_a_worker_with_a_certificate_of_another_authority(tmp_path: Path) -> None:
    async with a_door(clock=SystemClock()) as door:
        await mistrusted(door, tls_for(Authority(door.engine.clock), tmp_path, HERE))


async def mistrusted(door: Door, tls: ssl.SSLContext) -> None:
    async with fake_worker(tls) as worker:
        door.joined(7, worker.url)
        assert "certificate verify failed" in (await door.refused(502))["message"]
        assert worker.received == []


# The engine's part


async def test_closing_a_request_takes_its_cost_off_its_worker(door: Door) -> None:
    door.joined(7, "http://127.0.0.1:1")
    request_idx = door.engine.route(RouteQuery("local", 5.0, 0))["request_idx"]
    assert door.engine.worker(7).pending == {request_idx: 5.0}
    for _ in range(2):
        door.engine.close(request_idx)
        assert door.all_closed
    door.engine.close(99)


async def test_no_worker_that_is_to_be_avoided_is_picked(door: Door) -> None:
    for worker_id, url in ((7, "http://127.0.0.1:7"), (8, "http://127.0.0.1:8")):
        door.joined(worker_id, url)
    query = RouteQuery("local", 1.0, 0)
    assert door.engine.route(query, avoid=["http://127.0.0.1:7"])["url"] == "http://127.0.0.1:8"
    assert "url" not in door.engine.route(query, avoid=["http://127.0.0.1:7", "http://127.0.0.1:8"])
