"""The OpenAI gateway over real sockets: forwarded requests, and relayed answers and errors."""

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
class ForwardedCall:
    """A request as a worker received it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def auth(self) -> dict[str, Any]:
        """The decoded `X-Vast-Auth` header."""
        return json.loads(base64.urlsafe_b64decode(self.headers["X-Vast-Auth"]))


@dataclass
class GatewayWorker:
    """Records and answers each request; if `answer` is set, that function reads and answers it."""

    url: str = ""
    received: list[ForwardedCall] = field(default_factory=list[ForwardedCall])
    answer: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.answer is not None:
            return await self.answer(request)
        seen = ForwardedCall(request.method, request.raw_path, request.headers.copy(), await request.read())
        self.received.append(seen)
        return web.json_response({"number": len(self.received)})

    def answer_with(
        self, status: int, body: str | bytes, kind: str = "application/json", **more: str
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        headers = {name.replace("_", "-"): value for name, value in more.items()}

        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, body=data, headers={"Content-Type": kind, **headers})

        self.answer = answer


@asynccontextmanager
async def fake_worker(tls: ssl.SSLContext | None = None) -> AsyncGenerator[GatewayWorker, None]:
    worker, app = GatewayWorker(), web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", worker.handle)
    server = TestServer(app, scheme="https" if tls else "http")
    await server.start_server(ssl=tls)
    try:
        worker.url = str(server.make_url("")).rstrip("/")
        yield worker
    finally:
        await server.close()


@dataclass
class Gateway:
    """A running gateway, its engine, and a client with the API key."""

    engine: LocalEngine
    url: str
    http: aiohttp.ClientSession

    def add_worker(self, worker_id: int, url: str, **fields: Any) -> None:
        self.engine.take_report("local", replace(READY, id=worker_id, url=url, **fields))

    async def chat(self, payload: Any = None, path: str = CHAT, **options: Any) -> tuple[int, Any]:
        """Post a chat request, or `data`; return the answer's status and JSON."""
        if "data" not in options:
            options["json"] = payload if payload is not None else {"messages": []}
        async with self.http.post(self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def expect_error(self, status: int, path: str = CHAT, **options: Any) -> dict[str, Any]:
        """Check for an error in OpenAI's format that leaves no request open; return it."""
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

    async def until_all_closed(self) -> None:
        """Wait until no request is open."""
        await self.engine.wait_for(lambda: self.all_closed, GUARD_S)


@asynccontextmanager
async def running_gateway(
    api_key: str | None = None, clock: Clock | None = None
) -> AsyncGenerator[Gateway, None]:
    engine = LocalEngine(api_key=api_key, key=engine_key(), clock=clock or ManualClock())
    timeout = aiohttp.ClientTimeout(total=GUARD_S)
    async with (
        serve_engine(engine) as url,
        aiohttp.ClientSession(headers=KEY, timeout=timeout) as http,
    ):
        yield Gateway(engine, url, http)


@pytest.fixture
async def gateway() -> AsyncGenerator[Gateway, None]:
    async with running_gateway() as gateway:
        yield gateway


@pytest.fixture
async def worker(gateway: Gateway) -> AsyncGenerator[GatewayWorker, None]:
    """A ready worker of the gateway's engine."""
    async with fake_worker() as worker:
        gateway.add_worker(7, worker.url)
        yield worker


@pytest.fixture
async def model(gateway: Gateway) -> AsyncGenerator[MaliciousModel, None]:
    """A malicious ready worker of the gateway's engine; the last part of the path selects its behaviour."""
    async with malicious_model() as model:
        gateway.add_worker(7, model.url)
        yield model


@pytest.fixture
def unused_url() -> Generator[str, None, None]:
    """A URL where nothing listens; the port is reserved."""
    lease = PortLease()
    yield f"http://127.0.0.1:{lease.port}"
    lease.close()


# Forwarded requests


async def test_a_worker_gets_the_unchanged_request_and_a_signature(
    gateway: Gateway, worker: GatewayWorker
) -> None:
    body = b'{ "max_tokens":7,"messages":[] , "n":2}'
    headers = {
        "Content-Type": "application/json",
        "Cookie": "a=b",
        "X-Vast-Auth": "forged",
        "X-Request-Id": "r-1",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
    }
    status, answer = await gateway.chat(data=body, headers=headers)
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
    assert gateway.all_closed


async def test_repeated_headers_are_kept_and_none_are_added(gateway: Gateway, worker: GatewayWorker) -> None:
    async with connected(gateway.url) as client:
        headers = "Host: localhost\r\nAuthorization: Bearer sk-1\r\nX-Two: 1\r\nX-Two: 2"
        await client.send(f"GET /openai/local/v1/models HTTP/1.1\r\n{headers}\r\n\r\n".encode())
        assert (await client.answer())[0].status == 200
    (got,) = worker.received
    names = ["Connection", "Host", "X-Two", "X-Two", "X-Vast-Auth"]
    assert sorted(name for name, _ in got.headers.items()) == names
    assert got.auth["cost"] == 1.0


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_every_method_is_forwarded(gateway: Gateway, worker: GatewayWorker, method: str) -> None:
    async with gateway.http.request(method, f"{gateway.url}/openai/local/v1/files/f-1") as answer:
        assert answer.status == 200
    assert [(got.method, got.path, got.body) for got in worker.received] == [(method, "/v1/files/f-1", b"")]


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("a?api_key=secret", "a"),
        ("a?x=1&api_key=secret&y=%20+2", "a?x=1&y=%20+2"),
        ("a?api%5Fkey=secret&x", "a?x"),
        ("a%2Fb/c%20d//e/", "a%2Fb/c%20d//e/"),
        ("../b/./c", "../b/./c"),
    ],
)
async def test_path_and_query_are_unchanged_except_for_the_key(
    gateway: Gateway, worker: GatewayWorker, sent: str, forwarded: str
) -> None:
    async with connected(gateway.url) as client:
        await client.post(f"/openai/local/v1/{sent}", b"{}", KEY)
        assert (await client.answer())[0].status == 200
    assert [got.path for got in worker.received] == [f"/v1/{forwarded}"]


async def test_another_endpoint_by_name(gateway: Gateway, worker: GatewayWorker) -> None:
    gateway.engine.take_report("a b/ü", replace(READY, id=7, url=worker.url + "/"))
    assert (await gateway.chat(path="/openai/a%20b%2F%C3%BC/v1/responses"))[0] == 200
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
def test_the_cost_of_a_request(message: dict[str, object], cost: float) -> None:
    assert cost_of(message) == cost


async def test_the_cost_is_read_from_large_json_too(gateway: Gateway, worker: GatewayWorker) -> None:
    payload = {"messages": ["x" * 2**20] * 3, "max_tokens": 9}
    data = io.BytesIO(json.dumps(payload).encode())
    assert (await gateway.chat(data=data, headers={"Content-Type": "application/json"}))[0] == 200
    assert json.loads(worker.received[0].body) == payload
    assert worker.received[0].auth["cost"] == 9.0


async def test_a_compressed_body_is_decompressed(gateway: Gateway, worker: GatewayWorker) -> None:
    for kind in ("application/json", "audio/wav"):
        headers = {"Content-Encoding": "gzip", "Content-Type": kind}
        packed = gzip.compress(b'{"max_tokens": 3}')
        assert (await gateway.chat(data=packed, headers=headers))[0] == 200
    assert [got.body for got in worker.received] == [b'{"max_tokens": 3}'] * 2
    assert [got.auth["cost"] for got in worker.received] == [3.0, DEFAULT_COST]
    assert not any("Content-Encoding" in got.headers for got in worker.received)


async def test_expect_100_continue(gateway: Gateway, worker: GatewayWorker) -> None:
    assert (await gateway.chat(expect100=True))[0] == 200
    assert "Expect" not in worker.received[0].headers


async def test_an_empty_json_body_counts_as_no_body(gateway: Gateway, worker: GatewayWorker) -> None:
    async def nothing() -> AsyncGenerator[bytes, None]:
        return
        yield b""

    for data in (b"", nothing()):
        assert (await gateway.chat(data=data, headers={"Content-Type": "application/json"}))[0] == 200
    assert [(got.body, got.auth["cost"]) for got in worker.received] == [(b"", 1.0)] * 2


async def test_an_upload_is_streamed(gateway: Gateway, worker: GatewayWorker) -> None:
    parts: asyncio.Queue[bytes] = asyncio.Queue()
    go_on = asyncio.Event()
    lengths: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        lengths.append(request.headers.get("Content-Length"))
        async for part in request.content.iter_any():
            await parts.put(part)
        return web.Response(text="heard")

    async def audio() -> AsyncGenerator[bytes, None]:
        yield b"first"
        await go_on.wait()
        yield b"second"

    worker.answer = answer
    for headers in ({}, {"Content-Length": "11"}):
        go_on.clear()
        with anyio.fail_after(GUARD_S):
            sending = asyncio.ensure_future(
                gateway.http.post(
                    f"{gateway.url}/openai/local/v1/audio/transcriptions", data=audio(), headers=headers
                )
            )
            assert await parts.get() == b"first"
            go_on.set()
            async with await sending as response:
                assert (response.status, await response.text()) == (200, "heard")
            assert await parts.get() == b"second"
    assert lengths == [None, "11"]


async def test_an_upload_that_the_worker_refuses_early(gateway: Gateway, worker: GatewayWorker) -> None:
    worker.answer_with(413, '{"error": "too large"}')

    async def large_body() -> AsyncGenerator[bytes, None]:
        for _ in range(64):
            yield bytes(2**20)

    assert (await gateway.expect_error(413, data=large_body(), headers={"Content-Type": "audio/wav"}))[
        "message"
    ] == ("too large")


# Refused by the gateway


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "Basic sk-1", "Bearer sk-2", "Bearer ü"])
async def test_without_the_key_nothing_is_forwarded(sent: str) -> None:
    async with running_gateway(api_key="sk-1") as gateway, fake_worker() as worker:
        gateway.add_worker(7, worker.url)
        assert (await gateway.chat())[0] == 200
        error = await gateway.expect_error(401, path=f"{CHAT}?api_key=sk-2", headers={"Authorization": sent})
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert len(worker.received) == 1


@pytest.mark.parametrize("path", ["/openai/none/v1/models", "/openai/%0A/v1/models", "/openai/e%2Fx/v1/"])
async def test_an_endpoint_without_workers(gateway: Gateway, worker: GatewayWorker, path: str) -> None:
    error = await gateway.expect_error(404, path=path)
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")
    assert "no worker has joined the endpoint" in error["message"]


@pytest.mark.parametrize("path", ["/openai/", "/openai/local/chat/completions", "/openai/local/v1"])
async def test_a_wrong_base_url_gets_a_hint_to_the_right_one(gateway: Gateway, path: str) -> None:
    error = await gateway.expect_error(404, path=path)
    assert (
        error["message"] == f"no route at {path}: the base URL for OpenAI clients ends in /openai/ENDPOINT/v1"
    )


async def test_no_worker_is_ready(gateway: Gateway) -> None:
    error = await gateway.expect_error(503)
    assert error["message"] == (
        "no worker of 'local' is ready: none has joined this endpoint (is its name right?)"
    )
    gateway.add_worker(1, "http://127.0.0.1:1", loadtime=0.0)
    gateway.add_worker(2, "http://127.0.0.1:2", loadtime=0.0)
    gateway.add_worker(3, "http://127.0.0.1:3", error_msg="CUDA error")
    error = await gateway.expect_error(503)
    assert error["message"] == "no worker of 'local' is ready: 2 loading, 1 error"
    assert (error["type"], error["code"]) == ("server_error", "no_worker_ready")
    async with gateway.http.get(f"{gateway.url}/openai/local/v1/models") as answer:
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("body", "message_part"),
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
async def test_invalid_json(
    gateway: Gateway, worker: GatewayWorker, body: bytes, message_part: str, kind: str
) -> None:
    error = await gateway.expect_error(400, data=body, headers={"Content-Type": kind})
    assert message_part in error["message"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unreadable_body")
    assert worker.received == []


async def test_json_above_the_limit(gateway: Gateway, worker: GatewayWorker) -> None:
    async def large_body() -> AsyncGenerator[bytes, None]:
        for _ in range(MAX_JSON_BYTES // 2**20):
            yield b" " * 2**20
        yield b"{}"

    error = await gateway.expect_error(413, data=large_body(), headers={"Content-Type": "application/json"})
    assert error["message"] == f"the JSON body is larger than {MAX_JSON_BYTES} bytes"
    assert error["code"] == "body_too_large"
    assert worker.received == []


async def test_an_unknown_content_coding(gateway: Gateway, worker: GatewayWorker) -> None:
    error = await gateway.expect_error(415, data=b"{}", headers={"Content-Encoding": "snappy"})
    assert "'snappy' is not supported" in error["message"]
    assert worker.received == []


@pytest.mark.parametrize("kind", ["application/json", "audio/wav"])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Transfer-Encoding": "chunked"}, b"zz\r\nno size\r\n"),
        ({"Content-Encoding": "gzip"}, b"not packed at all"),
    ],
)
async def test_an_unreadable_body(
    gateway: Gateway, worker: GatewayWorker, headers: dict[str, str], body: bytes, kind: str
) -> None:
    async with connected(gateway.url) as client:
        given = {**KEY, **headers, "Content-Type": kind}
        head, _, rest = request_bytes(CHAT, body, given).partition(b"\r\n\r\n")
        await client.send(head + b"\r\n\r\n")
        await client.send(rest)
        assert (await client.head()).status == 400
    await gateway.until_all_closed()
    assert worker.received == []


# Workers that can't be reached


async def test_another_worker_is_tried_with_the_same_request_idx(
    gateway: Gateway, worker: GatewayWorker, unused_url: str
) -> None:
    gateway.add_worker(7, worker.url, cur_load=5.0)
    gateway.add_worker(8, unused_url)
    gateway.engine.open_requests.open(0.0)
    assert (await gateway.chat({"max_tokens": 3}))[0] == 200
    (got,) = worker.received
    assert (got.auth["request_idx"], got.auth["cost"]) == (2, 3.0)
    assert gateway.engine.worker(8).routed == gateway.engine.worker(7).routed == 1
    assert 2 not in gateway.engine.open_requests
    assert gateway.engine.worker(8).pending == {}


async def test_the_engine_knows_the_route_and_the_status(gateway: Gateway, worker: GatewayWorker) -> None:
    worker.answer_with(404, "{}")
    await gateway.chat(path=CHAT + "?api_key=secret", headers={})
    routing = gateway.engine.open_requests.routing(1)
    assert routing is not None
    assert (routing.route, routing.status) == ("POST /v1/chat/completions", 404)


async def test_another_worker_gets_the_whole_upload(
    gateway: Gateway, worker: GatewayWorker, unused_url: str
) -> None:
    async def audio() -> AsyncGenerator[bytes, None]:
        yield b"first"
        yield b"second"

    gateway.add_worker(7, worker.url, cur_load=5.0)
    gateway.add_worker(8, unused_url)
    assert (await gateway.chat(data=audio(), headers={"Content-Type": "audio/wav"}))[0] == 200
    assert worker.received[0].body == b"firstsecond"


@pytest.mark.parametrize("url", [None, "http://" + "a" * 70, "http://a..b", "http://%zz:80", "http://a b:80"])
async def test_no_worker_can_be_reached(gateway: Gateway, url: str | None, unused_url: str) -> None:
    url = url or unused_url
    gateway.add_worker(7, url)
    gateway.add_worker(8, unused_url, cur_load=5.0)
    error = await gateway.expect_error(502)
    assert error["message"].startswith("the worker at http://127.0.0.1:")
    assert "could not be reached" in error["message"]
    assert (error["type"], error["code"]) == ("server_error", "worker_unreachable")


@pytest.mark.parametrize("failure", ["close", "half_head"])
async def test_a_worker_that_closes_the_connection_before_its_answer(
    gateway: Gateway, model: MaliciousModel, worker: GatewayWorker, failure: str
) -> None:
    gateway.add_worker(7, model.url)
    gateway.add_worker(8, worker.url, cur_load=5.0)
    error = await gateway.expect_error(502, path=f"/openai/local/v1/{failure}")
    assert error["message"] == f"the worker at {model.url} closed the connection before it answered"
    assert worker.received == []  # the request may have caused the failure


# Relayed answers


async def test_end_to_end_headers_are_kept(gateway: Gateway, model: MaliciousModel) -> None:
    async with gateway.http.post(f"{gateway.url}/openai/local/v1/hop", json={}) as answer:
        assert (answer.status, await answer.read()) == (200, b"{}")
        assert answer.headers["X-End"] == "1"
        assert not {"X-Hop", "Keep-Alive"} & set(answer.headers)
    async with gateway.http.post(f"{gateway.url}/openai/local/v1/binary", json={}) as answer:
        assert await answer.read() == bytes(range(256)) * 4096
        assert (answer.content_type, answer.content_length) == ("audio/wav", 2**20)
    async with gateway.http.delete(f"{gateway.url}/openai/local/v1/empty") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    async with gateway.http.post(
        f"{gateway.url}/openai/local/v1/redirect", json={}, allow_redirects=False
    ) as answer:
        assert (answer.status, answer.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")
    assert gateway.all_closed


async def test_head(gateway: Gateway, worker: GatewayWorker) -> None:
    worker.answer_with(404, '{"error": "nothing"}')
    async with gateway.http.head(f"{gateway.url}/openai/local/v1/models") as answer:
        assert (answer.status, answer.content_length) == (404, 20)


async def test_a_stream_is_relayed_without_delay(gateway: Gateway, model: MaliciousModel) -> None:
    async with connected(gateway.url) as client:
        await client.post("/openai/local/v1/stream", b"{}", KEY)
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert head.headers["cache-control"] == "no-cache"
        for number in range(3):
            model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        assert not gateway.all_closed
        model.release()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.chunk() == b""
        await gateway.until_all_closed()


async def test_a_client_that_does_not_read_slows_the_worker_down(
    gateway: Gateway, model: MaliciousModel
) -> None:
    async with connected(gateway.url, limit=2**16) as client:
        await client.post("/openai/local/v1/flood", b"{}", KEY)
        assert (await client.head()).status == 200
        sent_bytes, idle_turns = -1, 0
        with anyio.fail_after(GUARD_S):
            while idle_turns < 200:  # turns of the event loop without progress
                idle_turns = idle_turns + 1 if model.flooded_bytes == sent_bytes and sent_bytes > 0 else 0
                sent_bytes = model.flooded_bytes
                await asyncio.sleep(0)
            while model.flooded_bytes == sent_bytes:
                await client.exactly(2**16)


@pytest.mark.parametrize("path", ["held", "silent_stream"])
async def test_a_client_that_disconnects_ends_the_call(
    gateway: Gateway, model: MaliciousModel, path: str
) -> None:
    async with connected(gateway.url) as client:
        await client.post(f"/openai/local/v1/{path}", b"{}", KEY)
        await model.until(lambda: len(model.requests) == 1)
        if path == "silent_stream":
            assert (await client.head()).status == 200
            assert await client.chunk() == b"data: token\n\n"
        client.leave()
        await model.until(lambda: model.cancelled == 1)
    await gateway.until_all_closed()


async def test_a_client_that_disconnects_within_its_upload_ends_the_call(
    gateway: Gateway, worker: GatewayWorker
) -> None:
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
        raise AssertionError("the upload was taken for a complete one")

    worker.answer = answer
    async with connected(gateway.url) as client:
        headers = {**KEY, "Content-Type": "audio/wav", "Content-Length": "100"}
        await client.send(request_bytes(CHAT, b"first", headers))
        with anyio.fail_after(GUARD_S):
            await begun.wait()
            client.leave()
            assert await ended
    await gateway.until_all_closed()


@pytest.mark.parametrize("path", ["cut_stream", "cut_large", "cut_whole"])
async def test_an_answer_that_ends_early_is_not_completed(
    gateway: Gateway, model: MaliciousModel, path: str
) -> None:
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        async with gateway.http.post(f"{gateway.url}/openai/local/v1/{path}", json={}) as answer:
            await answer.read()
    await gateway.until_all_closed()


async def test_an_error_that_ends_early_is_not_completed(gateway: Gateway, worker: GatewayWorker) -> None:
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
        await gateway.chat()
    await gateway.until_all_closed()


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
async def test_a_workers_own_errors_get_openais_format(
    gateway: Gateway, worker: GatewayWorker, status: int, body: Any, error: dict[str, Any]
) -> None:
    worker.answer_with(status, json.dumps(body), Retry_After="12", X_Request_Id="r-1", Connection="close")
    async with gateway.http.post(gateway.url + CHAT, json={}) as answer:
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
async def test_any_other_answer_is_relayed_unchanged(
    gateway: Gateway, worker: GatewayWorker, status: int, body: str, kind: str, more: dict[str, str]
) -> None:
    worker.answer_with(status, body, kind, X_Model="tiny", **more)
    async with gateway.http.post(gateway.url + CHAT, json={}) as answer:
        assert (answer.status, answer.content_type) == (status, kind)
        assert answer.headers["X-Model"] == "tiny"
        assert await answer.text() == body


@pytest.mark.parametrize(("accepted", "coding"), [("gzip", "gzip"), ("identity", None)])
async def test_a_compressed_error_is_relayed_as_the_client_accepts_it(
    gateway: Gateway, worker: GatewayWorker, accepted: str, coding: str | None
) -> None:
    worker.answer_with(500, gzip.compress(b'{"error": "packed"}'), Content_Encoding="gzip")
    async with gateway.http.post(
        gateway.url + CHAT, json={}, headers={"Accept-Encoding": accepted}
    ) as answer:
        assert (answer.headers.get("Content-Encoding"), await answer.text()) == (
            coding,
            '{"error": "packed"}',
        )


# Workers over TLS


def tls_for(authority: Authority, folder: Path, name: x509.GeneralName) -> ssl.SSLContext:
    """A server's TLS context with a certificate of `authority` for `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "cert").write_text(authority.sign(request_pem(key, [name])))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


HERE = x509.IPAddress(ip_address("127.0.0.1"))


async def test_a_worker_over_tls(tmp_path: Path) -> None:
    async with (
        running_gateway(clock=SystemClock()) as gateway,
        fake_worker(tls_for(gateway.engine.authority, tmp_path, HERE)) as worker,
    ):
        gateway.add_worker(7, worker.url)
        assert await gateway.chat() == (200, {"number": 1})
        assert worker.url.startswith("https://")


async def test_a_worker_with_a_certificate_for_another_name(tmp_path: Path) -> None:
    async with running_gateway(clock=SystemClock()) as gateway:
        tls = tls_for(gateway.engine.authority, tmp_path, x509.DNSName("elsewhere.internal"))
        await expect_untrusted(gateway, tls)


async def test_a_worker_with_a_certificate_of_another_authority(tmp_path: Path) -> None:
    async with running_gateway(clock=SystemClock()) as gateway:
        await expect_untrusted(gateway, tls_for(Authority(gateway.engine.clock), tmp_path, HERE))


async def expect_untrusted(gateway: Gateway, tls: ssl.SSLContext) -> None:
    async with fake_worker(tls) as worker:
        gateway.add_worker(7, worker.url)
        assert "certificate verify failed" in (await gateway.expect_error(502))["message"]
        assert worker.received == []


# Routing and closing in the engine


async def test_closing_a_request_removes_its_cost_from_its_worker(gateway: Gateway) -> None:
    gateway.add_worker(7, "http://127.0.0.1:1")
    request_idx = gateway.engine.route(RouteQuery("local", 5.0, 0))["request_idx"]
    assert gateway.engine.worker(7).pending == {request_idx: 5.0}
    for _ in range(2):
        gateway.engine.close(request_idx)
        assert gateway.all_closed
    gateway.engine.close(99)


async def test_workers_to_avoid_are_not_picked(gateway: Gateway) -> None:
    for worker_id, url in ((7, "http://127.0.0.1:7"), (8, "http://127.0.0.1:8")):
        gateway.add_worker(worker_id, url)
    query = RouteQuery("local", 1.0, 0)
    assert gateway.engine.route(query, avoid=["http://127.0.0.1:7"])["url"] == "http://127.0.0.1:8"
    assert "url" not in gateway.engine.route(query, avoid=["http://127.0.0.1:7", "http://127.0.0.1:8"])
