"""An example client, text to image: `python -m workers.comfyui.client -k KEY -e NAME "a red fox in snow"`.

With `-l` it asks the local engine, and needs neither key nor name. Every call has two steps, both shown
in `make`: the engine names a worker and signs for it, then the worker is called.
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
    """The images of one request to `/prompt`: content type and content of each."""
    # 1. `cost` is the request's workload, in the worker's unit. It grows with size and steps.
    #    While no worker is ready, this asks again, with the same `request_idx`.
    cost = workload(payload)
    worker = await engine.route(cost=cost, on_wait=print_waiting)
    # 2. The worker is sent {"auth_data": what the engine answered, "payload": what we want}.
    async with engine.call(worker, "/prompt", payload) as response:
        await raise_unless_ok(response)
        answer: dict[str, Any] = await response.json()
    return [decoded(uri) for uri in answer["images"]]


def workload(payload: dict[str, Any]) -> float:
    """What the request counts. Raises `CallFailed` where the worker would refuse it."""
    try:
        return PromptInput.from_json_msg(payload).count_workload()
    except JsonDataException as e:
        raise CallFailed(f"the worker would refuse this: {e.message}") from e


def decoded(uri: str) -> tuple[str, bytes]:
    """Content type and content of `data:image/png;base64,…`."""
    head, _, data = uri.partition(",")
    return head.removeprefix("data:").partition(";")[0], base64.b64decode(data)


def save(images: list[tuple[str, bytes]], path: Path) -> list[Path]:
    """Write the first image to `path`, others beside it with a number; what was written.

    A `path` without a suffix gets the one of the image's type.
    """
    paths: list[Path] = []
    for number, (kind, content) in enumerate(images):
        suffix = path.suffix or mimetypes.guess_extension(kind) or ".png"
        name = f"{path.stem}_{number + 1}{suffix}" if number else f"{path.stem}{suffix}"
        paths.append(path.with_name(name))
        paths[-1].write_bytes(content)
    return paths


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Have the comfyui worker make an image, and save it.")
    add_target_arguments(parser)
    parser.add_argument(
        "-o", dest="output", type=Path, default=Path("image"), help="file (default: image.png)"
    )
    parser.add_argument("--width", type=int, default=1024, help="in pixels (default 1024)")
    parser.add_argument("--height", type=int, default=1024, help="in pixels (default 1024)")
    parser.add_argument("--steps", type=int, default=28, help="the more, the finer (default 28)")
    parser.add_argument("--seed", type=int, help="the same seed makes the same image (default: a random one)")
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
