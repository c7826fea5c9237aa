"""An example client: `python -m workers.hello_world.client -k KEY -e NAME "Alice was"`.

With `-l` it uses the local engine, which needs neither a key nor a name. `ask` and `stream` show the two
steps of every call: get a worker and a signature from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import json
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


async def ask(engine: RouteClient, prompt: str, tokens: int) -> str:
    """Return the whole answer."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit, here tokens.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=tokens, on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": payload}.
    payload = {"prompt": prompt, "max_response_tokens": tokens}
    async with engine.call(worker, "/generate", payload) as response:
        await raise_unless_ok(response)
        answer: dict[str, Any] = await response.json()
    return answer["response"]


async def stream(engine: RouteClient, prompt: str, tokens: int) -> None:
    """Print the tokens as they arrive. The answer has one JSON object per line."""
    worker = await engine.route(cost=tokens, on_wait=print_waiting)
    payload = {"prompt": prompt, "max_response_tokens": tokens}
    async with engine.call(worker, "/generate_stream", payload) as response:
        await raise_unless_ok(response)
        async for line in response.content:
            print(json.loads(line)["token"], end="", flush=True)
    print()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Let the hello_world worker continue a text: first in one answer, then as a stream."
    )
    add_target_arguments(parser)
    parser.add_argument(
        "--tokens", type=int, default=60, help="maximum number of tokens to generate (default 60)"
    )
    parser.add_argument("prompt", nargs="?", default="The White Rabbit", help="the text to continue")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(args.prompt + await ask(engine, args.prompt, args.tokens))
        print("\nThe same as a stream:\n")
        print(args.prompt, end="")
        await stream(engine, args.prompt, args.tokens)


if __name__ == "__main__":
    run_client(main)
