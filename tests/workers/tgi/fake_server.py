"""A fake Text Generation Inference, as a process: `python -m tests.workers.tgi.fake_server`.

It answers like TGI and generates only the token " word". Tests read the received requests (`GET /received`)
and wait until a client has disconnected (`GET /left`). The prompt selects failures: "fail" gives a 424,
"overloaded" a 429, "crash" a 500, "break" an error in a stream, "hang" a stream that stops. A temperature of
0 gives a 422.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.workers.fake_text_server import FakeTextServer, arguments, run

FAILURES = {
    "fail": (424, "Request failed during generation: Server error: CUDA out of memory", "generation"),
    "overloaded": (429, "Model is overloaded", "overloaded"),
    "crash": (500, "Incomplete generation", "incomplete_generation"),
}
WORD = " word"


@dataclass(kw_only=True)
class FakeTgi(FakeTextServer):
    """The server."""

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/generate_stream", self.generate)
        return app

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append({"path": request.path, "body": json.dumps(asked)})
        if not isinstance(asked.get("inputs"), str):
            return _error(422, "invalid type: expected a string", "validation")
        if asked["inputs"] in FAILURES:
            return _error(*FAILURES[asked["inputs"]])
        if asked["parameters"].get("temperature") == 0:
            return _error(
                422, "Input validation error: `temperature` must be strictly positive", "validation"
            )
        count = min(asked["parameters"]["max_new_tokens"], self.eos_after or sys.maxsize)
        reason = "length" if count == asked["parameters"]["max_new_tokens"] else "eos_token"
        details = {"finish_reason": reason, "generated_tokens": count, "seed": None}
        if request.path == "/generate":
            answer = {"generated_text": WORD * count}
            wanted = asked["parameters"].get("details")
            return web.json_response({**answer, "details": details} if wanted else answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self._stream(response, asked["inputs"], count, details)
        except (asyncio.CancelledError, ConnectionError):
            self.disconnected.set()
            raise
        return response

    async def _stream(
        self, response: web.StreamResponse, prompt: str, count: int, details: Mapping[str, Any]
    ) -> None:
        for index in range(1, count + 1):
            token = {"id": 7, "text": WORD, "logprob": -0.5, "special": False}
            last = index == count
            ending = {"generated_text": WORD * count, "details": details} if last else {}
            await _event(
                response, {"index": index, "token": token, "generated_text": None, "details": None, **ending}
            )
            if prompt == "break":
                return await _event(response, {"error": FAILURES["fail"][1], "error_type": "generation"})
            if prompt == "hang":
                await asyncio.Event().wait()
        return None


async def _event(response: web.StreamResponse, message: Mapping[str, Any]) -> None:
    await response.write(b"data:" + json.dumps(message, separators=(",", ":")).encode() + b"\n\n")


def _error(status: int, message: str, kind: str) -> web.Response:
    return web.json_response({"error": message, "error_type": kind}, status=status)


if __name__ == "__main__":
    run(arguments(), lambda options: FakeTgi(eos_after=options.eos_after), "%(message)s")
