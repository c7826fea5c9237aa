"""Commands whose requests are refused: which routes there are, and how a file is sent."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.tools.cli import main
from lib.uploads import TAKES_A_FILE
from tests.lib.tools.fakes import FakeEngine, engine_and_worker

DOCUMENT: Any = {"paths": {"/embed": {"post": {}}, "/voices/{id}": {"get": {}, "parameters": []}}}
ROUTES = "the worker's routes are POST /embed, GET /voices/{id}"
LOAD_HOW = "name the worker's route with --route, and give a payload of it with --payload"
REQUEST_HOW = "name one of the worker's routes"
FILE_HOW = (
    "send a file with --file FIELD=@PATH, as a field of a form, or with --file @PATH, as the whole body"
)
PAYLOAD = ("--payload", "{}")


async def answer(status: int, body: Any, _request: web.Request) -> web.Response:
    return web.json_response(body, status=status)


async def run(command: str, engine: FakeEngine, *args: str) -> int:
    own = ["--engine", engine.target.engine_url, "-e", "small", *args]
    return await asyncio.to_thread(main, [command, *own])


@pytest.mark.parametrize(
    ("status", "args", "document", "hint"),
    [
        (404, (), DOCUMENT, f"{ROUTES}: {LOAD_HOW}"),
        (404, PAYLOAD, DOCUMENT, f"{ROUTES}: {LOAD_HOW}"),
        (422, (), DOCUMENT, f"{ROUTES}: {LOAD_HOW}"),
        (422, PAYLOAD, DOCUMENT, ""),
        (404, (), None, LOAD_HOW),
        (404, (), {"paths": 3}, LOAD_HOW),
        (500, (), DOCUMENT, ""),
        (200, (), DOCUMENT, ""),
    ],
)
async def test_a_load_test_of_another_worker_names_its_routes(
    status: int, args: tuple[str, ...], document: Any, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with engine_and_worker() as (engine, worker):
        engine.document, worker.answer = document, functools.partial(answer, status, {})
        assert await run("load-test", engine, "-n", "1", *args) == (0 if status == 200 else 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pyworker load-test: ")]
    assert lines == ([f"pyworker load-test: {hint}"] if hint else [])


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (404, {}, f"{ROUTES}: {REQUEST_HOW}"),
        (422, {"payload": {"body": TAKES_A_FILE}}, FILE_HOW),
        (422, {"payload": {"body": f"is empty: {TAKES_A_FILE}"}}, FILE_HOW),
        (422, {"payload": {"body": "is too dark"}}, ""),
        (422, {"payload": "is no object"}, ""),
        (422, ["a list"], ""),
        (500, {"payload": {"body": TAKES_A_FILE}}, ""),
    ],
)
async def test_a_refused_request_says_what_to_change(
    status: int, body: Any, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with engine_and_worker() as (engine, worker):
        engine.document, worker.answer = DOCUMENT, functools.partial(answer, status, body)
        assert await run("request", engine, "/wrong") == 1
    first, *more = capsys.readouterr().err.splitlines()
    assert f"/wrong answered {status}" in first
    assert more == ([f"pyworker request: {hint}"] if hint else [])


async def test_where_a_file_was_sent_there_is_no_hint_to_send_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.png").touch()
    async with engine_and_worker() as (engine, worker):
        worker.answer = functools.partial(answer, 422, {"payload": {"body": f"is empty: {TAKES_A_FILE}"}})
        assert await run("request", engine, "/sound", "--file", f"@{tmp_path}/empty.png") == 1
    assert "--file" not in capsys.readouterr().err
