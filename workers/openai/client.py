"""An example client: `python -m workers.openai.client -k KEY -e NAME`, for each worker that speaks OpenAI.

It shows a completion, a chat, a chat whose answer is streamed, and a chat in which the model may call a
function of ours; name one of these to see it alone. With `-l` it asks the local engine, and needs neither key
nor name. Every call has two steps, both shown in `ask`: the engine names a worker and signs for it, then the
worker is called.
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

# What a request has unless it says otherwise. These are the client's: the worker adds nothing.
COMPLETION = {
    "prompt": "Hello",
    "max_tokens": 256,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.4,
    "stream": False,
}
CHAT = {name: value for name, value in COMPLETION.items() if name != "prompt"}

# A function that the model may ask us to call, in the words of the API.
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
    """The worker's answer to an OpenAI request, whole or streamed. A field that is None is left out."""
    request = {name: value for name, value in request.items() if value is not None}
    # 1. `cost` is the request's workload, in the unit that the worker counts in: tokens it may generate.
    #    While no worker is ready, this asks again, with the same `request_idx`.
    worker = await engine.route(cost=request["max_tokens"], on_wait=print_waiting)
    # 2. The worker is sent {"auth_data": what the engine answered, "payload": {"input": what we want}}.
    async with engine.call(worker, path, {"input": request}) as response:
        await raise_unless_ok(response)
        yield response


async def complete(engine: RouteClient, prompt: str, **options: Any) -> str:
    """How the model goes on with `prompt`. `options` go into the request, in all of these functions."""
    request = {**COMPLETION, "prompt": prompt, **options}
    async with ask(engine, "/v1/completions", request) as response:
        answer: dict[str, Any] = await response.json()
    return answer["choices"][0]["text"]


async def chat(engine: RouteClient, messages: Sequence[Any], **options: Any) -> dict[str, Any]:
    """The model's next message: an object with `content`, `tool_calls`, or both."""
    request = {**CHAT, "messages": messages, **options}
    async with ask(engine, "/v1/chat/completions", request) as response:
        answer: dict[str, Any] = await response.json()
    return answer["choices"][0]["message"]


async def stream(engine: RouteClient, messages: Sequence[Any], **options: Any) -> AsyncIterator[str]:
    """The content of the model's next message, piece by piece as it is generated."""
    request = {**CHAT, "messages": messages, **options, "stream": True}
    async with ask(engine, "/v1/chat/completions", request) as response:
        async for event in events(response.content):
            for choice in event.get("choices", []):
                if piece := choice["delta"].get("content"):
                    yield piece


async def use_tools(engine: RouteClient, question: str, **options: Any) -> str:
    """The model's answer to `question`, for which it may have `get_weather` called, once."""
    messages: list[Any] = [{"role": "user", "content": question}]
    # 1. The model either answers or says which functions to call, with which arguments.
    message = await chat(engine, messages, tools=[WEATHER], **options)
    calls: list[Any] = message.get("tool_calls") or []
    if calls:
        # 2. We call them, and put what it said and what came of it behind the question,
        messages.append(message)
        for call in calls:
            arguments = json.loads(call["function"]["arguments"])
            print(f"(the model calls {call['function']['name']} with {arguments})")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": get_weather(**arguments)})
        # 3. and ask again: now it has what it needs.
        message = await chat(engine, messages, tools=[WEATHER], **options)
    return message.get("content") or ""


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Its end is `[DONE]` or, with some servers, just its end."""
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
    parser = argparse.ArgumentParser(description="Ask a model that is served in OpenAI's protocol.")
    add_target_arguments(parser)
    parser.add_argument("--model", metavar="NAME", help="which model; left out, the worker's MODEL_NAME")
    parser.add_argument("--tokens", type=int, default=256, help="at most so many an answer (default 256)")
    parser.add_argument(
        "--strict", action="store_true", help="without top_k, which is not OpenAI's: some servers refuse it"
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"of {', '.join(SHOWS)} (default: all)")
    return parser


async def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if unknown := [what for what in args.what if what not in SHOWS]:
        parser.error(f"there is no {unknown[0]!r}: choose from {', '.join(SHOWS)}")
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
