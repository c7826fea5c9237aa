"""An example client: `python -m workers.tgi.client -k KEY -e NAME "Once upon a time"`.

With `-l` it asks the local engine, and needs neither key nor name. Every call has two steps, both shown in
`ask`: the engine names a worker and signs for it, then the worker is called.
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
    """The worker's answer on `path`; `parameters` are TGI's, `max_new_tokens` among them."""
    # 1. `cost` is the request's workload, in the unit that the worker counts in: tokens it may generate.
    #    While no worker is ready, this asks again, with the same `request_idx`.
    worker = await engine.route(cost=parameters["max_new_tokens"], on_wait=print_waiting)
    # 2. The worker is sent {"auth_data": what the engine answered, "payload": what we want}.
    async with engine.call(worker, path, {"inputs": inputs, "parameters": parameters}) as response:
        await raise_unless_ok(response)
        yield response


async def complete(engine: RouteClient, inputs: str, tokens: int) -> str:
    """How the model goes on with `inputs`."""
    async with ask(engine, "/generate", inputs, max_new_tokens=tokens) as response:
        answer: dict[str, Any] = await response.json()
    return answer["generated_text"]


async def stream(engine: RouteClient, inputs: str, tokens: int) -> None:
    """Print each token as it comes: one server-sent event each."""
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
    parser = argparse.ArgumentParser(description="Have a model that TGI serves go on with a text, twice.")
    add_target_arguments(parser)
    parser.add_argument("--tokens", type=int, default=64, help="at most so many (default 64)")
    parser.add_argument("inputs", nargs="?", default="Once upon a time")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(args.inputs + await complete(engine, args.inputs, args.tokens))
        print("\nAnd once more, token by token:\n")
        print(args.inputs, end="", flush=True)
        await stream(engine, args.inputs, args.tokens)


if __name__ == "__main__":
    run_client(main)
