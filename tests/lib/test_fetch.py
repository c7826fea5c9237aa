"""Files by URL, from real servers on loopback addresses, of which some are allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import web

from lib.errors import SettingsError
from lib.fetch import FetchLimits, fetched
from lib.files import BadFile
from lib.runtime.hosts import is_public_address
from lib.runtime.settings import EnvironmentReader

ALLOWED = FetchLimits(max_bytes=1000, networks=(ip_network("127.0.0.1/32"),))
REFUSED = "could not be fetched: its address is not a public one"
UNREACHED = "could not be fetched: no connection, or no valid answer"


class FileServer:
    """A server on 127.0.0.1 of files, redirects and answers that are too large or never end."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.headers = dict(request.headers)
        if "to" in request.query:
            return web.Response(status=302, headers={"Location": request.query["to"], "Set-Cookie": "a=b"})
        if request.path == "/loop":
            return web.Response(status=307, headers={"Location": "/loop"})
        if request.path == "/missing":
            return web.Response(status=404, text="secret")
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        if request.path == "/endless":
            await asyncio.Event().wait()
        size_bytes = int(request.query.get("size", "3"))
        for _ in range(size_bytes // 100):
            await response.write(b"x" * 100)
        await response.write(b"x" * (size_bytes % 100))
        return response


@asynccontextmanager
async def file_server() -> AsyncGenerator[FileServer, None]:
    server = FileServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


async def refusal(url: str, limits: FetchLimits = ALLOWED) -> str:
    with pytest.raises(BadFile) as raised:
        async with fetched(url, limits):
            pass
    return str(raised.value)


@pytest.mark.parametrize(
    ("path", "filename"),
    [
        ("/a/photo.jpg?key=1", "photo.jpg"),
        ("/photo", "photo.png"),
        ("/", "file.png"),
        ("/%2e%2e%2fx.png", "x.png"),
    ],
)
async def test_a_file_is_on_disk_while_it_is_used(path: str, filename: str) -> None:
    async with file_server() as server:
        async with fetched(server.url + path, ALLOWED) as file:
            assert (file.filename, file.content_type) == (filename, "image/png")
            assert file.path.read_bytes() == b"xxx"
        assert not file.path.exists()


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.0.0.2",
            "localhost",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0.0.0.0",
        ),
        *("[::1]", "[::ffff:127.0.0.1]", "[::]", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]"),
        "[2002:7f00:1::]",
    ],
)
async def test_no_private_address_is_reached_however_it_is_written(host: str) -> None:
    async with file_server() as server:
        port = server.url.rpartition(":")[2]
        assert (await refusal(f"http://{host}:{port}/", FetchLimits())).startswith("could not be fetched: ")
        assert server.asked == []


async def test_a_refused_address_is_told_without_naming_it() -> None:
    async with file_server() as server:
        assert await refusal(server.url, FetchLimits()) == REFUSED
        unlisted = server.url.replace("127.0.0.1", "127.0.0.2")
        assert await refusal(unlisted) == REFUSED
        async with fetched(server.url.replace("127.0.0.1", "localhost"), ALLOWED) as file:
            assert file.path.read_bytes() == b"xxx"  # of its addresses, the listed one


async def test_every_redirect_is_checked() -> None:
    async with file_server() as server:
        async with fetched(f"{server.url}/?to=/found.png", ALLOWED) as file:
            assert file.filename == "found.png"
        assert "Cookie" not in server.headers
        for target in ("http://127.0.0.2/", "http://[::1]/", "http://10.0.0.1/", "//127.0.0.2/"):
            assert await refusal(f"{server.url}/?to={target}") == REFUSED, target
        assert await refusal(f"{server.url}/?to=file:///etc/passwd") == UNREACHED
        assert await refusal(f"{server.url}/?to=http://2130706434/") in (REFUSED, UNREACHED)
        assert "more than 5 redirects" in await refusal(f"{server.url}/loop")


async def test_a_large_a_slow_and_a_missing_file(tmp_path: Path) -> None:
    async with file_server() as server:
        assert await refusal(f"{server.url}/?size=1001") == "has more than 1000 bytes"
        async with fetched(f"{server.url}/?size=1000", ALLOWED) as file:
            assert file.path.stat().st_size == 1000
        slow = FetchLimits(max_s=0.05, networks=ALLOWED.networks)
        assert await refusal(f"{server.url}/endless", slow) == "could not be fetched within 0.05 s"
        assert await refusal(f"{server.url}/missing") == "could not be fetched: its server answered 404"
        port = server.url.rpartition(":")[2]
    assert await refusal(f"http://127.0.0.1:{port}/") == UNREACHED


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/", "http://", "http://a b/", "", "data:,x"])
async def test_only_http_urls(url: str) -> None:
    assert await refusal(url) == "must be an http or https URL"


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::"])
def test_public_addresses(address: str) -> None:
    assert is_public_address(address)


def test_the_limits_in_the_environment() -> None:
    names = ("INPUT_MAX_BYTES", "INPUT_TIMEOUT_S", "INPUT_NETWORKS")
    read = EnvironmentReader(dict(zip(names, ("5", "1.5", "10.0.0.0/8, ::1"), strict=True)))
    assert FetchLimits.from_env(read) == FetchLimits(5, 1.5, (ip_network("10.0.0.0/8"), ip_network("::1")))
    assert FetchLimits.from_env(EnvironmentReader({})) == FetchLimits()
    wrong = EnvironmentReader(dict.fromkeys(names, "?"))
    FetchLimits.from_env(wrong)
    with pytest.raises(SettingsError) as raised:
        wrong.finish()
    assert all(name in str(raised.value) for name in names)
