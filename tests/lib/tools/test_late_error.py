"""Which bodies are errors after a heartbeat's newlines, and that both commands go by it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lib.tools.late_error import MAX_ERROR_BYTES, LateErrorWatch
from lib.tools.load_test import LoadPlan
from tests.fakes.command import done
from tests.lib.tools.fakes import engine_and_worker
from tests.lib.tools.test_load_test import run

FAILED = b'\n\n{"error": "internal error", "request": "1"}'


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (FAILED, "internal error"),
        (b'\n{"error": {"payload": "wrong"}}\n', {"payload": "wrong"}),
        (b'{"error": "of a model without a heartbeat"}', None),
        (b'\n{"error": null, "images": 1}', None),
        (b'\n{"result": {"error": "of the job"}}', None),
        (b'\n{"error": 1}\n{"error": 2}\n', None),
        (b'\n["error"]', None),
        (b'\n{"error": "half', None),
        (b"\n", None),
        (b"", None),
        (b'\n{"error": "' + b"x" * MAX_ERROR_BYTES + b'"}', None),
        (b"\n" + b"[" * 100_000, None),
        (b'\n{"a":' + b"[" * 100_000, None),
    ],
)
@given(data=st.data())
def test_newlines_and_one_object_with_an_error_are_an_error(
    body: bytes, error: object, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, min(len(body), 50)))
    watch = LateErrorWatch()
    for chunk in (body[:cut], b"", body[cut:]):
        watch.add(chunk)
    assert watch.error() == error


def answering(body: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return answer


async def test_a_failed_job_after_a_heartbeat_is_a_failed_request(tmp_path: Path) -> None:
    async with engine_and_worker() as (engine, worker):
        target = engine.target
        words = ("request", "/render", "--engine", target.engine_url, "-e", target.endpoint)
        words += ("-k", target.api_key, "--timeout", "60")
        worker.answer = answering(FAILED)
        failed = await done(*words, cwd=tmp_path)
        worker.answer = answering(b'\n{"result": 1}')
        served = await done(*words, cwd=tmp_path)

    assert (failed.status, failed.output) == (1, FAILED.decode() + "\n")
    assert "/render answered 200 OK, then an error" in failed.errors
    assert (served.status, json.loads(served.output), served.errors) == (0, {"result": 1}, "")


async def test_a_load_test_counts_it_as_failed() -> None:
    async with engine_and_worker() as (engine, worker):
        worker.answer = answering(b"\n" * 300 + FAILED)
        (sample,) = await run(LoadPlan(engine.target, "/render", 1, 1000.0))

    assert (sample.result, sample.excerpt) == ("error after heartbeat", '{"error": "internal error"}')
