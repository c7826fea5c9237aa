"""An example client: `python -m workers.tgi.client -k KEY -e NAME "Once upon a time"`.

With `-l` it uses the local engine, which needs neither a key nor a name. `ask` shows the two steps of every
call: get a worker and a signature from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
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


@asynccontextmanager
async def ask(
    engine: RouteClient, path: str, inputs: str, **parameters: Any
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """The worker's answer at `path`. `parameters` are TGI's and include `max_new_tokens`."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit: the maximum number of tokens.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=parameters["max_new_tokens"], on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": the request}.
    async with engine.call(worker, path, {"inputs": inputs, "parameters": parameters}) as response:
        await raise_unless_ok(response)
        yield response


async def complete(engine: RouteClient, inputs: str, tokens: int) -> str:
    """Return the model's continuation of `inputs`."""
    async with ask(engine, "/generate", inputs, max_new_tokens=tokens) as response:
        answer: dict[str, Any] = await response.json()
    return answer["generated_text"]


async def stream(engine: RouteClient, inputs: str, tokens: int) -> None:
    """Print the tokens as they arrive. Each is a server-sent event."""
    async with ask(engine, "/generate_stream", inputs, max_new_tokens=tokens) as response:
        async for line in response.content:
            name, _, data = line.decode().partition(":")
            if name != "data":
                continue
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise CallFailed(f"TGI: {event['error']}")
            if not event["token"]["special"]:
                print(event["token"]["text"], end="", flush=True)
    print()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Let a model on TGI continue a text: first in one answer, then as a stream."
    )
    add_target_arguments(parser)
    parser.add_argument(
        "--tokens", type=int, default=64, help="maximum number of tokens to generate (default 64)"
    )
    parser.add_argument("inputs", nargs="?", default="Once upon a time", help="the text to continue")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(args.inputs + await complete(engine, args.inputs, args.tokens))
        print("\nThe same as a stream:\n")
        print(args.inputs, end="", flush=True)
        await stream(engine, args.inputs, args.tokens)


if __name__ == "__main__":
    run_client(main)
