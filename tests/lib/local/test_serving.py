"""Addresses the local engine listens on, the line it prints, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket

import aiohttp
import pytest
from Crypto.PublicKey import RSA

from lib.local.engine import LocalEngine
from lib.local.serving import CannotListen, run_engine, serve_engine
from tests.guard import GUARD_S
from tests.keys import new_key


@pytest.fixture(scope="module")
def key() -> RSA.RsaKey:
    return new_key(2048)


async def answers(url: str) -> bool:
    async with aiohttp.ClientSession() as http, http.get(url + "/pubkey/") as response:
        return response.status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
async def test_the_url_answers(key: RSA.RsaKey, host: str) -> None:
    async with serve_engine(LocalEngine(key=key), host) as url:
        assert await answers(url)


async def test_ipv6_hosts_are_bracketed(key: RSA.RsaKey) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with serve_engine(LocalEngine(key=key), "::1") as url:
        assert url.startswith("http://[::1]:")
        assert await answers(url)


async def test_a_busy_port_is_a_one_line_error(key: RSA.RsaKey) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        with pytest.raises(CannotListen) as raised:
            await run_engine("127.0.0.1", port)
    assert str(raised.value) == f"port {port} on 127.0.0.1 is in use: choose another with --port"
    assert raised.value.exit_status == 2


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no such host", 0)])
async def test_an_invalid_address_is_a_one_line_error(key: RSA.RsaKey, host: str, port: int) -> None:
    with pytest.raises(CannotListen) as raised:
        async with serve_engine(LocalEngine(key=key), host, port):
            pass
    assert "--port or --host" in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_hundreds_of_connections_may_wait_to_be_accepted(key: RSA.RsaKey) -> None:
    async with serve_engine(LocalEngine(key=key)) as url:
        port = int(url.rsplit(":", 1)[1])
        with contextlib.ExitStack() as clients:
            for _ in range(300):  # without a turn of the engine's event loop
                clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.5))


async def test_run_engine_prints_its_address_in_one_line() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.ensure_future(
        run_engine(port=0, endpoint="chat", scheme="url", write_line=lines.put_nowait)
    )
    line = await asyncio.wait_for(lines.get(), GUARD_S)
    url = line.split()[3]
    assert await answers(url)
    assert line == (
        f"local engine on {url} (endpoint chat, scheme url): "
        "a stand-in for development, not a production scheduler"
    )
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(aiohttp.ClientConnectorError):
        await answers(url)


class Output(io.StringIO):
    """A standard output with an event that is set by a flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = asyncio.Event()

    def flush(self) -> None:
        self.flushed.set()


async def test_run_engine_prints_to_standard_output_by_default() -> None:
    with contextlib.redirect_stdout(Output()) as output:
        running = asyncio.ensure_future(run_engine(port=0, api_key="k"))
        await asyncio.wait_for(output.flushed.wait(), GUARD_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert output.getvalue().count("\n") == 1
    assert output.getvalue().endswith("not a production scheduler\n")
