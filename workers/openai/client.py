"""An example client for the workers with OpenAI's API: `python -m workers.openai.client -k KEY -e NAME`.

It shows a completion, a chat, a streamed chat, and a chat in which the model may call a function; arguments
select some of these. With `-l` it uses the local engine, which needs neither a key nor a name. `ask` shows
the two steps of every call: get a worker and a signature from the engine, then call the worker.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
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

# Default fields of a request. They are this client's; the worker adds none of them.
COMPLETION = {
    "prompt": "Hello",
    "max_tokens": 256,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.4,
    "stream": False,
}
CHAT = {name: value for name, value in COMPLETION.items() if name != "prompt"}

# A function that the model may call, described as the API requires it.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city at this moment.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def get_weather(city: str) -> str:
    return json.dumps({"city": city, "celsius": 21, "sky": "clear"})


@asynccontextmanager
async def ask(
    engine: RouteClient, path: str, request: Mapping[str, Any]
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    """The worker's answer to an OpenAI request. Fields that are None are not sent."""
    request = {name: value for name, value in request.items() if value is not None}
    # 1. Get a worker. `cost` is the request's workload in the worker's unit: the maximum number of tokens.
    #    While no worker is ready, `route` repeats its request with the same `request_idx`.
    worker = await engine.route(cost=request["max_tokens"], on_wait=print_waiting)
    # 2. Call it. `call` sends {"auth_data": the engine's answer, "payload": {"input": request}}.
    async with engine.call(worker, path, {"input": request}) as response:
        await raise_unless_ok(response)
        yield response


async def complete(engine: RouteClient, prompt: str, **options: Any) -> str:
    """Return the model's continuation of `prompt`. `options` are further fields of the request."""
    request = {**COMPLETION, "prompt": prompt, **options}
    async with ask(engine, "/v1/completions", request) as response:
        answer: dict[str, Any] = await response.json()
    return answer["choices"][0]["text"]


async def chat(engine: RouteClient, messages: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Return the model's next message: an object with `content`, `tool_calls`, or both."""
    request = {**CHAT, "messages": messages, **options}
    async with ask(engine, "/v1/chat/completions", request) as response:
        answer: dict[str, Any] = await response.json()
    return answer["choices"][0]["message"]


async def stream(engine: RouteClient, messages: Sequence[Any], **options: Any) -> AsyncIterator[str]:
    """Yield the content of the model's next message in parts, as it is generated."""
    request = {**CHAT, "messages": messages, **options, "stream": True}
    async with ask(engine, "/v1/chat/completions", request) as response:
        async for event in events(response.content):
            for choice in event.get("choices", []):
                if piece := choice["delta"].get("content"):
                    yield piece


async def use_tools(engine: RouteClient, question: str, **options: Any) -> str:
    """Return the model's answer to `question`. The model may call `get_weather` once."""
    messages: list[Any] = [{"role": "user", "content": question}]
    # 1. The model answers, or names the functions to call and their arguments.
    message = await chat(engine, messages, tools=[WEATHER], **options)
    calls: list[Any] = message.get("tool_calls") or []
    if calls:
        # 2. Call them. Append the model's message and the results to the conversation.
        messages.append(message)
        for call in calls:
            arguments = json.loads(call["function"]["arguments"])
            print(f"(the model calls {call['function']['name']} with {arguments})")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": get_weather(**arguments)})
        # 3. Ask again. The model answers with the results.
        message = await chat(engine, messages, tools=[WEATHER], **options)
    return message.get("content") or ""


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events of a stream. Some servers end it without `[DONE]`."""
    async for line in lines:
        name, _, data = line.decode().strip().partition(":")
        if name != "data" or data.strip() == "[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise CallFailed(f"model server: {event['error']}")
        yield event


async def show_completion(engine: RouteClient, options: Mapping[str, Any]) -> None:
    print(await complete(engine, "The capital of France is", **options))


async def show_chat(engine: RouteClient, options: Mapping[str, Any]) -> None:
    message = await chat(engine, [{"role": "user", "content": "What is a worker bee?"}], **options)
    print(message.get("content"))


async def show_stream(engine: RouteClient, options: Mapping[str, Any]) -> None:
    async for piece in stream(engine, [{"role": "user", "content": "Tell me a short story."}], **options):
        print(piece, end="", flush=True)
    print()


async def show_tools(engine: RouteClient, options: Mapping[str, Any]) -> None:
    print(await use_tools(engine, "What is the weather in Lisbon?", **options))


SHOWS = {"completion": show_completion, "chat": show_chat, "stream": show_stream, "tools": show_tools}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send example requests to a worker with OpenAI's API.")
    add_target_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="the model (default: the worker's MODEL_NAME)")
    parser.add_argument(
        "--tokens", type=int, default=256, help="maximum number of tokens per answer (default 256)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="don't send top_k, which is not part of OpenAI's API and which some servers refuse",
    )
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help=f"the examples to run: {', '.join(SHOWS)} (default: all)"
    )
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if unknown := [what for what in args.what if what not in SHOWS]:
        parser.error(f"unknown example {unknown[0]!r}: choose from {', '.join(SHOWS)}")
    options: dict[str, Any] = {"max_tokens": args.tokens}
    if args.model:
        options["model"] = args.model
    if args.strict:
        options["top_k"] = None
    async with aiohttp.ClientSession() as http:
        engine = RouteClient(http, target_from_args(parser, args))
        for what in args.what or SHOWS:
            print(f"\n# {what}\n")
            await SHOWS[what](engine, options)


if __name__ == "__main__":
    run_client(main)
