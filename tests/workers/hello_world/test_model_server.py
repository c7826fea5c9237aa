from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp.test_utils import TestServer

from tests.guard import GUARD_S
from workers.hello_world.model_server import (
    CORRUPTED_LINE,
    DEFAULT_TOKENS,
    MAX_TOKENS,
    READY_LINE,
    Pace,
    Prompt,
    Refusal,
    TextServer,
    arguments,
    read_prompt,
)

ROOT = Path(__file__).parents[3]


class ModelServerProcess:
    """A model server's process and its output."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def line_with(self, text: str) -> str:
        assert self.process.stdout
        with anyio.fail_after(GUARD_S):
            async for line in self.process.stdout:
                if text in line.decode():
                    return line.decode()
        raise AssertionError(f"the process ended without {text!r}")

    async def url(self) -> str:
        found = re.search(r"http://\S+", await self.line_with("listening on"))
        assert found
        return found.group()

    async def end(self) -> int:
        with anyio.fail_after(GUARD_S):
            await self.process.communicate()
            return await self.process.wait()


@asynccontextmanager
async def running(*args: str, port: int = 0) -> AsyncGenerator[ModelServerProcess, None]:
    command = ["-m", "workers.hello_world.model_server", "--port", str(port), *args]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=PIPE, stderr=STDOUT, cwd=ROOT
    )
    server = ModelServerProcess(process)
    try:
        yield server
    finally:
        if process.returncode is None:
            process.terminate()
        await server.end()


class Gate(Pace):
    """Generates tokens when `open` is set, and counts the waiting streams."""

    def __init__(self) -> None:
        super().__init__(0)
        self.open = asyncio.Event()
        self.waiting = 0
        self.reached = asyncio.Event()

    async def turn(self) -> None:
        self.waiting += 1
        self.reached.set()
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1


@asynccontextmanager
async def serving(
    pace: Pace, max_concurrency: int = 32
) -> AsyncGenerator[tuple[aiohttp.ClientSession, TextServer], None]:
    """A loaded model server in this process, and a client of it."""
    server = TextServer(pace, max_concurrency)
    await server.load()
    test_server = TestServer(server.app())
    async with test_server, aiohttp.ClientSession(test_server.make_url("/")) as http:
        yield http, server


async def test_the_process_loads_serves_and_stops(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    log.write_text("from the last start\n")
    async with running("--log", str(log)) as server, aiohttp.ClientSession() as http:
        url = await server.url()
        await server.line_with(READY_LINE)
        async with http.get(f"{url}/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with http.post(
            f"{url}/generate", json={"prompt": "the loveliest", "max_response_tokens": 9}
        ) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == 200
        server.process.terminate()
        assert await server.end() == 0

    assert answer["tokens"] == 9
    assert answer["response"].startswith(" garden")
    lines = log.read_text().splitlines()
    assert lines[0] == "from the last start"
    assert sum(READY_LINE in line for line in lines) == 1
    assert not any("loveliest" in line for line in lines)


async def test_the_process_stops_generating_for_a_disconnected_client() -> None:
    async with running("--tokens-per-s", "20") as server, aiohttp.ClientSession() as http:
        url = await server.url()
        await server.line_with(READY_LINE)
        async with http.post(
            f"{url}/generate_stream", json={"prompt": "", "max_response_tokens": MAX_TOKENS}
        ) as response:
            await response.content.readline()
            response.close()

        assert f"of {MAX_TOKENS} tokens" in await server.line_with("client disconnected: stopped after")


async def test_while_loading_it_answers_503_and_can_be_stopped() -> None:
    async with running("--load-time-s", "3600") as server, aiohttp.ClientSession() as http:
        url = await server.url()
        async with http.get(f"{url}/health") as health:
            assert health.status == 503
        async with http.post(f"{url}/generate_stream", json={"prompt": ""}) as response:
            assert (response.status, await response.json()) == (503, {"error": "the model is loading"})
        server.process.terminate()

        assert await server.end() == 0


async def test_a_corrupt_model_ends_the_process(tmp_path: Path) -> None:
    log = tmp_path / "model.log"
    async with running("--corrupt", "--log", str(log)) as server:
        assert await server.end() == 1

    assert CORRUPTED_LINE in log.read_text()
    assert READY_LINE not in log.read_text()


async def test_a_port_in_use_is_reported_in_one_line() -> None:
    async with running() as first:
        port = int((await first.url()).rpartition(":")[2])
        async with running(port=port) as second:
            await second.line_with(f"cannot listen on 127.0.0.1 port {port}: ")
            assert await second.end() == 1


async def test_a_stream_has_a_token_per_line_and_a_line_per_chunk() -> None:
    async with (
        serving(Pace(0)) as (http, _),
        http.post("/generate_stream", json={"prompt": "Alice", "max_response_tokens": 30}) as response,
    ):
        assert response.content_type == "application/x-ndjson"
        assert response.headers["Transfer-Encoding"] == "chunked"
        chunks = [chunk async for chunk, _ in response.content.iter_chunks()]
    # A read may return several chunks, but never a part of one.
    lines = b"".join(chunks).split(b"\n")
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert lines.pop() == b""
    assert [list(json.loads(line)) for line in lines] == [["token"]] * 30


async def test_tokens_are_sent_as_soon_as_they_are_generated() -> None:
    gate = Gate()
    async with serving(gate) as (http, _):
        with anyio.fail_after(GUARD_S):
            async with http.post(
                "/generate_stream", json={"prompt": "", "max_response_tokens": 2}
            ) as response:
                for _ in range(2):
                    await gate.reached.wait()
                    gate.reached.clear()
                    gate.open.set()
                    assert "token" in json.loads(await response.content.readline())
                assert await response.content.read() == b""


async def test_without_a_number_it_generates_the_default_number_of_tokens() -> None:
    async with serving(Pace(0)) as (http, _):
        for message in ({"prompt": ""}, {"prompt": "", "max_response_tokens": None}):
            async with http.post("/generate", json=message) as response:
                assert (await response.json())["tokens"] == DEFAULT_TOKENS


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_it_stops_generating_for_a_disconnected_client(
    route: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    stopped = LogEvent("stopped after 0 of 50 tokens")
    with caplog.at_level(logging.INFO), anyio.fail_after(GUARD_S), stopped.attached():
        async with serving(gate, max_concurrency=1) as (http, _):
            request = asyncio.ensure_future(
                http.post(route, json={"prompt": "secret", "max_response_tokens": 50})
            )
            await gate.reached.wait()
            if route == "/generate_stream":
                (await request).close()
            else:
                request.cancel()
            await stopped.seen.wait()
            gate.open.set()
            # Its slot is free again.
            async with http.post("/generate", json={"prompt": "", "max_response_tokens": 1}) as response:
                assert response.status == 200
    assert "secret" not in caplog.text


async def test_requests_beyond_the_limit_wait() -> None:
    gate = Gate()
    async with serving(gate, max_concurrency=1) as (http, _):
        message = {"prompt": "", "max_response_tokens": 1}
        with anyio.fail_after(GUARD_S):
            first = asyncio.ensure_future(http.post("/generate", json=message))
            await gate.reached.wait()
            # A stream sends its headers before it may generate: after these, the request is waiting.
            second = await http.post("/generate_stream", json=message)
            assert gate.waiting == 1
            gate.open.set()
            async with await first as response, second:
                assert (await response.json())["tokens"] == 1
                assert len(await second.read()) > 0


async def test_the_speed_limit_is_shared_equally_by_all_requests() -> None:
    rate, each, streams = 400.0, 20, 4
    pace = Pace(rate)
    finished: list[int] = []

    async def stream(number: int) -> None:
        with pace.stream():
            for _ in range(each):
                await pace.turn()
                finished.append(number)

    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(stream(n) for n in range(streams)))

    assert loop.time() - began >= each * streams / rate - 0.001
    # Equal shares: when the first stream ends, all others have at most a few tokens left.
    assert min(finished[: -streams * 2].count(n) for n in range(streams)) >= each - 3


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        (b"[]", "body"),
        (b"{}", "prompt"),
        (b'{"prompt": 1}', "prompt"),
        (b'{"prompt": "", "max_response_tokens": "5"}', "max_response_tokens"),
        (b'{"prompt": "", "max_response_tokens": 5.0}', "max_response_tokens"),
        (b'{"prompt": "", "max_response_tokens": true}', "max_response_tokens"),
        (b'{"prompt": "", "max_response_tokens": 0}', "max_response_tokens"),
        (f'{{"prompt": "", "max_response_tokens": {MAX_TOKENS + 1}}}'.encode(), "max_response_tokens"),
    ],
)
def test_a_refusal_names_the_wrong_field(body: bytes, field: str) -> None:
    with pytest.raises(Refusal) as raised:
        read_prompt(body)

    assert raised.value.status == 422
    assert raised.value.why.partition(":")[0] == field


def test_unknown_fields_are_ignored() -> None:
    assert read_prompt(b'{"prompt": "a", "max_response_tokens": 3, "x": 1}') == Prompt("a", 3)


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_a_refusal_is_answered_as_json(route: str) -> None:
    async with serving(Pace(0)) as (http, _), http.post(route, json={"prompt": None}) as response:
        assert (response.status, await response.json()) == (422, {"error": "prompt: must be a string"})


@pytest.mark.parametrize(
    "args",
    [
        ["--tokens-per-s", "-1"],
        ["--tokens-per-s", "inf"],
        ["--load-time-s", str(math.nan)],
        ["--max-concurrency", "0"],
        ["--port", "x"],
    ],
)
def test_wrong_arguments_are_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        arguments().parse_args(args)

    assert raised.value.code == 2
    assert args[0] in capsys.readouterr().err


class LogEvent(logging.Handler):
    """Sets `seen` when a line with `text` is logged."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.seen = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.seen.set()

    def attached(self) -> Attached:
        return Attached(self)


class Attached:
    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler

    def __enter__(self) -> None:
        logging.getLogger("workers.hello_world").addHandler(self._handler)

    def __exit__(self, *_exc: object) -> None:
        logging.getLogger("workers.hello_world").removeHandler(self._handler)
