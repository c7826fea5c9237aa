"""A fake OpenAI-compatible model server, as a process: `python -m tests.workers.openai.fake_server`.

It answers like real servers and generates only the token "word". Tests read the received requests (`GET
/received`) and wait until a client has disconnected (`GET /left`). Requests select failures: the prompt
"fail" gives a 500, "break" an error in a stream, "hang" a stream that stops, and an unknown `model` a 404.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.workers.fake_text_server import FakeTextServer, arguments, run

MODEL = "tiny"
SPEECH = bytes(range(256)) * 400
EXTRA_FIELDS = {"ignore_eos", "top_k"}
# Routes whose answers are of no interest, with and without /v1.
OTHERS = frozenset(
    {"/messages", "/tokenize", "/completion", "/infill", "/responses/r-1/cancel", "/load_lora_adapter"}
)


@dataclass(kw_only=True)
class FakeOpenAI(FakeTextServer):
    """The server. With `ignore_eos`, answers continue after `eos_after` tokens.

    `strict`: fields that are not part of OpenAI's API are an error. `done`: streams end with `[DONE]`.
    `usage`: answers contain the number of their tokens, streams on request. `streams`: whether it streams.
    `lacks`: routes that it doesn't have. `refuses`: fields that are an error.
    """

    strict: bool = False
    done: bool = True
    usage: bool = True
    streams: bool = True
    lacks: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/audio/transcriptions", self.form)
        app.router.add_post("/v1/audio/translations", self.form)
        app.router.add_post("/v1/images/edits", self.form)
        app.router.add_post("/v1/audio/voices", self.form)
        app.router.add_post("/{path:.*}", self.post)
        app.router.add_get("/{path:.*}", self.lookup)
        return app

    async def models(self, request: web.Request) -> web.Response:
        self._note(request)
        if request.path in self.lacks:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def lookup(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.json_response({"path": request.raw_path})

    async def form(self, request: web.Request) -> web.Response:
        """Answer with the parts of the received form."""
        parts: list[dict[str, Any]] = []
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                content = value.file.read()
                parts.append(
                    {
                        "name": name,
                        "filename": value.filename,
                        "type": value.content_type,
                        "size": len(content),
                        "sha256": hashlib.sha256(content).hexdigest(),
                    }
                )
            else:
                parts.append({"name": name, "text": str(value)})
        self._note(request)
        return web.json_response({"text": "word", "parts": parts})

    async def post(self, request: web.Request) -> web.StreamResponse:
        message: dict[str, Any] = await request.json()
        self._note(request, (await request.read()).decode())
        if unknown := set(message) & (self.refuses | (EXTRA_FIELDS if self.strict else set())):
            return _error(400, f"Unrecognized request argument: {', '.join(sorted(unknown))}")
        if message.get("model", MODEL) != MODEL:
            return _error(404, f"The model `{message['model']}` does not exist.")
        if not isinstance(message.get("messages", []), list) or message.get("max_tokens", 0) < 0:
            return _error(400, "Invalid request")
        answer = self._answers().get(request.path)
        if request.path.removeprefix("/v1") in OTHERS:
            return web.json_response({"path": request.raw_path})
        if answer is None or request.path in self.lacks:
            return web.json_response({"detail": "Not Found"}, status=404)
        return await answer(request, message)

    def _answers(self) -> Mapping[str, Any]:
        return {
            "/v1/completions": self.completion,
            "/v1/chat/completions": self.chat,
            "/v1/responses": self.response,
            "/v1/embeddings": self.embeddings,
            "/v1/rerank": self.rerank,
            "/v1/score": self.score,
            "/v1/audio/speech": self.speech,
            "/v1/images/generations": self.images,
        }

    async def completion(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        if message["prompt"] == "fail":
            return _error(500, "CUDA out of memory")
        tokens = self._tokens(message)
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": 1 + tokens}
        if message.get("stream") and self.streams:
            wanted = self.usage and message.get("stream_options", {}).get("include_usage")
            return await self._stream(
                request, message["prompt"], tokens, "text_completion", usage if wanted else None
            )
        choice = {"index": 0, "text": " word" * tokens, "finish_reason": "length"}
        answer: dict[str, Any] = {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": MODEL,
            "choices": [choice],
        }
        if self.usage:
            answer["usage"] = usage
        return web.json_response(answer)

    async def chat(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        last = message["messages"][-1]
        if message.get("stream"):
            return await self._stream(
                request, last["content"], self._tokens(message), "chat.completion.chunk"
            )
        said: dict[str, Any] = {"role": "assistant", "content": f"{last['role']}: {last['content']}"}
        if message.get("tools") and last["role"] == "user":
            call = {"name": message["tools"][0]["function"]["name"], "arguments": '{"city": "Lisbon"}'}
            said = {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call-1", "type": "function", "function": call}],
            }
        return web.json_response({"object": "chat.completion", "choices": [{"index": 0, "message": said}]})

    async def response(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.json_response({"object": "response", "output": [], "status": "completed"})

    async def embeddings(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]
        return web.json_response({"object": "list", "data": data})

    async def rerank(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        results = [{"index": i, "relevance_score": 0.5} for i in range(len(message["documents"]))]
        return web.json_response({"results": results})

    async def score(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.json_response({"object": "list", "data": [{"index": 0, "score": 0.5}]})

    async def speech(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.Response(body=SPEECH, content_type="audio/mpeg")

    async def images(self, _request: web.Request, message: dict[str, Any]) -> web.Response:
        return web.json_response({"created": 1, "data": [{"b64_json": "AAAA"}]})

    async def _stream(
        self,
        request: web.Request,
        prompt: str,
        tokens: int,
        kind: str,
        usage: Mapping[str, int] | None = None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        try:
            await response.prepare(request)
            while tokens > 0:
                part = {"text": " word"} if kind == "text_completion" else {"delta": {"content": " word"}}
                await _event(response, {"object": kind, "choices": [{"index": 0, **part}]})
                if prompt == "break":
                    await _event(response, {"error": {"message": "CUDA out of memory", "code": 500}})
                    return response
                if prompt == "hang":
                    await asyncio.Event().wait()
                tokens -= 1
            if usage is not None:
                await _event(response, {"object": kind, "choices": [], "usage": usage})
            if self.done:
                await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response

    def _tokens(self, message: Mapping[str, Any]) -> int:
        tokens = message.get("max_tokens")
        tokens = 16 if tokens is None else tokens
        if self.eos_after is None or message.get("ignore_eos"):
            return tokens
        return min(tokens, self.eos_after)

    def _note(self, request: web.Request, body: str | None = None) -> None:
        self.requests.append(
            {
                "method": request.method,
                "path": request.path_qs,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": body,
            }
        )


async def _event(response: web.StreamResponse, message: Mapping[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(message).encode() + b"\n\n")


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def main() -> None:
    parser = arguments()
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--no-done", action="store_true")
    parser.add_argument("--no-usage", action="store_true")
    parser.add_argument("--lacks", action="append", default=[], help="a route that it doesn't have")
    run(parser, _made, "%(levelname)s: %(message)s")


def _made(options: argparse.Namespace) -> FakeOpenAI:
    return FakeOpenAI(
        eos_after=options.eos_after,
        strict=options.strict,
        done=not options.no_done,
        usage=not options.no_usage,
        lacks=frozenset(options.lacks),
    )


if __name__ == "__main__":
    main()
