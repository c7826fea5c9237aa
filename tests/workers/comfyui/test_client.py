from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from lib.client import CallFailed, RouteClient, Target
from tests.system import ROOT
from tests.workers.comfyui.comfy_system import ComfySystem, native_system
from tests.workers.comfyui.images import png
from workers.comfyui import client


async def run(here: ComfySystem, folder: Path, *arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "workers.comfyui.client", "--engine", here.engine_url, *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_it_saves_an_image(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        status, output, errors = await run(here, tmp_path, "-o", "fox", "--width", "512", 'a "red" fox')

        assert (status, output, errors) == (0, "fox.png\n", "")
        assert (tmp_path / "fox.png").read_bytes().startswith(png("")[:8])
        await here.engine_got("Success")
        status, output, errors = await run(here, tmp_path, "--steps", "0")
        assert (status, output) == (1, "")
        assert "steps" in errors
        assert "Traceback" not in errors


async def test_a_refused_request_raises(tmp_path: Path) -> None:
    async with native_system(tmp_path) as here:
        engine = RouteClient(here.http, Target(here.engine_url, "local", "key"))
        here.model.process.kill()
        with pytest.raises(CallFailed, match="HTTP 502"):
            await client.make(engine, {"prompt": "x"})


def test_several_images_get_numbers(tmp_path: Path) -> None:
    images = [("image/png", b"one"), ("image/webp", b"two")]

    assert [p.name for p in client.save(images, tmp_path / "a")] == ["a.png", "a_2.webp"]
    assert [p.name for p in client.save(images, tmp_path / "b.img")] == ["b.img", "b_2.img"]
    assert (tmp_path / "a_2.webp").read_bytes() == b"two"
