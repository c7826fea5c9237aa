"""The TGI worker as a process, through the local engine, in front of a fake TGI."""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.event_loop import until
from tests.fakes.raw_client import connected
from tests.fakes.worker import Setup
from tests.system import GUARD_S, worker_process
from tests.workers.tgi.fake_server import FAILURES, WORD
from tests.workers.worker_system import PERF, WorkerSystem, worker_system

JSON_LINE = '{"level":"INFO","message":"Connected","target":"text_generation_router"}'
TEXT_LINE = "2026-01-01T00:00:00Z  INFO text_generation_router::server: router/src/server.rs:2210: Connected"


def tgi(
    tmp_path: Path, line: str = JSON_LINE, *options: str, measured: bool = True
) -> AbstractAsyncContextManager[WorkerSystem]:
    return worker_system(tmp_path, "tgi", options=["--line", line, *options], measured=measured)


async def test_whole_and_streamed_answers(tmp_path: Path) -> None:
    async with tgi(tmp_path) as here:
        payload = {"inputs": "Hello", "parameters": {"max_new_tokens": 3, "seed": 5, "stop": ["\n"]}}
        assert await here.call("/generate", payload) == (200, {"generated_text": WORD * 3})
        assert await here.last_message() == payload
        async with here.post("/generate_stream", payload, 3.0) as answer:
            assert answer.content_type == "text/event-stream"
            events = [line async for line in answer.content if line.strip()]
        assert [event[:5] for event in events] == [b"data:"] * 3
        assert json.loads(events[-1][5:])["generated_text"] == WORD * 3
        await here.system.reported(6.0)
        assert (here.system.totals.cur_perf, here.system.last_report.max_perf) == (6.0, PERF)


async def test_tgi_judges_requests_and_its_errors_are_passed_on(tmp_path: Path) -> None:
    async with tgi(tmp_path) as here:
        wrong = {"inputs": 5, "parameters": {"max_new_tokens": 0}}
        status, answer = await here.call("/generate", wrong)
        assert (status, answer["error_type"]) == (422, "validation")
        assert await here.last_message() == wrong
        assert (await here.call("/generate", {"inputs": "x", "stream": 1}))[0] == 422
        assert await here.last_message() == wrong
        for prompt, (status, message, kind) in FAILURES.items():
            assert await here.call("/generate", {"inputs": prompt}) == (
                status,
                {"error": message, "error_type": kind},
            )
        status, answer = await here.call("/generate", {"inputs": "x", "parameters": {"temperature": 0}})
        assert (status, answer["error_type"]) == (422, "validation")
        async with here.post("/generate_stream", {"inputs": "break"}) as broken:
            assert FAILURES["fail"][1].encode() in await broken.read()
        await here.system.engine.wait_for(lambda: len(here.system.engine.finished) == 7, GUARD_S)
        statuses = [f.request.status for f in here.system.engine.finished]
        # A failed generation counts as an error, in a status or in a stream; overload doesn't.
        assert statuses == ["Success", "Error", "Error", "Rejected", "Error", "Success", "Error"]
        await here.system.reported()
        assert here.system.totals.cur_perf == 0.0


async def test_a_disconnected_client_ends_the_generation(tmp_path: Path) -> None:
    async with tgi(tmp_path) as here, connected(here.system.url) as client:
        await client.post(
            "/generate_stream", {"auth_data": here.system.auth(256.0), "payload": {"inputs": "hang"}}
        )
        assert (await client.head()).status == 200
        await client.chunk()
        client.leave()
        await here.client_left()
        await here.system.reported()
        assert here.system.totals.cur_perf == 0.0


@pytest.mark.parametrize("line", [JSON_LINE, TEXT_LINE], ids=["json", "text"])
async def test_the_benchmark_streams_and_is_saved(tmp_path: Path, line: str) -> None:
    """TGI ends its answers after 100 tokens. They are not asked for again."""
    async with tgi(tmp_path, line, "--eos-after", "100", measured=False) as here:
        received = await here.received()
        assert {r["path"] for r in received} == {"/generate_stream"}
        messages = [json.loads(r["body"]) for r in received]
        assert all(m["parameters"] == {"max_new_tokens": 256, "details": True} for m in messages)
        assert len({m["inputs"] for m in messages}) == len(messages)
    saved = json.loads((tmp_path / ".pyworker_benchmark.json").read_text())
    assert saved["perf"] == here.system.last_report.max_perf > 0


async def test_a_restart_does_not_measure_again(tmp_path: Path) -> None:
    async with tgi(tmp_path, measured=False) as first:
        assert first.system.last_report.max_perf > 0
        first.worker.terminate()
        assert await first.worker.exit_status() == 0
        count = len(await first.received())
        variables = {"MODEL_SERVER_URL": first.model_url, "MODEL_LOG": str(tmp_path / "model.log")}
        async with worker_process(
            first.system, tmp_path, Setup(), variables, "second.log", "workers.tgi.server"
        ) as second:
            reports = first.system.totals.reports
            await first.system.engine.wait_for(
                lambda: first.system.totals.reports > reports and first.system.last_report.max_perf > 0,
                GUARD_S,
            )
            await until(lambda: "saved benchmark" in second.output())
        assert len(await first.received()) == count


async def test_an_error_line_of_the_log_is_reported(tmp_path: Path) -> None:
    async with tgi(tmp_path) as here:
        with (tmp_path / "model.log").open("a") as log:
            log.write("Error: DownloadError\n")
        assert "Error: DownloadError" in await here.system.errored()


async def test_the_example_client_and_the_load_test(tmp_path: Path) -> None:
    async with tgi(tmp_path) as here:
        status, output = await here.run("workers.tgi.client", "--tokens", "3", "Once")
        assert (status, output.splitlines()) == (
            0,
            ["Once word word word", "", "The same as a stream:", "", "Once word word word"],
        )
        status, output = await here.run("workers.tgi.client", "overloaded")
        assert (status, "HTTP 429" in output) == (1, True)
        status, output = await here.run("workers.tgi.test_load", "-n", "2", "-rps", "1000")
        assert (status, "2 of 2 requests" in output) == (0, True)
