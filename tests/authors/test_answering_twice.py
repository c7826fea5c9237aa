"""What an author sees who has replaced a class of aiohttp's, or answers a request twice: one line each."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.raw_client import connected
from tests.system import with_worker_process

MODULE = "tests.authors.answering_twice"


async def test_each_mistake_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, module=MODULE) as system:
        for how in ("returns another", "prepares another"):
            async with connected(system.url) as client:
                await client.post("/twice", {"auth_data": system.auth(), "payload": {"how": how}})
                assert (await client.head()).status == 200
                assert (await client.rest()).endswith(b"first\r\n")  # no second answer, and no last chunk
            async with connected(system.url) as client:
                path = f"/bare?how={how.replace(' ', '+')}"
                await client.send(f"GET {path} HTTP/1.1\r\nHost: w\r\n\r\n".encode())
                assert (await client.head()).status == 200
                assert (await client.rest()).endswith(b"first\r\n")
        for expected in (200, 500):
            async with connected(system.url) as client:
                await client.post("/twice", {"auth_data": system.auth(), "payload": {"how": "shared"}})
                head, body = await client.answer()
                assert head.status == expected, body
        assert system.worker is not None
        output = await system.worker.final_output()
    lines = output.splitlines()
    assert "Traceback" not in output
    answers_twice = [line for line in lines if "the handler answers twice: an answer to this request" in line]
    assert ["POST /twice" in line for line in answers_twice].count(True) == 2
    assert ["GET /bare" in line for line in answers_twice].count(True) == 2
    assert (
        len([line for line in lines if "the handler returned a response that was sent before" in line]) == 1
    )
    replaced = [line for line in lines if "which has no effect" in line]
    assert ["web.AppRunner was" in replaced[0], "web.Application was" in replaced[1]] == [True, True]
    assert "larger_runner" in replaced[0]
