"""Requests of the engine's page of an API: signed, sent to a worker, and the answer as it comes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from lib.client import RouteAnswer
from lib.local.engine import LocalEngine
from lib.local.messages import BadMessage
from lib.local.serving import serve_engine
from lib.local.tried_requests import read_tried
from lib.local.worker_calls import send, worker_http
from tests.fakes.reports import READY
from tests.lib.local.test_descriptions import OPERATION, Asked, document, loopback_port
from tests.lib.local.test_openai_gateway import GatewayWorker, fake_worker
from tests.manual_clock import ManualClock
from tests.system import GUARD_S, PortLease, engine_key

TELL: dict[str, Any] = {
    "endpoint": "local",
    "method": "POST",
    "path": "/tell",
    "payload": {"text": "a"},
    "api_key": "any",
}
PICTURE = {"field": "file", "name": "a.png", "type": "image/png", "base64": base64.b64encode(b"png").decode()}


@dataclass
class Trying:
    """An engine, a worker that describes itself and its loopback port, and a client."""

    engine: LocalEngine
    url: str
    http: aiohttp.ClientSession
    worker: GatewayWorker
    port: Asked

    async def send(self, **changes: Any) -> tuple[dict[str, Any], bytes]:
        """The line about the worker's answer, and its body."""
        async with self.http.post(f"{self.url}/local/try", json={**TELL, **changes}) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "application/octet-stream"
            head, body, error = frames(await answer.read())
            assert error == ""
            return head, body

    async def refused(self, **changes: Any) -> tuple[int, str]:
        """The status and the text of the engine's own error, which leaves no request open."""
        async with self.http.post(f"{self.url}/local/try", json={**TELL, **changes}) as answer:
            error = (await answer.json())["error"]
            assert len(self.engine.open_requests) == 0
            return answer.status, error


def frames(answer: bytes) -> tuple[dict[str, Any], bytes, str]:
    """The first line of an answer of the engine's, the body of the worker's answer, and what cut it off."""
    read = io.BytesIO(answer)
    head, body = json.loads(read.readline()), b""
    while length := int(read.readline()):
        body += read.read(length)
    (error,) = json.loads(read.readline()).values()
    assert read.read() == b""
    return {**head, "sent": json.loads(head["sent"])}, body, error


@asynccontextmanager
async def trying(api_key: str | None = None) -> AsyncGenerator[Trying, None]:
    engine = LocalEngine(api_key=api_key, clock=ManualClock(), key=engine_key())
    async with (
        fake_worker() as worker,
        loopback_port({}) as port,
        serve_engine(engine) as url,
        aiohttp.ClientSession() as http,
    ):
        whole = document(worker.url, tell=OPERATION)
        whole["paths"]["/voices/{id}"] = dict.fromkeys(("get", "delete", "put"), OPERATION)
        port.body = whole
        engine.take_report("local", replace(READY, url=worker.url), port.url)
        yield Trying(engine, url, http, worker, port)


@asynccontextmanager
async def raw_worker(answer: bytes) -> AsyncGenerator[Trying, None]:
    """An engine whose worker answers with these bytes, and closes the connection."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    async with trying() as here, await asyncio.start_server(answering, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        here.port.body = document(url, tell=OPERATION)
        here.engine.take_report("local", replace(READY, url=url), here.port.url)
        yield here


async def test_json_is_sent_in_a_signed_envelope() -> None:
    async with trying() as here:
        head, body = await here.send(cost=5)
        (received,) = here.worker.received
        envelope = json.loads(received.body)
        assert (received.method, received.path) == ("POST", "/tell")
        assert "X-Vast-Auth" not in received.headers
        assert envelope == head["sent"]
        assert envelope["payload"] == {"text": "a"}
        auth_data = envelope["auth_data"]
        signed = here.engine.sign(url=here.worker.url, cost=5, reqnum=auth_data["reqnum"], endpoint="local")
        assert auth_data["signature"] == signed["signature"]
        assert (head["status"], head["reason"], head["in_header"]) == (200, "OK", False)
        assert head["url"] == f"{here.worker.url}/tell"
        assert ["Content-Type", "application/json; charset=utf-8"] in head["headers"]
        assert json.loads(body) == {"number": 1}


async def test_the_payload_of_a_get_is_the_query() -> None:
    async with trying() as here:
        for method in ("GET", "DELETE"):
            head, _ = await here.send(
                method=method,
                path="/voices/{id}",
                path_values={"id": "a/b c?"},
                payload={"limit": "3", "tag": ["x", "y"]},
            )
            received = here.worker.received[-1]
            assert (received.method, received.path) == (
                method,
                "/voices/a%2Fb%20c%3F?limit=3&tag=x&tag=y",
            )
            assert (received.auth, received.body) == (head["sent"], b"")
            assert head["in_header"]


async def test_a_put_has_an_envelope_too() -> None:
    async with trying() as here:
        await here.send(method="PUT", path="/voices/{id}", path_values={"id": "7"})
        (received,) = here.worker.received
        assert (received.path, json.loads(received.body)["payload"]) == ("/voices/7", {"text": "a"})


async def test_files_are_fields_of_a_form_with_the_payloads() -> None:
    async with trying() as here:
        head, _ = await here.send(payload={"n": 3}, files=[PICTURE, PICTURE, {**PICTURE, "field": "mask"}])
        (received,) = here.worker.received
        assert received.headers["Content-Type"].startswith("multipart/form-data; boundary=")
        assert received.body.count(b'name="file"; filename="a.png"') == 2
        assert received.body.count(b'name="mask"; filename="a.png"') == 1
        assert received.body.count(b"Content-Type: image/png\r\n") == 3
        assert received.body.count(b"\r\n\r\npng\r\n") == 3
        assert b'name="n"\r\n\r\n3\r\n' in received.body
        assert received.auth == head["sent"]


async def test_a_file_without_a_field_is_the_whole_body() -> None:
    async with trying() as here:
        await here.send(payload={"n": 3}, files=[{**PICTURE, "field": ""}])
        (received,) = here.worker.received
        assert (received.path, received.body) == ("/tell?n=3", b"png")
        assert received.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("status", [302, 401, 422, 429, 500, 503])
async def test_a_refusal_is_told_as_a_client_gets_it(status: int) -> None:
    async with trying() as here:
        here.worker.answer_with(status, '{"error": "no"}', Retry_After="7", Set_Cookie="a=b", Location="/")
        head, body = await here.send()
        assert (head["status"], body) == (status, b'{"error": "no"}')
        assert ["Retry-After", "7"] in head["headers"]
        assert len(here.engine.open_requests) == 0


async def test_no_header_of_a_workers_becomes_the_engines() -> None:
    async with trying() as here:
        here.worker.answer_with(200, "<script>", "text/html", Set_Cookie="a=b", X_Other="1")
        async with here.http.post(f"{here.url}/local/try", json=TELL) as answer:
            assert not {"Set-Cookie", "X-Other"} & set(answer.headers)
            assert answer.content_type == "application/octet-stream"


async def test_an_answer_is_passed_on_as_it_comes() -> None:
    more = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first")
        await more.wait()
        await response.write(b"last")
        return response

    async with trying() as here:
        here.worker.answer = slowly
        async with here.http.post(f"{here.url}/local/try", json=TELL) as answer:
            head = json.loads(await answer.content.readline())
            assert head["status"] == 200
            auth_data = json.loads(head["sent"])["auth_data"]
            routing = here.engine.open_requests.routing(auth_data["request_idx"])
            assert routing is not None
            assert (routing.route, routing.status) == ("POST /tell", 200)  # for the engine's other page
            assert await answer.content.readexactly(7) == b"5\nfirst"
            more.set()
            assert await answer.content.read() == b'4\nlast0\n{"error": ""}\n'


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"Content-Length: 100\r\n\r\nfirst", b"first"),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n", b"first"),
        (b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde", b""),
    ],
)
async def test_that_an_answer_broke_off_is_told_at_its_end(rest: bytes, body: bytes) -> None:
    async with raw_worker(b"HTTP/1.1 200 OK\r\n" + rest) as here:
        async with here.http.post(f"{here.url}/local/try", json=TELL) as answer:
            assert answer.status == 200
            _, received, error = frames(await answer.read())
        assert received == body
        assert error.startswith("the worker's answer ended early: ")
        assert len(here.engine.open_requests) == 0


async def test_a_page_that_stops_its_request_leaves_the_worker() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def waiting(request: web.Request) -> web.StreamResponse:
        asked.set()
        assert request.transport is not None
        while not request.transport.is_closing():
            await anyio.lowlevel.checkpoint()
        left.set()
        return web.Response()

    async with trying() as here:
        here.worker.answer = waiting
        sending = asyncio.create_task(here.send())
        with anyio.fail_after(GUARD_S):
            await asked.wait()
            sending.cancel()
            await left.wait()
        await here.engine.wait_for(lambda: not len(here.engine.open_requests))


async def test_routes_that_no_worker_describes_cannot_be_tried() -> None:
    async with trying() as here:
        for method, path in (
            ("POST", "/session/create"),
            ("POST", "/pyworker/update"),
            ("GET", "/tell"),
            ("GET", "/voices/7"),
            ("POST", "/tell/../status"),
        ):
            status, error = await here.refused(method=method, path=path)
            assert status == 404
            assert f"describes no route {method} {path}" in error
        assert here.worker.received == []


async def test_a_parameter_of_the_path_leads_nowhere_else() -> None:
    async with trying() as here:
        for value in ("..", "a/../b", "", None):
            status, _ = await here.refused(method="GET", path="/voices/{id}", path_values={"id": value})
            assert status == 400
        assert here.worker.received == []


async def test_no_worker() -> None:
    async with trying() as here:
        assert await here.refused(endpoint="nope") == (404, "no worker has joined the endpoint 'nope'")
        here.engine.retire(7)
        status, error = await here.refused()
        assert (status, error) == (503, "Worker 7 is stopped: stopped by --autoscale.")


async def test_a_worker_that_is_not_ready() -> None:
    async with trying() as here:
        here.engine.take_report("local", replace(READY, url=here.worker.url, loadtime=0.0), here.port.url)
        assert await here.refused() == (503, "no worker of 'local' is ready: 1 loading")


async def test_a_worker_that_cannot_be_reached_gives_way_to_another() -> None:
    lease = PortLease()
    lease.close()
    nobody = f"http://127.0.0.1:{lease.port}"
    async with trying() as here:
        here.engine.take_report("local", replace(READY, id=1, url=nobody, max_perf=1e6))
        head, _ = await here.send()
        assert head["url"] == f"{here.worker.url}/tell"
        here.engine.retire(7)
        status, error = await here.refused()
        assert status == 502
        assert f"the worker at {nobody} could not be reached" in error


async def test_a_worker_that_closes_before_it_answers() -> None:
    async def closing(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with trying() as here:
        here.worker.answer = closing
        status, error = await here.refused()
        assert (status, "closed the connection before it answered" in error) == (502, True)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"nonsense\r\n\r\n", "Bad status line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        (b"", "closed the connection before it answered"),
    ],
)
async def test_an_answer_that_is_no_http_is_told(answer: bytes, why: str) -> None:
    async with raw_worker(answer) as here:
        status, error = await here.refused()
        assert (status, why in error) == (502, True), error


@pytest.mark.parametrize("target", ["@127.0.0.1:{}/x", ":99999999/x", "..", "\\@x", "[", "x"])
async def test_a_target_leads_to_no_other_host(target: str) -> None:
    """Whoever makes it: descriptions with such paths are refused too."""
    async with trying() as here, await worker_http(here.engine) as http:
        worker = RouteAnswer("http://127.0.0.1:9", 1, {})
        target = target.format(here.worker.url.rpartition(":")[2])
        with pytest.raises(BadMessage, match=r"leads to another host|makes no URL"):
            await send(here.engine, http, worker, "POST", target)
        assert here.worker.received == []


async def test_the_key_is_needed_where_there_is_one() -> None:
    async with trying(api_key="secret") as here:
        assert await here.refused(api_key="other") == (401, "wrong API key")
        assert (await here.refused(api_key=None))[0] == 401
        head, _ = await here.send(api_key="secret")
        assert head["status"] == 200


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"method": "CONNECT"}, "method must be one of"),
        ({"endpoint": None}, "endpoint must be a string"),
        ({"path": 3}, "path must be a string"),
        ({"payload": []}, "payload must be an object"),
        ({"path_values": "x"}, "path_values must be an object"),
        ({"cost": -1}, "cost must be 0 or more"),
        ({"files": {}}, "files must be a list of objects"),
        ({"files": [{**PICTURE, "base64": "é"}]}, "files[0].base64 must be base64"),
        ({"files": [{**PICTURE, "type": "a\r\nb: c"}]}, "files[0].type must be a media type"),
        ({"files": [{**PICTURE, "name": None}]}, "files[0].name must be a string"),
        ({"method": "GET", "files": [PICTURE]}, "files can't be sent by GET"),
        ({"files": [PICTURE, {**PICTURE, "field": ""}]}, "files must all have a field"),
    ],
)
def test_what_is_wrong_is_named(changes: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(BadMessage, match=problem.replace("[", r"\[")):
        read_tried(json.dumps({**TELL, **changes}).encode())


LONE = "\ud800"
FIELD_VALUES: list[object] = ["x", None, ["x"], {}]
GET: dict[str, Any] = {"method": "GET", "path": "/voices/{id}", "path_values": {"id": "a"}}


UNSENDABLE: list[tuple[dict[str, Any], str]] = [
    ({**GET, "payload": {"q": LONE}}, "payload has a lone surrogate"),
    ({**GET, "payload": {LONE: "q"}}, "payload has a lone surrogate"),
    ({**GET, "payload": {"q": ["a", LONE]}}, "payload has a lone surrogate"),
    ({**GET, "path_values": {"id": LONE}}, "path_values has a lone surrogate"),
    ({**GET, "method": "PUT", "path_values": {"id": LONE}}, "path_values has a lone surrogate"),
    ({"files": [PICTURE], "payload": {"q": LONE}}, "payload has a lone surrogate"),
    ({"files": [{**PICTURE, "field": ""}], "payload": {"q": LONE}}, "payload has a lone surrogate"),
    ({"files": [{**PICTURE, "name": LONE}]}, "files[0].name must have no control characters"),
    ({"files": [{**PICTURE, "field": LONE}]}, "files[0].field must have no control characters"),
    *(
        (changes, problem)
        for wrong in ("a\r\nX: y", "a\nb", "\0", "\x7f")
        for changes, problem in (
            ({"files": [{**PICTURE, "name": wrong}]}, "files[0].name must have no control characters"),
            ({"files": [{**PICTURE, "field": wrong}]}, "files[0].field must have no control characters"),
            ({"files": [PICTURE], "payload": {wrong: "b"}}, "payload has a name that can't be in a form"),
        )
    ),
    *(
        (
            {"files": [PICTURE], "payload": {"file": value}},
            "files name a field of the payload too: 'file'",
        )
        for value in FIELD_VALUES
    ),
]


@pytest.mark.parametrize(("changes", "problem"), UNSENDABLE)
async def test_what_cannot_be_sent_is_refused(changes: Mapping[str, Any], problem: str) -> None:
    async with trying() as here:
        status, error = await here.refused(**changes)
        assert (status, error.startswith(problem)) == (400, True), error
        assert here.worker.received == []


async def test_what_a_form_and_an_envelope_may_have() -> None:
    async with trying() as here:
        await here.send(payload={LONE: f"a\r\n{LONE}"})
        assert json.loads(here.worker.received[-1].body)["payload"] == {LONE: f"a\r\n{LONE}"}
        name = "Bildschirmfoto\u202f\u00e4.png"  # as macOS names them
        await here.send(files=[{**PICTURE, "name": name}], payload={"text": "a\r\nb", "more": {"a": [1]}})
        body = here.worker.received[-1].body
        assert b'name="text"\r\n\r\na\r\nb\r\n' in body
        assert b'name="more"\r\n\r\n{"a": [1]}\r\n' in body  # as `pyworker request` sends it


async def test_numbers_are_sent_as_they_came() -> None:
    payload = '{"seed": 18446744073709551615, "scale": 7.0}'
    text = json.dumps({**TELL, "payload": "PAYLOAD"}).replace('"PAYLOAD"', payload)
    async with trying() as here:
        async with here.http.post(
            f"{here.url}/local/try", data=text, headers={"Content-Type": "application/json"}
        ) as answer:
            head = json.loads(await answer.content.readline())
        assert payload.encode() in here.worker.received[-1].body
        assert head["sent"].encode() == here.worker.received[-1].body
