"""An example client, text to image: `python -m workers.comfyui.client -k KEY -e NAME "a red fox in snow"`.

With `-l` it uses the local engine, which needs neither a key nor a name. `make` shows the two steps of every
call: get a worker and a signature from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
from pathlib import Path
from typing import Any

import aiohttp

from lib.client import (
    CallFailed,
    RouteClient,
    add_target_arguments,
    print_waiting,
    raise_unless_ok,
    run_client,
    target_from_args,
)
from lib.data_types import JsonDataException
from workers.comfyui.data_types import PromptInput


async def make(engine: RouteClient, payload: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Request images from `/prompt`. Return the content type and the content of each."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit. It grows with size and steps.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    cost = workload(payload)
    worker = await engine.route(cost=cost, on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": payload}.
    async with engine.call(worker, "/prompt", payload) as response:
        await raise_unless_ok(response)
        answer: dict[str, Any] = await response.json()
    return [decoded(uri) for uri in answer["images"]]


def workload(payload: dict[str, Any]) -> float:
    """The request's workload. Raises `CallFailed` for a request that the worker would refuse."""
    try:
        return PromptInput.from_json_msg(payload).count_workload()
    except JsonDataException as e:
        raise CallFailed(f"the worker would refuse this: {e.message}") from e


def decoded(uri: str) -> tuple[str, bytes]:
    """Content type and content of a data URI, such as `data:image/png;base64,…`."""
    head, _, data = uri.partition(",")
    return head.removeprefix("data:").partition(";")[0], base64.b64decode(data)


def save(images: list[tuple[str, bytes]], path: Path) -> list[Path]:
    """Write the first image to `path`, others to the same folder with a number. Return the paths.

    A `path` without an extension gets the one of the image's type.
    """
    paths: list[Path] = []
    for number, (kind, content) in enumerate(images):
        suffix = path.suffix or mimetypes.guess_extension(kind) or ".png"
        name = f"{path.stem}_{number + 1}{suffix}" if number else f"{path.stem}{suffix}"
        paths.append(path.with_name(name))
        paths[-1].write_bytes(content)
    return paths


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Let the comfyui worker make an image, and save it.")
    add_target_arguments(parser)
    parser.add_argument(
        "-o", dest="output", type=Path, default=Path("image"), help="file to write (default: image.png)"
    )
    parser.add_argument("--width", type=int, default=1024, help="in pixels (default 1024)")
    parser.add_argument("--height", type=int, default=1024, help="in pixels (default 1024)")
    parser.add_argument(
        "--steps", type=int, default=28, help="number of sampling steps; more give a finer image (default 28)"
    )
    parser.add_argument("--seed", type=int, help="the same seed makes the same image (default: random)")
    parser.add_argument("prompt", nargs="?", default="a red fox in the snow, early morning, photograph")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    names = ("prompt", "width", "height", "steps", "seed")
    payload = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    async with aiohttp.ClientSession() as http:
        images = await make(RouteClient(http, target_from_args(parser, args)), payload)
    for path in save(images, args.output):
        print(path)


if __name__ == "__main__":
    run_client(main)
