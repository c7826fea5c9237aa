"""A fake server that transcribes, as a process: `python -m tests.workers.whisper.fake_server`.

It answers like speaches or, with `--cpp`, like whisper.cpp's server. Tests read the received forms (`GET
/received`). The language selects failures: "fail" gives a 500, "break" an error in a stream, "old" the error
with status 200 of older versions of whisper.cpp.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.workers.fake_text_server import FakeTextServer, arguments, run

MODEL = "tiny"
ROUTES = ("/v1/audio/transcriptions", "/v1/audio/translations")


@dataclass(kw_only=True)
class FakeWhisper(FakeTextServer):
    """The server. `fails`: each transcription fails as in older versions of whisper.cpp."""

    cpp: bool = False
    fails: bool = False

    def app(self) -> web.Application:
        app = super().app()
        for path in ("/inference",) if self.cpp else ROUTES:
            app.router.add_post(path, self.transcribe)
        if not self.cpp:
            app.router.add_get("/v1/models", self.models)
            app.router.add_post("/v1/audio/speech", self.speak)
        app.router.add_route("*", "/{path:.*}", self.unknown)
        return app

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL}]})

    async def speak(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="audio/mpeg")

    async def unknown(self, request: web.Request) -> web.Response:
        self.requests.append({"path": request.path})
        return web.json_response({"detail": "Not Found"}, status=404)

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        form: dict[str, Any] = {}
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                content = value.file.read()
                digest = hashlib.sha256(content).hexdigest()
                form[name] = {"filename": value.filename, "size": len(content), "sha256": digest}
            else:
                form[name] = value
        self.requests.append({"path": request.path, "form": form})
        if "file" not in form:
            return web.json_response({"detail": "file: Field required"}, status=422)
        if self.fails or form.get("language") == "old":
            return web.json_response({"error": "failed to process audio"})
        if form.get("language") == "fail":
            return web.json_response({"error": "failed to process audio"}, status=500)
        if not self.cpp and form.get("model") != MODEL:
            return web.json_response({"detail": "Model is not installed locally."}, status=404)
        if form.get("stream") == "true":
            return await self._stream(request, form)
        return web.json_response({"text": "hello"})

    async def _stream(self, request: web.Request, form: Mapping[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = {"error": "CUDA error"} if form.get("language") == "break" else {"text": "world"}
        for message in ({"text": "hello"}, last):
            await response.write(f"data: {json.dumps(message)}\n\n".encode())
        return response


def _made(options: argparse.Namespace) -> FakeWhisper:
    return FakeWhisper(cpp=options.cpp, fails=options.fails)


if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("--cpp", action="store_true")
    parser.add_argument("--fails", action="store_true")
    run(parser, _made, "%(message)s")
