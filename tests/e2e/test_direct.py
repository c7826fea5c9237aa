"""Requests that the worker carries itself: what is forwarded, and what author code sees of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from lib.backend import Backend, Exchange, Observer
from lib.data_types import EndpointHandler
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup, build
from tests.system import System, with_worker_task

AS_IT_CAME = '{ "n":1.0,  "text" : "\\u00e9\\n",\t"list":[1e2, -0.0, 12345678901234567890] }'


class Echo(EndpointHandler[dict[str, Any]]):
    """Forwards any payload."""

    @property
    def endpoint(self) -> str:
        return "/echo"

    @classmethod
    def payload_cls(cls) -> type[dict[str, Any]]:
        return dict


class Adding(Echo):
    """Forwards another object."""

    def generate_payload_json(self, payload: dict[str, Any]) -> Any:
        return {**payload, "added": True}


class Changing(Echo):
    """Changes the client's object in place."""

    def generate_payload_json(self, payload: dict[str, Any]) -> Any:
        payload["list"].append("changed")
        return payload


def with_route(handler: EndpointHandler[Any], *observers: Observer) -> Callable[..., Any]:
    """A worker that also has the route /own of `handler`."""

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = build(model_url, setup)
        backend.observers += observers
        return backend, [*routes, web.post("/own", backend.create_handler(handler))]

    return make


async def forwarded(system: System, payload: str, in_header: bool) -> bytes:
    """The body that the model server has received for `payload`, whose text is sent unchanged."""
    if in_header:
        headers = {**system.header(1.0), "Content-Type": "application/json"}
        body = payload.encode()
    else:
        headers = {"Content-Type": "application/json"}
        body = f'{{"payload": {payload} , "auth_data":{json.dumps(system.auth())}}}'.encode()
    async with system.http.post(system.url + "/own", data=body, headers=headers) as answer:
        assert answer.status == 200
    return system.model.requests[-1].body


async def test_a_payload_is_forwarded_as_the_bytes_that_came(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_route(Echo()), carrier="direct") as system:
        assert await forwarded(system, AS_IT_CAME, False) == AS_IT_CAME.encode()
        nested = '{"messages": [{"role":"user","content":[{"type" : "text"}]}], "é": "\\ud83d\\ude00"}'
        assert await forwarded(system, nested, False) == nested.encode()


@pytest.mark.parametrize("in_header", [False, True])
async def test_header_authentication_forwards_the_same_values(tmp_path: Path, in_header: bool) -> None:
    async with with_worker_task(tmp_path, make=with_route(Echo())) as system:
        assert json.loads(await forwarded(system, AS_IT_CAME, in_header)) == json.loads(AS_IT_CAME)


DOUBTFUL: list[tuple[str, Any]] = [
    ('{"a": 1,  "a": 2}', {"a": 2}),
    ('{"list": [ {"b": 1, "b": {}} ]}', {"list": [{"b": {}}]}),
    ('{"a":  "\\ud800"}', {"a": "\ud800"}),
    ('{"a":  Infinity}', {"a": float("inf")}),
]


@pytest.mark.parametrize(("payload", "sent"), DOUBTFUL)
async def test_what_another_parser_could_read_differently_is_written_anew(
    tmp_path: Path, payload: str, sent: Any
) -> None:
    async with with_worker_task(tmp_path, make=with_route(Echo())) as system:
        body = await forwarded(system, payload, False)
        assert body != payload.encode()
        assert json.loads(body) == sent


@pytest.mark.parametrize(
    ("handler", "sent"),
    [(Adding(), {"list": [1], "added": True}), (Changing(), {"list": [1, "changed"]})],
)
async def test_what_the_handler_has_changed_is_sent(
    tmp_path: Path, handler: EndpointHandler[Any], sent: Any
) -> None:
    async with with_worker_task(tmp_path, make=with_route(handler)) as system:
        assert json.loads(await forwarded(system, '{"list":  [1]}', False)) == sent


class Looking(Observer):
    """Reads what observers may read of a request, at its end."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def ended(self, exchange: Exchange) -> None:
        request = exchange.request
        self.seen = {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "agent": request.headers["User-Agent"],
            "remote": request.remote,
            "cost": request["auth_data"].cost,
            "payload": request["payload"],
            "id": exchange.id,
            "parameters": dict(cast("dict[str, str]", request.match_info)),
        }


async def test_observers_see_the_request_as_aiohttp_s(tmp_path: Path) -> None:
    looking = Looking()
    async with with_worker_task(tmp_path, make=with_route(Echo(), looking)) as system:
        body = json.dumps({"auth_data": system.auth(3.0), "payload": {"x": 1}}).encode()
        head = b"POST /own?a=1&api_key=secret HTTP/1.1\r\nHost: w\r\nUser-Agent: test\r\nX-Request-Id: r1\r\n"
        async with connected(system.url) as client:
            await client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert (await client.answer())[0].status == 200
        await system.reported(served=100.0)
    assert looking.seen == {
        "method": "POST",
        "path": "/own",
        "query": {"a": "1"},
        "agent": "test",
        "remote": "127.0.0.1",
        "cost": 3.0,
        "payload": {"x": 1},
        "id": "r1",
        "parameters": {},
    }


class RaisingScanner:
    """Raises an exception with an answer of its own, at a stream's first part or at its end."""

    def __init__(self, where: str) -> None:
        self._where = where

    def add(self, chunk: bytes) -> None:
        if self._where == "add":
            raise web.HTTPBadRequest(text="a second answer")

    def outcome(self, status: int) -> str | None:
        if self._where == "outcome":
            raise web.HTTPBadRequest(text="a second answer")
        return None


@dataclass
class Scanned(Echo):
    """Passes on what the model server answers at `path`, with a scanner that raises."""

    where: str = "add"

    @property
    def endpoint(self) -> str:
        return "/stream"

    def scan_answer(self) -> Any:
        return RaisingScanner(self.where)


@pytest.mark.parametrize("where", ["add", "outcome"])
async def test_a_scanner_that_raises_makes_no_second_answer(tmp_path: Path, where: str) -> None:
    async with with_worker_task(tmp_path, make=with_route(Scanned(where=where))) as system:
        system.model.release()
        async with connected(system.url) as client:
            await client.post("/own", system.envelope())
            received = await client.rest()
        assert received.count(b"HTTP/1.1") <= 1
        assert b"second answer" not in received or received.startswith(b"HTTP/1.1 400")
        await system.reported()
        assert system.engine.finished == [] or not system.engine.finished[0].request.success


async def test_of_two_routes_with_one_path_the_first_counts(tmp_path: Path) -> None:
    async def mine(request: web.Request) -> web.Response:
        return web.Response(text="mine")

    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        backend, routes = build(model_url, setup)
        second = web.post("/own", backend.create_handler(Echo()))
        return backend, [web.route("*", "/own", mine), *routes, second]

    async with with_worker_task(tmp_path, make=make) as system:
        assert await system.call("/own") == (200, b"mine")


async def test_a_deeply_nested_payload_is_forwarded(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_route(Echo())) as system:
        payload = '{"a":' * 600 + "1" + "}" * 600
        assert json.loads(await forwarded(system, payload, False)) == json.loads(payload)


class Refusing(Echo):
    """Raises an answer of its own in place of a message."""

    def generate_payload_json(self, payload: dict[str, Any]) -> Any:
        refusal = web.HTTPBadRequest(
            text="é", reason="Own words", headers={"Content-Length": "2", "X-A": "1"}
        )
        refusal.set_cookie("tried", "1")
        raise refusal


async def test_an_answer_that_a_handler_raises_is_sent_as_it_is(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=with_route(Refusing())) as system:
        async with connected(system.url) as client:
            await client.post("/own", system.envelope(), {"Connection": "close"})
            head, body = await client.answer()
        assert (head.status, body, head.headers["x-a"]) == (400, "é".encode(), "1")
        assert head.headers["set-cookie"] == "tried=1; Path=/"
        assert head.names.count("content-length") == 1
