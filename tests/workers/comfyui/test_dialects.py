"""The other dialects end to end, and the detection of the dialect."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.backend import Backend
from lib.errors import ModelUnreachable
from lib.model.readiness import ReadySignal
from lib.runtime.settings import Settings
from tests.event_loop import until
from tests.fakes.raw_client import connected
from tests.manual_clock import ManualClock
from tests.system import GUARD_S
from tests.workers.comfyui.comfy_system import (
    APIS,
    BaseSystem,
    ComfySystem,
    FakeServer,
    base_system,
    model_server,
    worker,
)
from tests.workers.comfyui.graphs import Graph, image, node
from tests.workers.comfyui.images import png
from workers.comfyui.dialects import Choice
from workers.comfyui.settings import ComfySettings
from workers.comfyui.wrapper import FinalResultScanner, outputs_of


@pytest.mark.parametrize("body", [b"[" * 100_000, b"no JSON", b"[]", b'{"data": 1}'])
def test_an_answer_without_outputs_is_a_502(body: bytes) -> None:
    with pytest.raises(ModelUnreachable, match=re.escape("has no data.outputs")):
        outputs_of(body, "data", "outputs")


@asynccontextmanager
async def api_system(
    tmp_path: Path, kind: str, env: dict[str, str] | None = None, *, measured: bool = True
) -> AsyncGenerator[ComfySystem, None]:
    async with base_system(tmp_path) as here, model_server(here, APIS, kind) as model:
        own = {"COMFYUI_DIALECT": kind, "MODEL_SERVER_URL": model.url, "MODEL_LOG": str(model.log)}
        async with worker(here, {**own, "COMFYUI_URL": model.url, **(env or {})}, measured) as process:
            await here.ready()
            yield ComfySystem(**vars(here), model=model, worker=process)


def content_of(uri: str) -> bytes:
    assert uri.startswith("data:image/png;base64,")
    return base64.b64decode(uri.partition(",")[2])


def made_of(graph: Graph) -> bytes:
    return png(json.dumps(graph))


async def test_the_wrapper_gets_requests_unchanged(tmp_path: Path) -> None:
    given = {
        "request_id": "req-1",
        "modifier": "Nope",
        "modifications": {"a": [1]},
        "webhook": {"url": "http://a/"},
    }
    async with api_system(tmp_path, "wrapper") as here:
        status, answer = await here.call("/generate/sync", {"input": given, "extra": None})
        assert (status, answer["message"]) == (500, "Preprocessing failed: Unknown modifier: Nope")
        status, answer = await here.generate(image(), request_id="req-2")
        assert (status, answer["id"], answer["output"][0]["node_id"]) == (200, "req-2", "4")

        asked = (await here.model.state())["asked"]
        assert asked[0]["message"] == {"input": given, "extra": None}
        assert asked[1]["message"] == {"input": {"workflow_json": image(), "request_id": "req-2"}}
        assert all("Origin" not in a["headers"] for a in asked)
        await here.engine_got("Error", "Success")


async def test_the_wrappers_stream_is_passed_on(tmp_path: Path) -> None:
    async with (
        api_system(tmp_path, "wrapper") as here,
        here.post("/generate/stream", {"input": {"workflow_json": image(), "request_id": "s"}}) as answer,
    ):
        assert answer.content_type == "text/event-stream"
        events = [json.loads(e.removeprefix("data: ")) for e in (await answer.text()).strip().split("\n\n")]
        assert [event["status"] for event in events] == ["queued", "final_result"]


@pytest.mark.parametrize("with_data", [True, False])
async def test_images_of_the_wrapper(tmp_path: Path, with_data: bool) -> None:
    graph = {**image(), **({"99": node("WithData")} if with_data else {})}
    async with api_system(tmp_path, "wrapper") as here:
        status, answer = await here.call("/custom-workflow", {"workflow": graph})
        assert status == 200
        assert [content_of(uri) for uri in answer["images"]] == [made_of(graph)]
        status, answer = await here.call("/custom-workflow", {"workflow": {"1": node("Fail")}})
        assert (status, answer["status"]) == (500, "failed")


@pytest.mark.parametrize(("kind", "path"), [("wrapper", "/generate/sync"), ("runsync", "/generate/sync")])
async def test_a_disconnected_client_closes_the_call(tmp_path: Path, kind: str, path: str) -> None:
    async with api_system(tmp_path, kind) as here, connected(here.url) as client:
        await client.post(path, here.envelope({"input": {"workflow_json": {"1": node("Hold")}}}))
        await here.model.until("working")
        client.leave()
        await here.model.until("cancelled")
        await here.engine_got("Cancelled")


@pytest.mark.parametrize("path", ["/generate/sync", "/generate/stream"])
async def test_a_job_of_the_wrapper_keeps_its_slot_until_it_has_stopped(tmp_path: Path, path: str) -> None:
    held = {"input": {"workflow_json": {"1": node("Hold")}, "request_id": "a/b c"}}
    async with api_system(tmp_path, "wrapper") as here, connected(here.url) as client:
        await client.post(path, here.envelope(held))
        await here.model.until("working")
        await here.model.steer(running=[[1, "prompt", {}, {}, []]])
        client.leave()
        assert (await here.model.until("cancels"))["cancels"] == ["a/b c"]
        next_job = asyncio.ensure_future(here.generate(image()))
        state = await here.model.until("polls", 3)
        assert len(state["asked"]) == 1
        await here.model.steer(running=[])
        assert (await next_job)[0] == 200
        await here.engine_got("Cancelled", "Success")
        assert (await here.model.state())["cancels"] == ["a/b c"]  # not the job that has ended


async def test_a_failed_stream_of_the_wrapper_is_errored(tmp_path: Path) -> None:
    async with api_system(tmp_path, "wrapper") as here:
        for graph in ({"1": node("Fail")}, image()):
            async with here.post("/generate/stream", {"input": {"workflow_json": graph}}) as answer:
                assert answer.status == 200
                assert "final_result" in await answer.text()
        await here.engine_got("Error", "Success")


def result_event(status: str, message: str = "") -> bytes:
    result: dict[str, Any] = {"id": "a", "message": message, "status": status, "output": []}
    return b"data: " + json.dumps({"status": "final_result", "result": result}).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("stream", "outcome"),
    [
        (result_event("failed"), "errored"),
        (result_event("timeout"), "errored"),
        (result_event("completed"), None),
        (result_event("cancelled"), None),
        (result_event("completed", '"status": "failed"'), None),
        (result_event("failed")[:-6] + b"x" * 2_000_000 + b"\n\n", "errored"),
        (result_event("completed", '"status": "failed"' + "x" * 2_000_000), None),
        (b'data: {"status": "error", "message": "Stream error"}\n\n', "errored"),
        (b'data: {"status": "queued"}\n\ndata: ["status"]\n\ndata: "status"\n\n', None),
    ],
)
@pytest.mark.parametrize("size", [7, 65536])
def test_failures_in_a_stream_are_found(stream: bytes, outcome: str | None, size: int) -> None:
    scanner = FinalResultScanner()
    for start in range(0, min(len(stream), 100 * size), size):
        scanner.add(stream[start : start + size])
    assert scanner.outcome(200) == outcome


async def test_several_jobs_at_once(tmp_path: Path) -> None:
    held = {"input": {"workflow_json": {"1": node("Hold")}}}
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(api_system(tmp_path, "wrapper", {"COMFYUI_CONCURRENCY": "2"}))
        for path in ("/generate/sync", "/generate/stream", "/generate/sync"):
            client = await stack.enter_async_context(connected(here.url))
            await client.post(path, here.envelope(held))
        await here.engine.wait_for(lambda: here.last_report.cur_load >= 300.0, GUARD_S)
        assert len((await here.model.until("working", 2))["working"]) == 2


async def test_runsync(tmp_path: Path) -> None:
    async with api_system(tmp_path, "runsync") as here:
        status, answer = await here.call("/prompt", {"prompt": "a fox", "seed": 5})
        assert status == 200
        asked = (await here.model.state())["asked"][0]["message"]["input"]
        assert asked["handler"] == "RawWorkflow"
        assert asked["workflow_json"]["25"]["inputs"]["noise_seed"] == 5
        assert [content_of(uri) for uri in answer["images"]] == [made_of(asked["workflow_json"])]

        status, answer = await here.generate(image())
        assert (status, list(answer)) == (200, ["id", "output"])
        status, answer = await here.call("/generate/stream", {"input": {"workflow_json": image()}})
        assert (status, answer["error"]) == (
            404,
            "the runsync dialect reports no progress: use /generate/sync",
        )
        status, answer = await here.call("/custom-workflow", {"workflow": {"1": node("NoImage")}})
        assert (status, answer) == (422, {"error": "the workflow made no images"})


@pytest.mark.parametrize("kind", ["wrapper", "runsync"])
async def test_each_api_is_measured(tmp_path: Path, kind: str) -> None:
    async with api_system(tmp_path, kind, measured=False) as here:
        assert here.last_report.max_perf > 0
        assert len((await here.model.state())["asked"]) >= 4


@asynccontextmanager
async def detected(here: BaseSystem, model: FakeServer, kind: str) -> AsyncGenerator[None, None]:
    env = {"MODEL_SERVER_URL": model.url, "MODEL_LOG": str(model.log), "MODEL_TIMEOUT_S": "30"}
    async with worker(here, {**env, "COMFYUI_URL": model.url}) as process:
        await here.ready()
        found = f"found a model server of the dialect {kind} at {model.url}"
        await until(lambda: found in process.output())
        yield


@pytest.mark.parametrize("kind", ["wrapper", "native", "runsync"])
async def test_the_dialect_is_detected(tmp_path: Path, kind: str) -> None:
    arguments = () if kind == "native" else (APIS, kind)
    async with (
        base_system(tmp_path) as here,
        model_server(here, *arguments) as model,
        detected(here, model, kind),
    ):
        status, answer = await here.generate(image())
        assert status == 200
        assert ("data" in str(answer)) == (kind == "native")


async def test_it_waits_for_a_model_server_and_can_be_stopped(tmp_path: Path) -> None:
    async with base_system(tmp_path) as here:
        nobody = "http://127.0.0.1:9"
        async with worker(
            here, {"MODEL_SERVER_URL": nobody, "MODEL_LOG": str(tmp_path / "no.log")}
        ) as process:
            await here.engine.wait_for(lambda: here.last_report is not None, GUARD_S)
            assert here.last_report.loadtime == 0.0
            async with here.http.get(here.url + "/ping") as answer:
                assert answer.status == 200
            status, body = await here.generate(image())
            assert (status, body["state"]) == (503, "loading")
            process.terminate()
            assert await process.exit_status() == 0


async def test_the_health_of_a_detected_server_is_watched(tmp_path: Path) -> None:
    async with base_system(tmp_path) as here, model_server(here) as model:
        settings = ComfySettings.from_env({"MODEL_SERVER_URL": model.url})
        clock, choice = ManualClock(), Choice(settings)
        backend = Backend("http://127.0.0.1:9", lifecycle=AsyncExitStack(), clock=clock)
        instance = Settings(container_id=1, public_url=here.url, unsecured=True)
        async with backend.run_with(instance, tmp_path, print) as running, choice.detect(backend):
            running.readiness.note_signal(ReadySignal.LIFECYCLE, "entered")
            await model.until("requests", 5)  # probes, and two health checks
            # What /status and the saved benchmark name, and whose connections count.
            assert (running.server.url, running.server.reach.address) == (model.url, model.url[7:])
            model.process.kill()
            await model.process.wait()
            assert not running.readiness.error_msg
            with anyio.fail_after(GUARD_S):
                while "health check" not in running.readiness.error_msg:
                    await clock.wait_for_timer(10.0)
                    clock.advance(10.0)
