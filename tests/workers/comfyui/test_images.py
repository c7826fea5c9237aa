"""Images in another format: the conversion, and answers of a worker."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.workers.comfyui.comfy_system import native_system
from tests.workers.comfyui.graphs import image, node
from tests.workers.comfyui.images import png
from workers.comfyui import images
from workers.comfyui.images import ImageFormat, format_in, format_problems, in_format


def encoded(mode: str, kind: str = "png", **options: Any) -> bytes:
    target = io.BytesIO()
    Image.new(mode, (40, 30), 1 if mode in ("P", "1", "I;16") else None).save(target, kind, **options)
    return target.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    target = io.BytesIO()
    frames[0].save(target, kind, save_all=True, append_images=frames[1:])
    return target.getvalue()


@pytest.mark.parametrize("name", ["webp", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"])
def test_every_kind_of_png_is_converted(name: str, mode: str) -> None:
    converted = ImageFormat(name, 50).converted(encoded(mode))
    assert converted is not None
    with Image.open(io.BytesIO(converted)) as result:
        assert (result.format, result.size) == (name.upper(), (40, 30))


def test_what_was_transparent_is_white_in_a_jpeg() -> None:
    converted = ImageFormat("jpeg").converted(encoded("RGBA"))
    assert converted is not None
    with Image.open(io.BytesIO(converted)) as result:
        assert result.getpixel((5, 5)) == (255, 255, 255)


def test_a_lower_quality_is_smaller() -> None:
    target = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(target, "png")
    sizes = [len(ImageFormat("webp", q).converted(target.getvalue()) or b"") for q in (20, 60, 95)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("content", [b"", b"no image", animated("png"), animated("gif"), encoded("RGB")[:60]])
def test_what_is_no_single_image_is_not_converted(content: bytes) -> None:
    assert ImageFormat("webp").converted(content) is None


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, []),
        ({"output_format": "webp", "output_quality": 100}, []),
        ({"output_format": "jpeg", "output_quality": None}, []),
        ({"output_format": "gif"}, ["output_format"]),
        ({"output_format": ["webp"]}, ["output_format"]),
        ({"output_format": "webp", "output_quality": 0}, ["output_quality"]),
        ({"output_format": "webp", "output_quality": True}, ["output_quality"]),
        ({"output_quality": 50}, ["output_quality"]),
    ],
)
def test_wrong_formats_are_named(given: dict[str, Any], problems: list[str]) -> None:
    assert list(format_problems(given)) == problems
    if not problems:
        assert (format_in(given) is None) == (not given)


def test_without_pillow_the_answer_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    problems = format_problems({"output_format": "webp"})
    assert problems == {"output_format": "needs Pillow on the worker: pip install 'pyworker[images]'"}
    assert format_problems({}) == {}


@pytest.mark.parametrize(
    ("mimetype", "content", "limit", "expected"),
    [
        ("image/png", encoded("RGB"), 10**6, "image/webp"),
        ("image/png", encoded("RGB"), 50, "image/png"),  # too large
        ("image/png", b"no image", 10**6, "image/png"),
        ("image/webp", encoded("RGB", "webp"), 10**6, "image/webp"),
        ("video/mp4", encoded("RGB"), 10**6, "video/mp4"),
    ],
)
async def test_other_files_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, mimetype: str, content: bytes, limit: int, expected: str
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", limit)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 20):
            yield content[start : start + 20]

    @asynccontextmanager
    async def opened() -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
        yield mimetype, chunks()

    async with in_format(opened(), ImageFormat("webp")) as (kind, parts):
        got = b"".join([part async for part in parts])
    assert kind == expected
    assert (got == content) == (mimetype == expected)


async def test_answers_in_another_format(tmp_path: Path) -> None:
    graph = {**image(), "10": node("VHS_VideoCombine", images=["8", 0])}
    async with native_system(tmp_path) as here:
        status, answer = await here.generate(graph, output_format="webp", output_quality=70)
        assert status == 200
        first, video = answer["output"]
        assert (first["mimetype"], first["filename"][-4:], video["mimetype"]) == (
            "image/webp",
            ".png",  # ComfyUI's own, for /view
            "video/mp4",
        )
        content = base64.b64decode(first["data"])
        with Image.open(io.BytesIO(content)) as result:
            assert (result.format, result.size) == ("WEBP", Image.open(io.BytesIO(png(""))).size)
        for path, payload in (("/prompt", {"prompt": "fox"}), ("/custom-workflow", {"workflow": graph})):
            status, answer = await here.call(path, {**payload, "output_format": "jpeg"})
            assert (status, answer["images"][0][:23]) == (200, "data:image/jpeg;base64,")
            status, answer = await here.call(path, {**payload, "output_format": "gif"})
            assert (status, list(answer["payload"])) == (422, ["output_format"])
        status, answer = await here.generate(graph, output_format="gif")
        assert (status, list(answer["payload"]["input"])) == (422, ["output_format"])
