"""Input files: in the request, by URL and in a form, with a worker and a fake ComfyUI as processes."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lib.data_types import JsonDataException
from tests.fakes.raw_client import connected
from tests.workers.comfyui.comfy_system import ComfySystem, native_system
from tests.workers.comfyui.graphs import Graph, node
from workers.comfyui.inputs import NOT_USED, Places, extract_files

SYNC = "/generate/sync"
PNG = b"\x89PNG photo"
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
# Files may be fetched from 127.0.0.1, but not from other loopback addresses.
LOCAL = {"INPUT_NETWORKS": "127.0.0.1/32", "INPUT_MAX_BYTES": "1000000", "INPUT_TIMEOUT_S": "20"}
PLACES = Places(("input", "workflow_json"), ("input", "inputs"))


def saved(**loaders: dict[str, Any]) -> Graph:
    """A graph that saves what its loader nodes load."""
    return {**loaders, "9": node("SaveImage", **{name: [name, 0] for name in loaders}, images=["1", 0])}


def image_of(value: Any) -> Graph:
    return saved(**{"1": node("LoadImage", image=value)})


async def loaded(here: ComfySystem) -> list[tuple[str, str]]:
    """The node and the content of each loaded file. No file is left in ComfyUI."""
    state = await here.model.until_no("kept")
    return [(item["node"], item["content"]) for item in state["loaded"]]


@asynccontextmanager
async def file_server(content: bytes = PNG) -> AsyncGenerator[str, None]:
    """The URL of a server of one file, whose path `/to/HOST` redirects to another host."""

    async def handle(request: web.Request) -> web.Response:
        if request.path.startswith("/to/"):
            return web.Response(status=302, headers={"Location": f"http://{request.path[4:]}/"})
        return web.Response(body=content, content_type="image/png")

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_files_in_every_notation_and_place(tmp_path: Path) -> None:
    data = base64.b64encode(PNG).decode()
    text = PNG.decode("latin-1")
    async with native_system(tmp_path, LOCAL) as here, file_server() as url:
        for graph, inputs in (
            (image_of(URI), None),
            (image_of(f"{url}/photo.png?signature=1"), None),
            (image_of({"data": data, "filename": "../a b.png"}), None),
            (image_of("photo.png"), {"photo.png": URI}),
            (image_of("photo.png [input]"), {"photo.png": f"{url}/x"}),
            (image_of("photo.png"), {"photo.png": {"data": data, "filename": "b.png"}}),
        ):
            before = len(await loaded(here))
            status, answer = await here.generate(graph, inputs=inputs)
            assert (status, answer.get("error")) == (200, None)
            assert (await loaded(here))[before:] == [("1", text)]
        paths = [item["path"] for item in (await here.model.state())["inputs"]]
        assert len({path.rpartition("/")[0] for path in paths}) == 6  # a folder for each request
        assert all(path.startswith("pyworker/") and path.endswith(".png") for path in paths)
        assert here.worker.output().count("signature") == 0


async def test_every_kind_of_loader_on_every_route(tmp_path: Path) -> None:
    graph = saved(
        **{
            "1": node("LoadImage", image="a.png"),
            "2": node("LoadImageMask", image=URI),
            "3": node("VHS_LoadVideo", video="a.mp4"),
            "4": node("LoadAudio", audio={"data": "c291bmQ=", "filename": "s.wav"}),
        }
    )
    inputs = {"a.png": URI, "a.mp4": "data:video/mp4;base64,dmlkZW8="}
    text = PNG.decode("latin-1")
    everything = [("1", text), ("2", text), ("3", "video"), ("4", "sound")]
    async with native_system(tmp_path) as here:
        assert (await here.generate(graph, inputs=inputs))[0] == 200
        assert sorted(await loaded(here)) == everything
        payload = {"input": {"workflow_json": graph, "inputs": inputs}}
        async with here.post("/generate/stream", payload) as stream:
            assert '"status": "completed"' in await stream.text()
        assert sorted((await loaded(here))[4:]) == everything
        fields = {"mask": URI}
        graph["2"]["inputs"]["image"] = "{{MASK}}"
        payload = {"workflow": graph, "inputs": inputs, "custom_fields": fields}
        status, answer = await here.call("/custom-workflow", payload)
        assert (status, len(answer.get("images", []))) == (200, 1)
        assert sorted((await loaded(here))[8:]) == everything


@pytest.mark.parametrize("route", [SYNC, "/custom-workflow"])
async def test_a_form_with_files(tmp_path: Path, route: str) -> None:
    graph = saved(**{"1": node("LoadImage", image="a.png"), "2": node("VHS_LoadVideo", video="b.mp4")})
    payload = {"input": {"workflow_json": graph}} if route == SYNC else {"workflow": graph}
    async with native_system(tmp_path) as here:

        async def post(payload: dict[str, Any], **files: bytes) -> tuple[int, Any]:
            form = aiohttp.FormData()
            for name, value in payload.items():
                form.add_field(name, json.dumps(value), content_type="application/json")
            for name, content in files.items():
                form.add_field(name.replace("_", "."), content, filename="any.png")
            header = here.system.header(100.0)
            async with here.http.post(here.url + route, data=form, headers=header) as answer:
                return answer.status, await answer.json()

        assert (await post(payload, a_png=PNG, b_mp4=b"video"))[0] == 200
        assert sorted(await loaded(here)) == [("1", PNG.decode("latin-1")), ("2", "video")]
        assert await post(payload, a_png=PNG, c_png=PNG) == (422, {"payload": {"c.png": NOT_USED}})
        status, answer = await post(payload, a_png=PNG)
        assert (status, list(answer["node_errors"])) == (422, ["2"])  # b.mp4 is in neither
        assert (await post({"other": 1}, a_png=PNG))[0] == 422
        assert len(await loaded(here)) == 2


async def test_files_that_cannot_be_had_are_422_with_their_place(tmp_path: Path) -> None:
    async with native_system(tmp_path, LOCAL) as here, file_server(bytes(1_000_001)) as url:
        private = "could not be fetched: its address is not a public one"
        for value, problem in (
            (f"{url}/to/127.0.0.2", private),
            ("http://169.254.169.254/latest/meta-data", private),
            ("http://localhost.:1/", "could not be fetched: no connection, or no valid answer"),
            (f"{url}/large", "has more than 1000000 bytes"),
            ("data:image/png;base64,?", "is not base64"),
            ("data:image/png;base64," + "A" * 400_004, "is larger than ComfyUI accepts"),
        ):
            status, answer = await here.generate(image_of(value))
            assert status == 422
            assert answer["payload"]["input"]["workflow_json"]["1"]["inputs"]["image"].startswith(problem)
            status, answer = await here.generate(image_of("a.png"), inputs={"a.png": value})
            assert status == 422
            assert answer["payload"]["input"]["inputs"]["a.png"].startswith(problem)
        status, answer = await here.call("/custom-workflow", {"workflow": image_of("http://127.0.0.3/")})
        assert (status, answer) == (422, {"payload": {"workflow": {"1": {"inputs": {"image": private}}}}})
        assert (await here.model.state())["ran"] == []
        assert await loaded(here) == []


async def test_the_files_of_a_disconnected_client_are_removed_too(tmp_path: Path) -> None:
    graph = {**image_of(URI), "2": node("Hold")}
    graph["9"]["inputs"]["wait"] = ["2", 0]
    async with native_system(tmp_path) as here, connected(here.url) as client:
        await client.post(SYNC, here.envelope({"input": {"workflow_json": graph}}))
        await here.model.until("running")
        assert len((await here.model.state())["kept"]) == 1
        client.leave()
        await here.model.until_no("kept")
        await here.engine_got("Cancelled")


def problem_and_path(problems: Any) -> tuple[list[str], str]:
    """The names that lead to the only problem, and the problem."""
    path: list[str] = []
    while isinstance(problems, dict):
        ((name, problems),) = cast("dict[str, Any]", problems).items()
        path.append(name)
    return path, problems


@pytest.mark.parametrize(
    ("graph", "named", "problems"),
    [
        (image_of("a.png"), {"b.png": URI}, {"inputs": {"b.png": NOT_USED}}),
        (image_of("a.png"), ["a.png"], {"inputs": "must be an object: {name of a file: the file}"}),
        (image_of("a.png"), {"a.png": 5}, {"inputs": {"a.png": "must be base64"}}),
        (image_of({}), None, {"workflow_json": {"1": {"inputs": {"image": "must be base64"}}}}),
        (image_of("a"), {"a": URI}, {"inputs": {"a": "must be the name of a file"}}),
        (image_of("a/b.png"), {"a/b.png": URI}, {"inputs": {"a/b.png": "must be the name of a file"}}),
        (image_of(".."), {"..": URI}, {"inputs": {"..": "must be the name of a file"}}),
    ],
)
def test_wrong_inputs_are_named(graph: Graph, named: Any, problems: dict[str, Any]) -> None:
    with pytest.raises(JsonDataException) as raised:
        extract_files(graph, named, PLACES)

    got, expected = problem_and_path(raised.value.message["input"]), problem_and_path(problems)
    assert got[0] == expected[0]
    assert got[1].startswith(expected[1])


@given(st.dictionaries(st.text(max_size=3), st.text() | st.lists(st.integers()), max_size=3))
def test_what_is_no_file_stays_unchanged(inputs: dict[str, Any]) -> None:
    graph = {
        "1": node("Text", text=URI, **{f"x{name}": value for name, value in inputs.items()}),
        "2": node("LoadImage", image="data.png", url="https://example.com/a.png"),
        "3": node("LoadImageFromUrl", image="https://example.com/a.png"),
        "4": {"class_type": "NoInputs"},
    }
    found = extract_files(graph, None, PLACES)
    assert (found.graph, found.files) == (graph, [])
