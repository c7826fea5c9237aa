"""Uploads to a small fake of S3, over a real socket."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.workers.comfyui.comfy_system import ComfySystem, native_system
from tests.workers.comfyui.graphs import image, node
from workers.comfyui import storage

needs_boto3 = pytest.mark.skipif(not storage.is_installed(), reason="the extra s3 is not installed")


class FakeS3:
    """Accepts objects signed with the key `good`; other requests get S3's error."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[str, bytes]] = {}
        self.url = ""

    async def put(self, request: web.Request) -> web.Response:
        content = await request.read()
        authorization = request.headers.get("Authorization", "")
        if not authorization.startswith("AWS4-HMAC-SHA256 Credential=good/"):
            error = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
            return web.Response(status=403, body=error, content_type="application/xml")
        self.objects[request.path] = (request.content_type, content)
        return web.Response(headers={"ETag": '"1"'})

    def bucket(self, key: str = "good") -> dict[str, str]:
        return {
            "access_key_id": key,
            "secret_access_key": "very secret",
            "endpoint_url": self.url,
            "bucket_name": "pictures",
            "region": "eu-1",
        }

    def environment(self, key: str = "good") -> dict[str, str]:
        return {f"S3_{name.upper()}": value for name, value in self.bucket(key).items()}


@asynccontextmanager
async def fake_s3() -> AsyncGenerator[FakeS3, None]:
    s3 = FakeS3()
    app = web.Application(client_max_size=2**30)
    app.router.add_put("/{key:.*}", s3.put)
    async with TestServer(app) as server:
        s3.url = str(server.make_url("")).rstrip("/")
        yield s3


async def check_uploaded(
    here: ComfySystem, s3: FakeS3, output: dict[str, Any], request_id: str, number: int
) -> None:
    assert "data" not in output
    url = urlsplit(str(output["url"]))
    assert f"{url.scheme}://{url.netloc}" == s3.url
    assert url.path == f"/pictures/{request_id}/{number}/{output['filename']}"
    query = parse_qs(url.query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["604800"]
    assert s3.objects[url.path] == (output["mimetype"], await here.model.view(output))


@needs_boto3
async def test_a_request_may_name_its_bucket(tmp_path: Path) -> None:
    graph = {**image(), "11": node("VHS_VideoCombine", images=["8", 0])}
    async with fake_s3() as s3, native_system(tmp_path) as here:
        status, answer = await here.generate(graph, request_id="req-1", s3=s3.bucket())

        assert status == 200
        for number, output in enumerate(answer["output"]):
            await check_uploaded(here, s3, output, "req-1", number)
        assert len(s3.objects) == 2
        status, answer = await here.generate(image())
        assert "data" in answer["output"][0]  # as long as nobody says otherwise


@needs_boto3
async def test_the_workers_own_bucket(tmp_path: Path) -> None:
    async with fake_s3() as s3, native_system(tmp_path, s3.environment(), measured=False) as here:
        assert s3.objects == {}  # the benchmark's images are nobody's
        status, answer = await here.generate(image(), request_id="req-1")

        assert status == 200
        await check_uploaded(here, s3, answer["output"][0], "req-1", 0)
        status, answer = await here.call("/custom-workflow", {"workflow": image(2)})
        assert answer["images"][0].startswith("data:image/png;base64,")
        assert "very secret" not in here.worker.output()


@needs_boto3
async def test_an_upload_that_fails(tmp_path: Path) -> None:
    async with fake_s3() as s3, native_system(tmp_path, s3.environment("bad")) as here:
        for more, expected in (({}, 502), ({"s3": s3.bucket("bad")}, 422)):
            status, answer = await here.generate(image(), **more)
            assert (status, answer["status"]) == (expected, "failed")
            assert "no such key" in answer["error"]
            assert "secret" not in answer["error"]


@needs_boto3
async def test_a_wrong_bucket_is_refused_before_the_prompt_runs(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        wrong = {"endpoint_url": "ftp://a", "bucket_name": 5, "acl": "public", "access_key_id": "a"}
        status, answer = await here.generate(image(), s3=wrong)

        assert status == 422
        assert answer["payload"]["input"]["s3"] == {
            "endpoint_url": "must be an http(s) URL",
            "bucket_name": "must be a string",
            "acl": "unknown parameter",
            "secret_access_key": "missing parameter",
        }
        status, answer = await here.generate(image(), s3="mine")
        assert answer["payload"]["input"]["s3"] == "must be an object"
        assert (await here.model.state())["ran"] == []


# Hides boto3 from the worker's process.
HIDE = 'import sys\nsys.modules["boto3"] = None\n'


async def test_without_boto3_the_answer_names_the_missing_package(tmp_path: Path) -> None:
    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE)
    async with native_system(tmp_path, {"PYTHONPATH": f"{folder}:{':'.join(sys.path)}"}) as here:
        status, answer = await here.generate(image(), s3=FakeS3().bucket())

        assert status == 422
        assert "pip install 'pyworker[s3]'" in answer["payload"]["input"]["s3"]
