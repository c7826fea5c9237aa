"""An example client: `python -m workers.whisper.client -k KEY -e NAME question.wav`.

With `-l` it uses the local engine, which needs neither a key nor a name. Without a file it sends a tone, in
which there is nothing to hear. `transcribe` shows the two steps of every call: get a worker and a signature
from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import aiohttp

from lib.client import (
    RouteClient,
    add_target_arguments,
    print_waiting,
    raise_unless_ok,
    run_client,
    target_from_args,
)
from workers.openai.workload import of_recording
from workers.whisper.data_types import tone_wav


async def transcribe(engine: RouteClient, path: str, filename: str, sound: bytes, **options: Any) -> str:
    """Return the text of `sound`. `options` are further fields of OpenAI's request, such as `language`."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=of_recording(len(sound)), on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": the request}.
    request = {"file": base64.b64encode(sound).decode(), "filename": filename, **options}
    async with engine.call(worker, path, request) as response:
        await raise_unless_ok(response)
        answer: dict[str, Any] = await response.json()
    return answer["text"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Transcribe a recording.")
    add_target_arguments(parser)
    parser.add_argument(
        "--path",
        default="/v1/audio/transcriptions",
        help="the route (default /v1/audio/transcriptions; /inference for whisper.cpp)",
    )
    parser.add_argument("--language", help="the language, such as en (default: detected)")
    parser.add_argument("file", nargs="?", type=Path, help="the recording (default: a tone)")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    options = {"language": args.language} if args.language else {}
    name, sound = (args.file.name, args.file.read_bytes()) if args.file else ("tone.wav", tone_wav(440))
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(await transcribe(engine, args.path, name, sound, **options))


if __name__ == "__main__":
    run_client(main)
