"""The native dialect end to end, with a worker and a fake ComfyUI as processes."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from tests.event_loop import until
from tests.fakes.raw_client import RawClient, connected
from tests.workers.comfyui.comfy_system import ComfySystem, native_system
from tests.workers.comfyui.graphs import Graph, failing, image, invalid, node
from tests.workers.comfyui.images import png
from workers.comfyui.outputs import outputs_of

SYNC = "/generate/sync"
STREAM = "/generate/stream"
Answer = tuple[int, Any]


def asked(graph: Graph, **more: Any) -> dict[str, Any]:
    return {"input": {"workflow_json": graph, **more}}


async def events(answer: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    """All of a stream's events."""
    body = await answer.text()
    return [
        json.loads(event.removeprefix("data: ")) for event in body.split("\n\n") if event.startswith("data")
    ]


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    while not (line := (await answer.content.readline()).strip()).startswith(b"data"):
        assert not answer.content.at_eof()
    return json.loads(line.removeprefix(b"data: "))


async def test_an_image(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(image(), request_id="req-1")

        assert status == 200
        assert (answer["id"], answer["status"], answer["message"]) == (
            "req-1",
            "completed",
            "Processing complete.",
        )
        output = answer["output"][0]
        assert (output["type"], output["subfolder"], output["node_id"], output["output_type"]) == (
            *("output", "", "9", "images"),
        )
        assert output["filename"].endswith(".png")
        assert output["mimetype"] == "image/png"
        assert base64.b64decode(output["data"]) == await here.model.view(output)
        timings = answer["timings"]
        assert set(timings) == {
            *(
                "queued_at_ms",
                "preprocess_ms",
                "generation_ms",
                "postprocess_ms",
                "completed_at_ms",
                "total_ms",
            ),
        }
        assert 0 <= timings["generation_ms"] <= timings["total_ms"]
        state = await here.model.state()
        assert all("Origin" not in request["headers"] for request in state["requests"])
        assert len([r for r in state["requests"] if r["path"].startswith("/ws?clientId=")]) == 1
        await here.engine_got("Success")


async def test_a_cached_image_is_answered_again(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        first = await here.generate(image())
        again = await here.generate(image())

        assert again[0] == 200
        assert again[1]["output"] == first[1]["output"]
        assert again[1]["id"] != first[1]["id"]


async def test_every_kind_of_output(tmp_path: Path) -> None:
    graph = {
        **image(),
        "9": node("SaveImage", images=["8", 0], filename_prefix="many", count=2),
        "10": node("PreviewImage", images=["8", 0]),
        "11": node("VHS_VideoCombine", images=["8", 0]),
        "12": node("SaveAudio", audio=["8", 0]),
        "13": node("PreviewAny", source="only text"),
    }
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(graph)

        assert status == 200
        found = [
            (o["node_id"], o["output_type"], o["type"], o["subfolder"], o["mimetype"])
            for o in answer["output"][:5]
        ]
        assert found == [
            ("9", "images", "output", "", "image/png"),
            ("9", "images", "output", "", "image/png"),
            ("10", "images", "temp", "", "image/png"),
            ("11", "gifs", "output", "clips", "video/mp4"),
            ("12", "audio", "output", "", "audio/x-flac"),
        ]
        assert answer["output"][5:] == [{"node_id": "13", "output_type": "text", "text": "only text"}]
        for output in answer["output"][:5]:
            assert base64.b64decode(output["data"]) == await here.model.view(output)


async def test_outputs_that_are_not_images(tmp_path: Path) -> None:
    graph = {
        "1": node("PreviewAny", source="a red fox"),
        "2": node("ShowValues", values=[3, 0.5, True, "three", {"x": [1]}, None]),
        "3": node("SaveGLB", mesh="any"),
        "4": node("Preview3D", model_file="any"),
    }
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(graph)
        assert status == 200
        entries = [{k: v for k, v in o.items() if k not in ("data", "filename")} for o in answer["output"]]
        file = {"type": "output", "subfolder": "3d", "mimetype": "model/gltf-binary"}
        assert entries == [
            {"node_id": "1", "output_type": "text", "text": "a red fox"},
            {"node_id": "2", "output_type": "value", "value": 3},
            {"node_id": "2", "output_type": "value", "value": 0.5},
            {"node_id": "2", "output_type": "value", "value": True},
            {"node_id": "2", "output_type": "value", "text": "three"},
            {"node_id": "2", "output_type": "value", "value": {"x": [1]}},
            {**file, "node_id": "3", "output_type": "3d"},
            {**file, "node_id": "4", "output_type": "result"},
            {"node_id": "4", "output_type": "result", "value": {"fov": 35}},
        ]
        contents = [base64.b64decode(o["data"]) for o in answer["output"] if "data" in o]
        assert contents == [b"glTF", b"glTF shown"]
        async with here.post(STREAM, asked(graph)) as stream:
            assert (await events(stream))[-1]["result"]["output"] == answer["output"]
        status, answer = await here.call("/custom-workflow", {"workflow": graph})
        assert (status, answer) == (422, {"error": "the workflow made no images"})


@pytest.mark.parametrize("item", ["/etc/model.glb", "../model.glb", "a/../../b.glb", "words", math.nan, [1]])
def test_what_is_no_file_is_a_value(item: Any) -> None:
    job = cast(Any, SimpleNamespace(entry={"outputs": {"1": {"result": [item]}}}, images=[]))
    (output,) = outputs_of(job)
    entry = output.to_json()
    assert "filename" not in entry
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


async def test_base64_can_be_asked_for(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        for given in (True, False, None):
            status, answer = await here.generate(image(), return_outputs_as_base64=given)
            assert (status, "data" in answer["output"][0]) == (200, True)
        status, answer = await here.generate(image(), return_outputs_as_base64="yes", extra_data=[1])
        assert status == 422
        assert answer["payload"]["input"] == {
            "return_outputs_as_base64": "must be a boolean",
            "extra_data": "must be an object",
        }


async def test_extra_data_reaches_the_nodes_and_is_kept_nowhere(tmp_path: Path) -> None:
    keys = {"api_key_comfy_org": "comfyui-secret"}
    async with native_system(tmp_path) as here:
        assert (await here.generate(image(), extra_data=keys))[0] == 200
        assert (await here.generate(failing(), extra_data=keys))[0] == 500
        async with here.post(STREAM, asked(image(2), extra_data=keys)) as stream:
            assert (await events(stream))[-1]["result"]["status"] == "completed"
        async with asking(here, SYNC, asked(image(8, hold=True), extra_data=keys), "running") as client:
            client.leave()
            await here.model.until_no("running")
            await here.model.until_no("history")
        state = await here.model.state()
        assert state["extra_data"] == [keys] * 4
        assert "secret" not in here.worker.output()


async def test_a_failed_job_is_logged_with_its_reason_and_the_logs_own_id(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        for path in (SYNC, STREAM):
            headers = {"X-Request-Id": f"log-of-{path[10:]}"}
            async with here.post(path, asked(failing(), request_id="mine"), headers=headers) as answer:
                await answer.read()
            reason = f"request log-of-{path[10:]}: 500: node 1 (RegexReplace) failed: re.error: missing )"
            await until(lambda reason=reason: reason in here.worker.output())
            await until(lambda path=path: f"log-of-{path[10:]} POST {path}" in here.worker.output())


async def test_an_output_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    graph = {**image(), "10": node("SaveAudio", audio=["8", 0])}
    async with native_system(tmp_path) as here:
        _, first = await here.generate(graph)
        for call in (here.generate(graph), stream_result(here, graph)):
            await here.model.steer(delete_files=True)
            ran = len((await here.model.state())["ran"])
            status, again = await call
            assert (status, len(again["output"])) == (200, 2)
            assert again["output"] != first["output"]
            assert len((await here.model.state())["ran"]) == ran + 2
        await here.model.steer(delete_files=True)
        status, answer = await here.call("/custom-workflow", {"workflow": graph})
        assert (status, len(answer["images"])) == (200, 1)


async def test_an_output_that_is_deleted_again_is_502(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        await here.generate(image())
        await here.model.steer(delete_files=True, lose_files=True)
        status, answer = await here.generate(image())
        assert status == 502
        assert answer["error"].startswith("ComfyUI has no file 'test_")
        assert answer["error"].endswith("was it deleted?")
        assert len((await here.model.state())["ran"]) == 3


async def stream_result(here: ComfySystem, graph: Graph) -> Answer:
    """Status and result of a stream."""
    async with here.post(STREAM, asked(graph)) as stream:
        return stream.status, (await events(stream))[-1]["result"]


async def test_an_invalid_prompt_is_422_with_comfyuis_own_errors(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        for path in (SYNC, STREAM):
            status, answer = await here.call(path, asked(invalid()))
            assert status == 422
            assert answer["error"]["type"] == "prompt_outputs_failed_validation"
            assert answer["node_errors"]["5"]["errors"][0]["details"] == "width"
        status, answer = await here.generate({"1": node("NoSuchNode")})
        assert (status, answer["error"]["message"]) == (
            *(422, "Cannot execute because node NoSuchNode does not exist."),
        )
        status, answer = await here.call("/custom-workflow", {"workflow": invalid()})
        assert (status, list(answer["node_errors"])) == (422, ["5"])
        assert (await here.model.state())["ran"] == []


async def test_one_of_two_outputs_may_be_invalid(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, answer = await here.generate({**image(), "10": node("SaveImage")})

        assert (status, len(answer["output"])) == (200, 1)
        assert answer["node_errors"]["10"]["errors"][0]["type"] == "required_input_missing"


async def test_a_failed_node_is_500_with_its_name(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(failing(), request_id="bad")

        assert status == 500
        assert (answer["node_id"], answer["node_type"], answer["exception_type"]) == (
            "1",
            "RegexReplace",
            "re.error",
        )
        assert answer["error"] == (
            "node 1 (RegexReplace) failed: re.error: missing ), unterminated subpattern at position 0"
        )
        assert (answer["id"], answer["status"], answer["output"]) == ("bad", "failed", [])
        assert "traceback" not in answer
        status, answer = await here.call("/custom-workflow", {"workflow": failing()})
        assert (status, answer["node_type"]) == (500, "RegexReplace")
        async with here.post(STREAM, asked(failing())) as stream:
            all_events = await events(stream)
        assert (stream.status, all_events[-1]["status"]) == (200, "final_result")
        assert (all_events[-1]["result"]["status"], all_events[-1]["result"]["node_id"]) == ("failed", "1")
        await here.engine_got("Error", "Error", "Error")


async def test_a_stream_reports_the_progress(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        await queue_prompt_of_another_client(here, image(7, hold=True))
        async with here.post(STREAM, asked(image(8, size=640), request_id="req-sse")) as answer:
            assert answer.content_type == "text/event-stream"
            assert (await next_event(answer))["message"] == "Request queued"
            waiting = await next_event(answer)
            assert (waiting["status"], waiting["queue_position"]["position"]) == ("queued", 1)
            await here.model.steer(release=True)
            all_events = await events(answer)

        assert {event["request_id"] for event in all_events} == {"req-sse"}
        assert {event["status"] for event in all_events[:-1]} == {"processing"}
        nodes = [event["node"]["id"] for event in all_events[:-1] if "node" in event]
        assert list(dict.fromkeys(nodes)) == ["5", "3", "8", "9"]
        steps = [(e["node"]["type"], e["step"], e["steps"]) for e in all_events[:-1] if "step" in e]
        assert steps == [("KSampler", 1, 3), ("KSampler", 2, 3), ("KSampler", 3, 3)]
        result = all_events[-1]["result"]
        assert (all_events[-1]["status"], result["status"], result["id"]) == (
            "final_result",
            "completed",
            "req-sse",
        )
        output = result["output"][0]
        assert base64.b64decode(output["data"]) == await here.model.view(output)
        await here.engine_got("Success")


async def queue_prompt_of_another_client(here: ComfySystem, graph: Graph) -> str:
    """Queue a prompt of another client of ComfyUI. Returns its id when a prompt runs."""
    message = {"prompt": graph, "client_id": "someone-else"}
    async with here.http.post(here.model.url + "/prompt", json=message) as answer:
        queued = await answer.json()
    await here.model.until("running")
    return queued["prompt_id"]


@asynccontextmanager
async def asking(
    here: ComfySystem, path: str, payload: dict[str, Any], state: str
) -> AsyncGenerator[RawClient, None]:
    """A client that has sent a request, whose prompt is in ComfyUI's list `state`."""
    async with connected(here.url) as client:
        await client.post(path, here.envelope(payload))
        await here.model.until(state)
        yield client


@asynccontextmanager
async def in_background(call: Coroutine[Any, Any, Answer]) -> AsyncGenerator[asyncio.Task[Answer], None]:
    """Run `call` as a task during the block."""
    task = asyncio.ensure_future(call)
    try:
        yield task
    finally:
        task.cancel()


PATHS: dict[str, Callable[[], dict[str, Any]]] = {
    SYNC: lambda: asked(image(8, hold=True)),
    STREAM: lambda: asked(image(8, hold=True)),
    "/custom-workflow": lambda: {"workflow": image(8, hold=True)},
}


async def test_the_queued_prompt_of_a_disconnected_client_is_deleted(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        other = await queue_prompt_of_another_client(here, image(7, hold=True))
        for path, payload in PATHS.items():
            async with asking(here, path, payload(), "pending") as client:
                client.leave()
                state = await here.model.until_no("pending")
            assert (state["running"], state["interrupts"]) == ([other], [])
        await here.engine_got(*["Cancelled"] * len(PATHS))
        await here.model.steer(release=True)
        await here.model.until("history")
        assert (await here.generate(image(9)))[0] == 200
        state = await here.model.state()
        assert (state["ran"][0], len(state["ran"])) == (other, 2)


async def test_the_running_prompt_of_a_disconnected_client_is_interrupted(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        for number, (path, payload) in enumerate(PATHS.items(), 1):
            async with asking(here, path, payload(), "running") as client:
                ours = (await here.model.state())["running"]
                await queue_prompt_of_another_client(here, image(100 + number))
                client.half_close()
                state = await here.model.until("history", 2 * number)
            assert state["interrupts"][number - 1 :] == ours
            assert state["ran"][-1] not in state["interrupts"]  # the other client's prompt was executed
        await here.engine_got(*["Cancelled"] * len(PATHS))


async def test_a_prompt_queued_after_its_client_has_disconnected_is_removed(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        await here.model.steer(slow=True)
        async with asking(here, SYNC, asked(image(8, hold=True)), "posted") as client:
            client.leave()
            await here.model.until("posted")
        await here.model.steer(slow=False, release=True)
        await here.engine_got("Cancelled")
        await here.model.steer(release=False)
        await here.model.until("history")
        state = await here.model.state()
        assert (state["running"], state["pending"]) == ([], [])


async def test_a_client_that_disconnects_after_the_end_interrupts_no_prompt(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        assert (await here.generate(image(1)))[0] == 200
        other = await queue_prompt_of_another_client(here, image(7, hold=True))
        state = await here.model.state()
        assert (state["running"], state["interrupts"]) == ([other], [])
        await here.model.steer(release=True)


async def test_a_prompt_interrupted_by_another_client_is_500(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here, in_background(here.generate(image(hold=True))) as answer:
        await here.model.until("running")
        async with here.http.post(here.model.url + "/interrupt"):
            pass
        status, body = await answer
        assert (status, body["node_type"]) == (500, "Hold")
        assert "interrupted" in body["error"]


async def test_a_dropped_websocket_is_opened_again(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here, here.post(STREAM, asked(image(hold=True))) as answer:
        await here.model.until("running")
        await here.model.steer(drop=True)
        connections = (await here.model.until("connections", 2))["connections"]
        assert len(set(connections)) == 1  # the same client has come back
        await here.model.steer(release=True)
        all_events = await events(answer)
        assert all_events[-1]["result"]["status"] == "completed"
        assert [event["step"] for event in all_events if "step" in event] == [1, 2, 3]


async def test_without_events_the_history_is_polled(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        for number, how in enumerate(("no_sockets", "mute"), 1):
            await here.model.steer(**{how: True})
            status, answer = await here.generate(image(number))
            assert (status, len(answer["output"])) == (200, 1)
            async with here.post(STREAM, asked(image(10 + number))) as stream:
                all_events = await events(stream)
            assert all_events[-1]["result"]["status"] == "completed"
            await here.model.steer(**{how: False})


async def test_images_sent_over_the_websocket(tmp_path: Path) -> None:
    graph = {**image(), "9": node("SaveImageWebsocket", images=["8", 0])}
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(graph)
        assert status == 200
        contents = [base64.b64decode(output["data"]) for output in answer["output"]]
        assert contents == [png(json.dumps(graph) + str(number)) for number in range(3)]
        assert {(o["node_id"], o["type"], o["mimetype"]) for o in answer["output"]} == {
            ("9", "websocket", "image/png")
        }
        status, answer = await here.call(
            "/custom-workflow", {"workflow": {**graph, "5": {**graph["5"], "x": 1}}}
        )
        assert (status, len(answer["images"])) == (200, 3)
        await here.model.steer(no_sockets=True)
        status, answer = await here.generate(graph)
        assert status == 502
        assert "SaveImageWebsocket" in answer["error"]


async def test_a_prompt_lost_by_a_restart_is_502(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here, in_background(here.generate(image(hold=True))) as answer:
        await here.model.until("running")
        await here.model.steer(forget=True, drop=True)
        status, body = await answer
        assert status == 502
        assert "was it restarted?" in body["error"]
        await here.engine_got("Error")


async def test_a_killed_comfyui_is_502(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here, in_background(here.generate(image(hold=True))) as answer:
        await here.model.until("running")
        here.model.process.kill()
        status, body = await answer
        assert (status, body["status"]) == (502, "failed")
        assert "could not be reached" in body["error"]
        status, body = await here.generate(image())
        assert status == 502


async def test_a_job_beyond_the_time_limit_is_504_and_removed(tmp_path: Path) -> None:
    async with native_system(tmp_path, {"MODEL_TIMEOUT_S": "3"}) as here:
        status, body = await here.generate(image(hold=True))
        assert (status, body["error"]) == (504, "the model server took too long")
        assert len((await here.model.until("interrupts"))["interrupts"]) == 1


async def test_unsupported_fields_are_refused_by_name(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, answer = await here.call(
            SYNC,
            {
                "input": {
                    "modifier": "X",
                    "webhook": {"url": "http://a/"},
                    "workflow_json": {"1": "no node"},
                },
                "priority": 1,
            },
        )
        assert status == 422
        wrong = answer["payload"]
        assert set(wrong) == {"input", "priority"}
        assert set(wrong["input"]) == {"modifier", "webhook", "workflow_json"}
        assert "not supported by the native dialect" in wrong["input"]["webhook"]
        status, answer = await here.call(STREAM, {"input": {"request_id": "../x", "modifier": None}})
        assert (status, set(answer["payload"]["input"])) == (422, {"request_id", "workflow_json"})


PROMPT = 'a "fox",\n{{SEED}} \\ __RANDOM_INT__ ünïcödé 狐 {{PROMPT}}'


async def test_a_prompt_arrives_unchanged(tmp_path: Path) -> None:
    async with native_system(tmp_path, {"COMFY_MODEL": "sd3"}) as here:
        payload = {"prompt": PROMPT, "width": 640, "height": 512, "steps": 7, "seed": 2**64 - 1}
        status, answer = await here.call("/prompt", payload)

        assert (status, len(answer["images"])) == (200, 1)
        kind, _, data = answer["images"][0].partition(",")
        assert kind == "data:image/png;base64"
        history = await here.model.state()
        async with here.http.get(f"{here.model.url}/history/{history['ran'][0]}") as answered:
            entry = (await answered.json())[history["ran"][0]]
        graph = entry["prompt"][2]
        assert graph["6"]["inputs"]["text"] == PROMPT
        assert (graph["5"]["inputs"]["width"], graph["5"]["inputs"]["height"]) == (640, 512)
        assert (graph["3"]["inputs"]["steps"], graph["3"]["inputs"]["seed"]) == (7, 2**64 - 1)
        assert base64.b64decode(data) == await here.model.view(entry["outputs"]["9"]["images"][0])
        await here.engine_got("Success")
        await until(lambda: "workload=" in here.worker.output())


async def test_a_custom_workflow(tmp_path: Path) -> None:
    graph = image()
    graph["5"]["inputs"] |= {"width": "{{WIDTH}}", "height": "{{height}}"}
    graph["9"]["inputs"]["filename_prefix"] = "{{NAME}}-__RANDOM_INT__"
    async with native_system(tmp_path) as here:
        fields = {"width": 256, "height": 320, "name": "mine"}
        status, answer = await here.call("/custom-workflow", {"workflow": graph, "custom_fields": fields})

        assert (status, len(answer["images"])) == (200, 1)
        no_image = {"1": node("VHS_VideoCombine", images=["2", 0]), "2": node("VAEDecode")}
        status, answer = await here.call("/custom-workflow", {"workflow": no_image})
        assert (status, answer) == (422, {"error": "the workflow made no images"})


async def test_view_returns_a_file(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        _, made = await here.generate(image())
        output = made["output"][0]
        query = {name: output[name] for name in ("filename", "subfolder", "type")}
        async with here.view(query) as answer:
            assert (answer.status, answer.content_type) == (200, "image/png")
            assert answer.headers["Content-Disposition"] == f'filename="{output["filename"]}"'
            assert await answer.read() == base64.b64decode(output["data"])
        async with here.view(query, Range="bytes=0-7") as answer:
            assert (answer.status, await answer.read()) == (206, png("")[:8])
        async with here.view({"filename": "nothing.png"}) as answer:
            assert answer.status == 404
        async with here.view({"filename": "../secret", "type": "models"}) as answer:
            assert answer.status == 422
            assert set((await answer.json())["payload"]) == {"filename", "type"}
        async with here.http.get(here.url + "/view", params=query) as answer:
            assert answer.status == 422  # without authentication
        asked = [r["path"] for r in (await here.model.state())["requests"] if "/view" in r["path"]]
        assert len(asked) == 4  # of which the first is the worker's own
        await here.model.steer(release=False)
        async with asking(here, SYNC, asked_to_hold(), "running"), here.view(query) as answer:
            assert answer.status == 200  # it doesn't wait for the image under way


def asked_to_hold() -> dict[str, Any]:
    return asked(image(5, hold=True))


async def test_a_large_output_needs_little_memory(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        assert (await here.generate(image()))[0] == 200
        before_kib = here.worker.peak_memory_kib()
        async with here.post(SYNC, asked({"1": node("SaveLarge", size_mib=96)})) as answer:
            assert answer.status == 200
            length = 0
            async for chunk in answer.content.iter_any():
                length += len(chunk)
        assert length == answer.content_length
        assert length > 96 * 2**20 * 4 / 3
        assert here.worker.peak_memory_kib() - before_kib < 64 * 1024
        async with here.post(STREAM, asked({"1": node("SaveLarge", size_mib=32)})) as answer:
            body = await answer.read()
        assert body.endswith(b"}\n\n")
        assert len(body) > 32 * 2**20 * 4 / 3


async def test_the_benchmark_is_measured_and_saved(tmp_path: Path) -> None:
    async with native_system(tmp_path, measured=False) as here:
        state = await here.model.state()
        graphs = [json.dumps(await graph_of(here, prompt_id)) for prompt_id in state["ran"]]
        assert len(graphs) >= 2
        assert len(set(graphs)) == len(graphs)  # equal ones would come from the cache
        assert here.last_report.max_perf > 0
        saved = json.loads((tmp_path / "worker" / ".pyworker_benchmark.json").read_text())
        assert "comfyui /generate/sync native flux" in json.dumps(saved)


async def graph_of(here: ComfySystem, prompt_id: str) -> Graph:
    async with here.http.get(f"{here.model.url}/history/{prompt_id}") as answer:
        return (await answer.json())[prompt_id]["prompt"][2]
