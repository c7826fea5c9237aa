"""An example client: `python -m workers.ollama.client -k KEY -e NAME "Why is the sky blue?"`.

With `-l` it uses the local engine, which needs neither a key nor a name. `ask` shows the two steps of every
call: get a worker and a signature from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator, Mapping
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
    engine: RouteClient, path: str, request: Mapping[str, Any], tokens: int
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """The worker's answer to a request of Ollama's API, limited to `tokens` tokens."""
    # 1. Get a worker. `cost` is the request's workload in the worker's unit: the maximum number of tokens.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=tokens, on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": the request}.
    async with engine.call(worker, path, {**request, "options": {"num_predict": tokens}}) as response:
        await raise_unless_ok(response)
        yield response


async def generate(engine: RouteClient, prompt: str, tokens: int) -> str:
    """Return the model's answer to `prompt` as a whole."""
    request = {"prompt": prompt, "stream": False}
    async with ask(engine, "/api/generate", request, tokens) as response:
        answer: dict[str, Any] = await response.json()
    return answer["response"]


async def chat(engine: RouteClient, content: str, tokens: int) -> None:
    """Print the model's next message as it is generated. Each line of the stream is a JSON object."""
    request = {"messages": [{"role": "user", "content": content}]}
    async with ask(engine, "/api/chat", request, tokens) as response:
        async for line in response.content:
            event: dict[str, Any] = json.loads(line)
            if "error" in event:
                raise CallFailed(f"Ollama: {event['error']}")
            print(event["message"]["content"], end="", flush=True)
    print()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Ask a model on Ollama: first for one answer, then for a message as a stream."
    )
    add_target_arguments(parser)
    parser.add_argument(
        "--tokens", type=int, default=256, help="maximum number of tokens per answer (default 256)"
    )
    parser.add_argument("prompt", nargs="?", default="Why is the sky blue?", help="the question")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        print(await generate(engine, args.prompt, args.tokens))
        print("\nThe same as a chat, streamed:\n")
        await chat(engine, args.prompt, args.tokens)


if __name__ == "__main__":
    run_client(main)
