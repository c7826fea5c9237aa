"""Routes other than POST with JSON: methods, paths, queries, bare routes (docs/protocol.md, "Request")."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.backend import Backend
from lib.data_types import JsonDataException
from lib.declare.config_fields import DeclarationRefused
from lib.uploads import TAKES_A_FILE, Upload
from lib.worker import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig
from tests.fakes import varied_routes
from tests.fakes.plain_handler import PlainHandler
from tests.fakes.raw_client import RawClient, connected
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, with_worker_task

Routes = Sequence[web.AbstractRouteDef]
TEXT = {"Content-Type": "text/plain"}


def with_routes(tmp_path: Path, routes: Any) -> Any:
    """A system whose worker has the routes made by `routes` and those of tests/fakes/varied_routes.py."""

    def make(model_url: str, setup: Setup) -> tuple[Backend, Routes]:
        backend, others = varied_routes.build(model_url, setup)
        return backend, [*routes(backend), *others]

    return with_worker_task(tmp_path, make=make)


def with_declared(tmp_path: Path, *handlers: HandlerConfig, model: bool = True) -> Any:
    """A system with a declared worker."""

    def make(model_url: str, setup: Setup) -> tuple[Backend, Routes]:
        with_model: dict[str, Any] = {"model_server_url": model_url, "model_healthcheck_url": "/health"}
        worker = Worker(WorkerConfig(handlers=list(handlers), **(with_model if model else {})))
        return worker.backend, worker.routes

    return with_worker_task(tmp_path, make=make)


async def call_signed(system: System, method: str, path: str, **options: Any) -> tuple[int, Any]:
    """Send a request authenticated by its header; return status and JSON of the answer."""
    headers = {**system.header(), **options.pop("headers", {})}
    async with system.http.request(method, system.url + path, headers=headers, **options) as answer:
        return answer.status, await answer.json(content_type=None)


async def forwarded(system: System, method: str, path: str, **options: Any) -> tuple[str, str, str]:
    """Send a request; return the method, path and body that the model server got."""
    status, echo = await call_signed(system, method, path, **options)
    assert status == 200, echo
    return echo["method"], echo["path"], echo["body"]


def outcomes(system: System) -> dict[str, int]:
    assert system.backend is not None
    return {o.name.lower(): count for o, count in system.backend.metrics.outcomes.items()}


async def send_raw(client: RawClient, system: System, line: str, *more: str) -> None:
    """Send a request without a body; `line` is its request line."""
    headers = ["Host: worker", *(f"{k}: {v}" for k, v in system.header().items()), *more]
    await client.send("\r\n".join([line, *headers, "", ""]).encode())


async def reported_outcomes(system: System, count: int = 1) -> list[tuple[str, bool]]:
    """Return status and success of the reported requests once there are `count`."""
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [(f.request.status, f.request.success) for f in system.engine.finished]


# Methods


async def test_the_model_server_is_called_with_the_clients_method(tmp_path: Path) -> None:
    body = {"id": "other", "limit": 2, "exact": True, "tags": ["x"], "score": 0.5}
    sent = json.dumps(body)
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        for method in (
            "PUT",
            "PATCH",
        ):  # the body is passed on unchanged
            assert await forwarded(system, method, "/items/a/echo", json=body) == (
                method,
                "/items/a/echo",
                sent,
            )
            assert system.model.requests[-1].header("Content-Type") == "application/json"
        for method in ("GET", "DELETE"):
            got = await forwarded(system, method, "/items/a/echo?limit=3")
            assert got == (method, "/items/a/echo?limit=3&exact=false", "")
            assert system.model.requests[-1].header("Content-Type") is None
        await system.reported(served=2 + 2 + 3 + 3)
        assert await reported_outcomes(system, 4) == [("Success", True)] * 4
        async with system.http.post(system.url + "/items/a/echo", headers=system.header()) as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "DELETE,GET,HEAD,PATCH,PUT")


async def test_every_method_needs_authentication(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        for method, path in (("GET", "/items/a/echo"), ("DELETE", "/items/a/echo"), ("PUT", "/items/a/echo")):
            async with system.http.request(method, system.url + path) as answer:
                assert answer.status == 422
            forged = {"X-Vast-Auth": system.bearer().removeprefix("vast.")[:-8] + "AAAAAAA9"}
            async with system.http.request(method, system.url + path, headers=forged) as answer:
                assert answer.status in (401, 422)
        for method in ("GET", "POST"):
            async with system.http.request(method, system.url + "/own", json={"work": 1}) as answer:
                assert answer.status == 422
        assert (system.model.requests, outcomes(system)) == ([], {})


@asynccontextmanager
async def well_behaved() -> AsyncGenerator[str, None]:
    """Run a model server that answers HEAD as RFC 9110 requires; yield the URL of an item on it."""

    async def item(request: web.Request) -> web.StreamResponse:
        size = int(request.query["size"])
        return web.Response(body=b"x" * size, headers={"X-Method": request.method})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Method": request.method})
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(b"data")
        return response

    app = web.Application()
    app.add_routes([web.get("/item", item), web.get("/stream", stream)])
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_a_head_has_the_length_of_its_get_and_no_body(tmp_path: Path) -> None:
    async with well_behaved() as model:

        def routes(backend: Backend) -> Routes:
            targets = (("/item", "item?size=5"), ("/large", "item?size=900000"), ("/stream", "stream"))
            return [
                web.get(path, backend.create_handler(varied_routes.SearchHandler(path=f"{model}{target}")))
                for path, target in targets
            ]

        async with with_routes(tmp_path, routes) as system, connected(system.url) as client:
            for path, length in (("/item", "5"), ("/large", "900000"), ("/stream", None), ("/own", "28")):
                await send_raw(client, system, f"HEAD {path} HTTP/1.1")
                head = await client.head()
                assert head.status == (203 if path == "/own" else 200)
                assert (head.headers.get("content-length"), "transfer-encoding" in head.names) == (
                    length,
                    False,
                )
                assert path == "/own" or head.headers["x-method"] == "HEAD"
            await send_raw(client, system, "GET /item HTTP/1.1")  # nothing followed the last head
            assert (await client.answer())[1] == b"xxxxx"
            await send_raw(client, system, "HEAD /nowhere HTTP/1.1")
            assert (await client.head()).status == 404
            await send_raw(client, system, "HEAD /items/../echo HTTP/1.1")
            assert (await client.head()).status == 422
            await send_raw(client, system, "GET /item HTTP/1.1")
            assert (await client.answer())[0].status == 200
            assert outcomes(system) == {"served": 6, "errored": 1}


async def test_a_functions_answer_to_head_has_no_body(tmp_path: Path) -> None:
    def whole(n: str) -> str:
        return n

    def items(n: str) -> Any:
        yield n

    handlers = (
        HandlerConfig("/whole/{n}", method="GET", remote_function=whole),
        HandlerConfig("/items/{n}", method="GET", remote_function=items),
    )
    async with with_declared(tmp_path, *handlers, model=False) as system, connected(system.url) as client:
        await send_raw(client, system, "HEAD /whole/1 HTTP/1.1")
        assert (await client.head()).headers["content-length"] == str(len('{"result": "1"}'))
        await send_raw(client, system, "HEAD /items/1 HTTP/1.1")
        assert (await client.head()).headers["content-type"] == "application/x-ndjson"
        await send_raw(client, system, "GET /items/1 HTTP/1.1")
        assert (await client.answer())[1] == b'"1"\n'


# Parameters of the path


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("a%2Fb", "a%2Fb"),
        ("%C3%BC", "%C3%BC"),
        ("%20", "%20"),
        ("%3Fx=1%23y", "%3Fx=1%23y"),
        ("%252e%252e", "%252e%252e"),
        ("..a", "..a"),
        ("%7Bid%7D", None),  # aiohttp's own routes take no braces
    ],
)
async def test_a_parameter_is_one_segment_of_the_model_servers_path(
    tmp_path: Path, asked: str, got: str | None
) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        await send_raw(client, system, f"GET /items/{asked}/echo?limit=1 HTTP/1.1")
        head, _ = await client.answer()
        if got is None:
            assert (head.status, system.model.requests) == (404, [])
        else:
            assert head.status == 200
            assert system.model.requests[-1].path.split("?")[0] == f"/items/{got}/echo"


@pytest.mark.parametrize("asked", ["..", ".", "%2e%2e", "%2E", "..%2F..%2Fadmin", "a%2F..", "%2e%2e%2fb"])
async def test_dot_segments_are_not_resolved(tmp_path: Path, asked: str) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        await send_raw(client, system, f"GET /items/{asked}/echo HTTP/1.1")
        head, body = await client.answer()
        assert (head.status, json.loads(body)) == (422, {"payload": {"id": "can't be part of a path"}})
        assert system.model.requests == []
        assert await reported_outcomes(system) == [("Error", False)]


# Parameters of the query


async def test_the_query_is_rebuilt_by_the_payload_class(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        path = "/items/a/echo?tags=x%26y&limit=7&tags=%C3%BC&unknown=1&score=1.50&exact=1&id=b"
        assert await forwarded(system, "GET", path) == (
            "GET",
            "/items/a/echo?limit=7&exact=true&tags=x%26y&tags=%C3%BC&score=1.5",
            "",
        )
        await system.reported(served=7.0)


async def test_a_query_is_validated(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        path = "/items/a/echo?limit=many&exact=maybe&score=&limit=2"
        status, said = await call_signed(system, "GET", path)
        assert (status, sorted(said["payload"])) == (422, ["exact", "limit", "score"])
        assert said["payload"]["exact"] == "must be true or false"
        assert system.model.requests == []
        assert await reported_outcomes(system) == [("Error", False)]


# Answers


async def test_events_of_a_get_are_streamed_one_by_one(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        await send_raw(client, system, "GET /events?limit=4 HTTP/1.1", "Accept: text/event-stream")
        head = await client.head()
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        assert system.model.requests[-1].header("Accept") == "text/event-stream"
        for number in range(3):
            system.model.step()
            assert await client.chunk() == b"data: token %d\n\n" % number
        system.model.release()
        assert [await client.chunk(), await client.chunk()] == [b"data: [DONE]\n\n", b""]
        await system.reported(served=4.0)


async def test_events_stop_with_their_client(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=varied_routes.build) as system:
        async with connected(system.url) as client:
            await send_raw(client, system, "GET /events HTTP/1.1")
            await client.head()
            client.leave()
            await system.model.until(lambda: system.model.cancelled == 1)
        assert await reported_outcomes(system) == [("Cancelled", True)]


async def test_a_persistent_http_1_0_connection_ends_with_a_stream(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, make=varied_routes.build) as system,
        connected(system.url) as client,
    ):
        system.model.release()
        await send_raw(client, system, "GET /events HTTP/1.0", "Connection: keep-alive")
        assert "keep-alive" not in (await client.head()).headers.get("connection", "")
        assert await client.rest() == b"data: [DONE]\n\n"


async def test_a_binary_answer_is_passed_on(tmp_path: Path) -> None:
    def routes(backend: Backend) -> Routes:
        return [web.get("/sound", backend.create_handler(varied_routes.SearchHandler(path="/binary")))]

    async with (
        with_routes(tmp_path, routes) as system,
        system.http.get(system.url + "/sound", headers=system.header()) as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "audio/wav")
        assert answer.headers["Content-Disposition"] == "attachment"
        assert await answer.read() == bytes(range(256)) * 4096


# Bare routes


class Own:
    """An author's bare handlers, with a record of what they got."""

    def __init__(self) -> None:
        self.began, self.go, self.cancelled = anyio.Event(), anyio.Event(), anyio.Event()
        self.workloads: list[Any] = []
        self.files: list[Path] = []
        self.backend: Backend | None = None

    def workload(self, payload: Any) -> float:
        self.workloads.append(payload)
        return 4.0

    async def status(self, request: web.Request) -> web.StreamResponse:
        given = request["payload"]
        if "outcome" in given:
            request["outcome"] = given["outcome"]
        return web.Response(status=int(given["status"]))

    async def raises(self, request: web.Request) -> web.StreamResponse:
        raise {
            "conflict": web.HTTPConflict(text="not now"),
            "bug": ZeroDivisionError("own bug"),
            "time": TimeoutError("own time-out"),
            "client": aiohttp.ClientPayloadError("own client"),
            "refused": ConnectionRefusedError("own connection"),
        }[request["payload"]["what"]]

    async def waits(self, request: web.Request) -> web.StreamResponse:
        self.began.set()
        try:
            await self.go.wait()
        except BaseException:
            self.cancelled.set()
            raise
        return web.Response(text="done")

    async def streams(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await response.write(b"one")
        await self.go.wait()
        if request["payload"].get("raise"):
            raise RuntimeError("after the status line")
        await response.write(b"two")
        return response

    async def socket(self, request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_json({"got": message.data, "cost": request["auth_data"].cost})
        return ws

    async def keeps(self, request: web.Request) -> web.StreamResponse:
        upload = request["payload"]
        assert isinstance(upload, Upload)
        self.files.append(upload.path)
        return web.Response(text=f"{upload.path.read_text()} {upload.content_type} {upload.query}")

    async def asks_the_model(self, request: web.Request) -> web.StreamResponse:
        assert self.backend is not None
        async with self.backend.session.get("/echo") as answer:
            return web.json_response({"model": answer.status})

    def routes(self, backend: Backend) -> Routes:
        self.backend = backend
        one = {"allow_parallel_requests": False}
        return [
            web.post("/status", backend.guard(self.status, workload=2.0)),
            web.post("/raises", backend.guard(self.raises)),
            web.post("/waits", backend.guard(self.waits, workload=self.workload, **one)),
            web.post("/waits/finish", backend.guard(self.waits, on_disconnect="finish", **one)),
            web.get("/streams", backend.guard(self.streams, workload=1.0)),
            web.get("/socket", backend.guard(self.socket, workload=5.0)),
            web.post("/keeps", backend.guard(self.keeps, workload=lambda upload: upload.size_bytes)),
            web.post("/asks", backend.guard(self.asks_the_model)),
            web.get("/bare", self.bare),
        ]

    async def bare(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"open": True, "payload": request.get("payload")})


@asynccontextmanager
async def with_bare_routes(tmp_path: Path) -> AsyncGenerator[tuple[System, Own], None]:
    own = Own()
    async with with_routes(tmp_path, own.routes) as system:
        yield system, own


async def test_a_bare_routes_status_decides_its_outcome(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, _):
        for status, how in (
            (201, {}),
            (404, {}),
            (500, {}),
            (200, {"outcome": "errored"}),
            (503, {"outcome": "served"}),
        ):
            assert (await call_signed(system, "POST", "/status", json={"status": status, **how}))[0] == status
        reported = [status for status, _ in await reported_outcomes(system, 5)]
        assert reported == ["Success", "Success", "Error", "Error", "Success"]
        await system.reported(served=4.0)
        assert (system.totals.cur_perf, system.model.requests) == (4.0, [])


@pytest.mark.parametrize("what", ["bug", "time", "client", "refused"])
async def test_an_exception_in_a_bare_route_is_a_500(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with with_bare_routes(tmp_path) as (system, _):
        headers = {"X-Request-Id": "mine-1"}
        status, said = await call_signed(system, "POST", "/raises", json={"what": what}, headers=headers)
        assert (status, said) == (500, {"error": "internal error", "request": "mine-1"})
        assert ("own" in caplog.text, await reported_outcomes(system)) == (True, [("Error", False)])


async def test_an_http_exception_of_a_bare_route_is_its_answer(tmp_path: Path) -> None:
    async with (
        with_bare_routes(tmp_path) as (system, _),
        system.http.post(
            system.url + "/raises", json={"what": "conflict"}, headers=system.header()
        ) as answer,
    ):
        assert (answer.status, await answer.text()) == (409, "not now")
        assert await reported_outcomes(system) == [("Success", True)]


async def test_bare_routes_wait_in_the_queue_with_their_own_workload(tmp_path: Path) -> None:
    async with (
        with_bare_routes(tmp_path) as (system, own),
        connected(system.url) as first,
        connected(system.url) as second,
    ):
        for client in (first, second):
            await client.post("/waits", b"{}", {**system.header(), "Content-Type": "application/json"})
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 2)
        assert system.last_report.cur_load == 8.0
        assert system.backend is not None
        assert (system.backend.lanes.waiting, system.backend.lanes.working) == (1, 1)
        own.go.set()
        for client in (first, second):
            assert (await client.answer())[1] == b"done"
        assert own.workloads == [{}, {}]
        await system.reported(served=8.0)


async def test_a_client_that_leaves_a_bare_route_cancels_it(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, own):
        async with connected(system.url) as client:
            await client.post("/waits", system.envelope())
            with anyio.fail_after(GUARD_S):
                await own.began.wait()
            client.leave()
            with anyio.fail_after(GUARD_S):
                await own.cancelled.wait()
        assert await reported_outcomes(system) == [("Cancelled", True)]
        own.began = anyio.Event()
        async with connected(system.url) as client:
            await client.post("/waits/finish", system.envelope())
            with anyio.fail_after(GUARD_S):
                await own.began.wait()
            client.leave()
        own.go.set()
        assert (await reported_outcomes(system, 2))[-1] == ("Success", True)


async def test_a_bare_route_may_stream(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, own), connected(system.url) as client:
        await send_raw(client, system, "GET /streams HTTP/1.1")
        assert (await client.head()).status == 200
        assert await client.chunk() == b"one"
        own.go.set()
        assert [await client.chunk(), await client.chunk()] == [b"two", b""]
        await send_raw(client, system, "GET /streams?raise=1 HTTP/1.1")
        await client.head()
        assert await client.rest() in (b"", b"3\r\none\r\n")  # no last chunk
        assert await reported_outcomes(system, 2) == [("Success", True), ("Error", False)]


async def test_a_bare_route_may_serve_a_web_socket(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, _):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="422"):
            await system.http.ws_connect(system.url + "/socket")
        async with system.http.ws_connect(system.url + "/socket", headers=system.header(9.0)) as ws:
            await ws.send_str("hello")
            assert await ws.receive_json() == {"got": "hello", "cost": 9.0}
        assert await reported_outcomes(system) == [("Success", True)]
        await system.reported(served=5.0)


async def test_a_bare_route_gets_an_upload(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, own):
        async with system.http.post(
            system.url + "/keeps?a=1&a=2&api_key=secret", data=b"12345", headers={**system.header(), **TEXT}
        ) as answer:
            assert (answer.status, await answer.text()) == (200, "12345 text/plain {'a': ['1', '2']}")
        await system.reported(served=5.0)
    assert [path.exists() for path in own.files] == [False]  # it may be deleted after the report


async def test_a_bare_route_may_call_the_model_server(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, _):
        assert await call_signed(system, "POST", "/asks") == (200, {"model": 200})
        await system.model.stop()
        assert (await call_signed(system, "POST", "/asks"))[0] == 500
        assert outcomes(system) == {"served": 1, "errored": 1}


async def test_a_bare_route_is_open_and_not_counted(tmp_path: Path) -> None:
    async with with_bare_routes(tmp_path) as (system, _):
        async with system.http.get(system.url + "/bare?a=1") as answer:
            assert (answer.status, await answer.json()) == (200, {"open": True, "payload": None})
        assert outcomes(system) == {}


# Declared


async def test_declared_handlers_have_methods_paths_and_queries(tmp_path: Path) -> None:
    handlers = [
        HandlerConfig("/items/{id}/echo", method=method, payload_class=varied_routes.Search)
        for method in ("GET", "PUT", "PATCH", "DELETE")
    ]
    plain = HandlerConfig("/plain/{id}/echo", method="GET")
    async with with_declared(tmp_path, *handlers, plain) as system:
        for method in ("GET", "DELETE"):
            got = await forwarded(system, method, "/items/a%2Fb/echo?limit=2&tags=x")
            assert got == (method, "/items/a%2Fb/echo?limit=2&exact=false&tags=x", "")
        for method in ("PUT", "PATCH"):
            assert (await forwarded(system, method, "/items/a/echo", json={"limit": 3}))[:2] == (
                method,
                "/items/a/echo",
            )
            assert json.loads(system.model.requests[-1].body)["limit"] == 3
        assert await forwarded(system, "GET", "/plain/a/echo?x=1&x=2&y=") == (
            "GET",
            "/plain/a/echo?x=1&x=2&y=",
            "",
        )
        assert await call_signed(system, "GET", "/items/a/echo?limit=x") == (
            422,
            {"payload": {"limit": "must be an integer"}},
        )
        async with connected(system.url) as client:
            await send_raw(client, system, "GET /plain/%2e%2e/echo HTTP/1.1")
            assert (await client.head()).status == 422
        await system.reported(served=2 + 2 + 3 + 3 + 100)


async def test_a_function_gets_the_urls_parameters(tmp_path: Path) -> None:
    def item(id: str, tags: str | list[str] = "none") -> dict[str, Any]:
        return {"id": id, "tags": tags}

    handler = HandlerConfig("/items/{id}", method="GET", remote_function=item)
    async with with_declared(tmp_path, handler, model=False) as system:
        for query, tags in (("", "none"), ("?tags=a", "a"), ("?tags=a&tags=b", ["a", "b"])):
            status, said = await call_signed(system, "GET", f"/items/%C3%BC{query}")
            assert (status, said) == (200, {"result": {"id": "ü", "tags": tags}})
        said = (200, {"result": {"id": "a", "tags": "none"}})
        assert await call_signed(system, "GET", "/items/a?unknown=c") == said


async def test_a_function_gets_an_upload(tmp_path: Path) -> None:
    paths: list[Path] = []

    def size(upload: Upload) -> list[Any]:
        paths.append(upload.path)
        return [upload.path.read_text(), upload.size_bytes]

    handler = HandlerConfig("/size", payload_class=varied_routes.Sound, remote_function=size)
    async with with_declared(tmp_path, handler, model=False) as system:
        said = await call_signed(system, "POST", "/size", data=b"123", headers=TEXT)
        assert said == (200, {"result": ["123", 3]})
        status, said = await call_signed(system, "POST", "/size", json={"upload": 1})
        assert (status, list(said["payload"])) == (422, ["body"])
        await system.reported(served=0.003)
        assert [path.exists() for path in paths] == [False]


def size_of(upload: Upload) -> int:
    return upload.size_bytes


def path_of(path: str) -> str:
    return path


def also(upload: Upload, more: int) -> int:
    return upload.size_bytes + more


@dataclass
class Either:
    """Accepts JSON and uploads."""

    size: int

    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> Either:
        return cls(json_msg["size"])

    @classmethod
    def from_upload(cls, upload: Upload) -> Either:
        return cls(upload.size_bytes)


@dataclass
class Named(Either):
    """Converts both to JSON, which a function gets as its keywords."""

    def generate_payload_json(self) -> dict[str, Any]:
        return {"size": self.size}


def double(size: int) -> int:
    return size * 2


NO_CALCULATOR = (
    "handler '/a': workload_calculator is given, but an upload has no JSON: use its class's count_workload"
)
NO_UPLOAD = "handler '/a': remote_function can't be called with upload= alone, as it is for an upload"


async def test_a_function_gets_an_upload_as_its_payload_class_converts_it(tmp_path: Path) -> None:
    handler = HandlerConfig("/double", payload_class=Named, remote_function=double)
    async with with_declared(tmp_path, handler, model=False) as system:
        assert await call_signed(system, "POST", "/double", data=b"123", headers=TEXT) == (200, {"result": 6})
        assert await call_signed(system, "POST", "/double", json={"size": 4}) == (200, {"result": 8})


@dataclass
class Refusing:
    """Refuses what it is made of, in each of the ways in which an author may."""

    size: int

    def __post_init__(self) -> None:
        if self.size == 3:
            raise ValueError("has 3")
        if self.size == 4:
            raise ValueError
        if self.size == 5:
            raise JsonDataException({"size": "is 5"})

    @classmethod
    def from_upload(cls, upload: Upload) -> Refusing:
        return cls(upload.size_bytes)


class ReadsItself(Refusing):
    @classmethod
    def from_json_msg(cls, json_msg: dict[str, Any]) -> ReadsItself:
        return cls(json_msg["size"])


class ReadsItselfHandler(PlainHandler):
    @classmethod
    def payload_cls(cls) -> Any:
        return ReadsItself


def parsed(json_msg: dict[str, Any]) -> dict[str, Any]:
    Refusing(json_msg["size"])
    return json_msg


@pytest.mark.parametrize(
    "handler",
    [
        HandlerConfig("/a", payload_class=ReadsItself, remote_function=size_of),
        HandlerConfig("/a", payload_class=ReadsItself),
        HandlerConfig("/a", handler_class=ReadsItselfHandler),
    ],
)
@pytest.mark.parametrize(("size", "problem"), [(3, "has 3"), (4, "is invalid"), (5, {"size": "is 5"})])
def test_json_and_uploads_are_refused_alike(
    handler: HandlerConfig, size: int, problem: Any, tmp_path: Path
) -> None:
    built = handler.build(None)
    upload = Upload(tmp_path, "image/png", size, {})
    envelope: dict[str, Any] = {"auth_data": {}, "payload": {"size": size}}
    parser = HandlerConfig("/a", request_parser=parsed).build(None)
    for read in (
        lambda: built.read_upload(upload),
        lambda: built.read_payload(envelope),
        lambda: parser.read_payload(envelope),
    ):
        with pytest.raises(JsonDataException) as refused:
            read()
        assert refused.value.message == {"payload": problem}


async def test_a_route_that_takes_files_says_so(tmp_path: Path) -> None:
    handler = HandlerConfig("/size", payload_class=Upload, remote_function=size_of)
    async with with_declared(tmp_path, handler, model=False) as system:
        image = {"Content-Type": "image/png"}
        for sent, problem in (
            ({"json": {"size": 4}}, TAKES_A_FILE),
            ({"data": b"", "headers": image}, f"is empty: {TAKES_A_FILE}"),
            ({"data": b"{}", "headers": {"Content-Type": "application/json"}}, TAKES_A_FILE),
        ):
            status, answer = await call_signed(system, "POST", "/size", **sent)
            assert (status, answer) == (422, {"payload": {"body": problem}})
        assert await call_signed(system, "POST", "/size", data=b"12", headers=image) == (200, {"result": 2})


@dataclass
class Tone(varied_routes.Sound):
    """The benchmark sends a file of the author's."""

    file: ClassVar[Path]

    @classmethod
    def for_test(cls) -> Tone:
        return cls(cls.file, "audio/wav", cls.file.stat().st_size, {})


async def test_the_benchmark_sends_uploads_of_the_payload_class(tmp_path: Path) -> None:
    Tone.file = tmp_path / "tone.wav"
    Tone.file.write_bytes(b"x" * 5000)
    handler = HandlerConfig("/echo", payload_class=Tone, benchmark_config=BenchmarkConfig(runs=1))
    async with with_declared(tmp_path, handler) as system:
        sent = system.model.requests[-1]
        assert (sent.path, sent.header("Content-Type"), sent.body) == ("/echo", "audio/wav", b"x" * 5000)
        assert system.last_report.max_perf > 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"route": "/a", "payload_class": Upload, "remote_function": size_of, "request_parser": dict},
            "handler '/a': request_parser is given, but an upload has no JSON: use its class's from_upload",
        ),
        (
            {"route": "/a", "payload_class": Upload, "remote_function": size_of, "workload_calculator": len},
            NO_CALCULATOR,
        ),
        (
            {"route": "/a", "payload_class": Either, "remote_function": size_of, "workload_calculator": len},
            NO_CALCULATOR,
        ),
        *(
            ({"route": "/a", "payload_class": kind, "remote_function": function}, NO_UPLOAD)
            for kind in (Upload, Either)
            for function in (path_of, also)
        ),
        *(
            (
                {
                    "route": "/a",
                    "payload_class": varied_routes.Sound,
                    "remote_function": size_of,
                    "benchmark_config": config,
                },
                f"handler '/a': its benchmark has a {given}, but an upload has no JSON: use its class's "
                "for_test",
            )
            for given, config in (
                ("dataset", BenchmarkConfig([{"a": 1}])),
                ("generator", BenchmarkConfig(generator=dict)),
            )
        ),
        *(
            (
                {"route": route, "remote_function": size_of},
                f"handler {route!r}: route {route!r} is not a path: it begins with '/', has parameters as "
                "{name}, and neither a query nor a space",
            )
            for route in ("/{a:.*}", "/{", "/{a", "/a}", "/{}", "/{1}", "/a?b=c", "/a b")
        ),
    ],
)
def test_impossible_declarations_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DeclarationRefused) as refused:
        Worker(WorkerConfig(handlers=[HandlerConfig(**fields)]))
    assert refused.value.problems == (said,)
