"""An example client: `python -m workers.hello_world.client -k KEY -e NAME "Alice was"`.

With `-l` it asks the local engine, and needs neither key nor name. Every call has two steps, both shown
in `ask` and `stream`: the engine names a worker and signs for it, then the worker is called.
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
    """The whole answer at once."""
    # 1. `cost` is the request's workload, in the unit that the worker counts in: tokens.
    #    While no worker is ready, this asks again, with the same `request_idx`.
    worker = await engine.route(cost=tokens, on_wait=print_waiting)
    # 2. The worker is sent {"auth_data": what the engine answered, "payload": what we want}.
    payload = {"prompt": prompt, "max_response_tokens": tokens}
    async with engine.call(worker, "/generate", payload) as response:
        await raise_unless_ok(response)
        answer: dict[str, Any] = await response.json()
    return answer["response"]


async def stream(engine: RouteClient, prompt: str, tokens: int) -> None:
    """Print each token as it comes: one JSON object a line."""
    worker = await engine.route(cost=tokens, on_wait=print_waiting)
    payload = {"prompt": prompt, "max_response_tokens": tokens}
    async with engine.call(worker, "/generate_stream", payload) as response:
        await raise_unless_ok(response)
        async for line in response.content:
            print(json.loads(line)["token"], end="", flush=True)
    print()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Have the hello_world worker go on with a text, twice.")
    add_target_arguments(parser)
    parser.add_argument("--tokens", type=int, default=60, help="at most so many (default 60)")
    parser.add_argument("prompt", nargs="?", default="The White Rabbit")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(args.prompt + await ask(engine, args.prompt, args.tokens))
        print("\nAnd once more, token by token:\n")
        print(args.prompt, end="")
        await stream(engine, args.prompt, args.tokens)


if __name__ == "__main__":
    run_client(main)
