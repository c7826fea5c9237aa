"""A fake Ollama, as a process: `python -m tests.workers.ollama.fake_server`.

It answers like Ollama and generates only the token " word". Tests read the received requests (`GET
/received`) and wait until a client has disconnected (`GET /left`). The prompt selects failures: "fail" gives
a 500, "break" an error in a stream, "cut" a stream without its last line, "hang" a stream that stops. An
unknown `model` gives a 404, and so do the first `unpulled` requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.workers.fake_text_server import FakeTextServer, arguments, run

MODEL = "tiny"
WORD = " word"
CRASHED = "an error was encountered while running the model: CUDA error"
# 16 numbers for each token, as Ollama's last line has those of the whole conversation.
CONTEXT_PER_TOKEN = 16


@dataclass(kw_only=True)
class FakeOllama(FakeTextServer):
    """The server. `unpulled`: so many requests are answered as if the model were missing."""

    unpulled: int = 0

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/api/generate", self.generate)
        app.router.add_post("/api/chat", self.generate)
        for path, answer in (
            ("/api/embed", {"model": MODEL, "embeddings": [[0.5, -1.0]]}),
            ("/api/embeddings", {"embedding": [0.5, -1.0]}),
            ("/api/show", {"details": {"family": "tiny"}}),
        ):
            app.router.add_post(path, lambda request, answer=answer: self.noted(request, answer))
        for path, answer in (
            ("/api/version", {"version": "0.12.0"}),
            ("/api/tags", {"models": [{"name": MODEL}]}),
            ("/api/ps", {"models": [{"name": MODEL}]}),
        ):
            app.router.add_get(path, lambda _, answer=answer: _json(answer))
        app.router.add_route("*", "/{path:.*}", lambda request: self.noted(request, {}))
        return app

    async def noted(self, request: web.Request, answer: Mapping[str, Any]) -> web.Response:
        self.requests.append({"path": request.path, "body": (await request.read()).decode()})
        return web.json_response(answer)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append({"path": request.path, "body": json.dumps(asked)})
        if self.unpulled > 0 or asked.get("model") != MODEL:
            self.unpulled -= 1
            return web.json_response({"error": f"model '{asked.get('model')}' not found"}, status=404)
        if not isinstance(asked.get("options", {}), dict):
            return web.json_response({"error": "json: cannot unmarshal the options"}, status=400)
        is_chat = request.path == "/api/chat"
        prompt = asked["messages"][-1]["content"] if is_chat else asked.get("prompt", "")
        if not prompt:
            return web.json_response({"model": MODEL, "response": "", "done": True, "done_reason": "load"})
        if prompt == "fail":
            return web.json_response({"error": CRASHED}, status=500)
        count = asked.get("options", {}).get("num_predict", 8)
        count = min(count, self.eos_after or sys.maxsize)
        last = {"done": True, "done_reason": "length", "eval_count": count}
        if not asked.get("stream", True):
            return web.json_response({"model": MODEL, **_text(is_chat, WORD * count), **last})
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        try:
            for _ in range(count):
                await _line(response, {"model": MODEL, **_text(is_chat, WORD), "done": False})
                if prompt == "hang":
                    await asyncio.Event().wait()
                if prompt == "break":
                    await _line(response, {"error": CRASHED})
                    return response
                if prompt == "cut":
                    return response
            context = [7] * CONTEXT_PER_TOKEN * count
            await _line(response, {"model": MODEL, **_text(is_chat, ""), **last, "context": context})
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response


def _text(is_chat: bool, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}


async def _json(answer: Mapping[str, Any]) -> web.Response:
    return web.json_response(answer)


async def _line(response: web.StreamResponse, message: Mapping[str, Any]) -> None:
    await response.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _made(options: argparse.Namespace) -> FakeOllama:
    return FakeOllama(eos_after=options.eos_after, unpulled=options.unpulled)


if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("--unpulled", type=int, default=0)
    run(parser, _made, "%(message)s")
