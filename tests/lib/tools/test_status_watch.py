from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.tools.status_watch import watch
from tests.fakes.command import command, done
from tests.lib.tools.test_status_page import status
from tests.manual_clock import ManualClock

INTERVAL_S = 2.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ChangingWorker:
    """Answers `/status` with one state after the other, then with a 404."""

    def __init__(self, *states: str) -> None:
        self._states = list(states)
        app = web.Application()
        app.router.add_get("/status", self._answer)
        self.server = TestServer(app)

    async def _answer(self, _request: web.Request) -> web.Response:
        if not self._states:
            return web.json_response({}, status=404)
        return web.json_response(status(state=self._states.pop(0), waiting_for=[], max_perf=10.0))


@asynccontextmanager
async def watched(out: io.StringIO, *states: str, as_json: bool = False) -> AsyncGenerator[None, None]:
    """Watch a worker that is in each of these states once, and then once more."""
    worker, clock = ChangingWorker(*states), ManualClock()
    async with worker.server:
        url = str(worker.server.make_url("")).rstrip("/")
        watching = asyncio.ensure_future(watch(url, INTERVAL_S, as_json=as_json, out=out, clock=clock))
        for _ in states:
            await clock.wait_for_timer(within_s=INTERVAL_S)
            clock.advance(INTERVAL_S)
        await clock.wait_for_timer(within_s=INTERVAL_S)
        watching.cancel()
        await asyncio.wait({watching})
        yield


async def test_each_page_follows_the_one_before() -> None:
    out = io.StringIO()
    async with watched(out, "benchmarking", "ready"):
        text = out.getvalue()
    assert (
        text.index("benchmarking for 94 s") < text.index("ready for 94 s: 10") < text.index("has no /status")
    )
    assert "\x1b" not in text


async def test_on_a_terminal_the_page_is_redrawn_on_a_screen_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    async with watched(out, "benchmarking", "ready"):
        text = out.getvalue()
    begin, end, home = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H"
    assert text.index(begin) < text.index("benchmarking for") < text.index("ready for") < text.index(end)
    assert text.count(home) >= 3


async def test_as_json_each_status_is_a_line() -> None:
    out = io.StringIO()
    async with watched(out, "benchmarking", "ready", as_json=True):
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("state") for line in lines] == ["benchmarking", "ready", None]
    assert "has no /status" in lines[2]["problem"]


async def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    worker = ChangingWorker("benchmarking", "ready")
    async with worker.server:
        url = str(worker.server.make_url(""))
        async with command("status", "--watch", "0.05", "--url", url, cwd=tmp_path) as watching:
            await watching.until("ready for 94 s")
            await watching.until("has no /status")
            watching.process.send_signal(signal.SIGINT)
            ended = await watching.end()
    assert (ended.status, ended.errors) == (0, "")


async def test_a_wrong_interval_is_refused(tmp_path: Path) -> None:
    ended = await done("status", "--watch", "0", cwd=tmp_path)
    assert (ended.status, ended.output) == (2, "")
    assert "argument --watch: must be a finite number above 0" in ended.errors
