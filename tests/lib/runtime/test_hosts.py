"""Which hosts and origins a port may be asked for."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.errors import refusals_as_json
from lib.runtime.hosts import HostGuard, parse_host_port
from tests.fakes.raw_client import connected

OWN_NAME = socket.gethostname().lower()
MALFORMED = (
    *("", ":80", ".", "..", "a..b", "a:", "a:b", "a:123456", "a:1:2", "::1", "[::1", "[]", "[a]"),
    *("localhost@evil.example", "localhost/", "localhost?", "local host", "localhost\t", "%6cocalhost"),
    *("[fe80::1%25eth0]", "localhost,evil.example", "l\u00f6calhost", "localhost#"),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", None)),
        ("LOCALHOST.:80", ("localhost", 80)),
        ("127.0.0.1:8081", ("127.0.0.1", 8081)),
        ("[::1]", ("::1", None)),
        ("[FD00::1]:1", ("fd00::1", 1)),
        ("a_b-c.example", ("a_b-c.example", None)),
        *((text, None) for text in MALFORMED),
    ],
)
def test_authorities(text: str, expected: tuple[str, int | None] | None) -> None:
    assert parse_host_port(text) == expected


LOOPBACK = ("localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")
ADDRESSES = ("10.0.0.1", "8.8.8.8", "fd00::1", "0.0.0.0")
PRIVATE = ("worker", "worker.default.svc", "worker.default.svc.cluster.local", "a.internal", "printer.local")
PUBLIC = ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "127.1", "0x7f.1")


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "localhost"])
def test_a_loopback_port_is_asked_for_by_loopback_hosts_only(bound: str) -> None:
    for guard in (HostGuard(bound), HostGuard(bound, private_names=True)):
        assert all(map(guard.allows, LOOPBACK))
        assert not any(map(guard.allows, {*ADDRESSES, *PRIVATE, *PUBLIC, OWN_NAME} - {"localhost"}))


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.0.0.1", "Bound.example"])
def test_another_port_is_asked_for_by_addresses_and_its_own_names_too(bound: str) -> None:
    guard = HostGuard(bound)
    assert all(map(guard.allows, (*LOOPBACK, *ADDRESSES, bound.lower(), OWN_NAME)))
    assert not any(map(guard.allows, {*PRIVATE, *PUBLIC} - {OWN_NAME}))
    guard = HostGuard(bound, private_names=True)
    assert all(map(guard.allows, PRIVATE))
    assert not any(map(guard.allows, PUBLIC))


def test_names_are_allowed_in_any_case() -> None:
    guard = HostGuard("127.0.0.1", ["Engine.Example."])
    assert guard.allows("engine.example")
    assert not guard.allows("evil.example")


@asynccontextmanager
async def guarded(names: Sequence[str] = ()) -> AsyncGenerator[str, None]:
    app = web.Application(middlewares=[refusals_as_json, HostGuard("127.0.0.1", names).middleware])

    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    app.router.add_get("/", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/"))


@pytest.mark.parametrize(
    ("target", "version", "fields", "status"),
    [
        ("/", "1.1", ["Host: localhost"], 200),
        ("/", "1.1", ["Host: LOCALHOST.:99"], 200),
        ("/", "1.1", ["Host: [::1]:99"], 200),
        ("/", "1.1", ["Host: mine.example"], 200),
        ("/", "1.1", ["Host: evil.example"], 421),
        ("/", "1.1", ["Host: localhost.evil.example"], 421),
        ("/", "1.1", ["Host: "], 421),
        ("/", "1.1", [], 400),
        ("/", "1.0", [], 200),
        ("/", "1.0", ["Host: evil.example"], 421),
        ("/", "1.1", ["Host: localhost", "Host: localhost"], 400),
        ("/", "1.1", ["Host: localhost", "Host: evil.example"], 400),
        ("http://localhost/", "1.1", ["Host: localhost"], 200),
        ("http://evil.example/", "1.1", ["Host: localhost"], 421),
        ("HTTP://EVIL.example/", "1.1", ["Host: localhost"], 421),
        ("http://localhost/", "1.1", ["Host: evil.example"], 421),
        ("/", "1.1", ["Host: localhost", "Origin: http://localhost"], 200),
        ("/", "1.1", ["Host: localhost:80", "Origin: http://LOCALHOST"], 200),
        ("/", "1.1", ["Host: localhost:99", "Origin: http://localhost:99"], 200),
        ("/", "1.1", ["Host: [::1]:99", "Origin: http://[::1]:99"], 200),
        ("/", "1.1", ["Host: localhost:99", "Origin: https://mine.example"], 200),
        ("/", "1.1", ["Host: localhost:99", "Origin: http://localhost:98"], 403),
        ("/", "1.1", ["Host: localhost:99", "Origin: http://localhost"], 403),
        ("/", "1.1", ["Host: localhost:99", "Origin: http://127.0.0.1:99"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: null"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: "], 403),
        ("/", "1.1", ["Host: localhost", "Origin: localhost"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: file://localhost"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: http://localhost@evil.example"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: http://localhost.evil.example"], 403),
        ("/", "1.1", ["Host: localhost", "Origin: http://localhost", "Origin: http://evil.example"], 403),
        ("/", "1.0", ["Origin: http://localhost"], 403),
    ],
)
async def test_requests(target: str, version: str, fields: list[str], status: int) -> None:
    async with guarded(["mine.example"]) as url, connected(url) as client:
        lines = "".join(f"{field}\r\n" for field in fields)
        await client.send(f"GET {target} HTTP/{version}\r\n{lines}\r\n".encode())
        assert (await client.head()).status == status
