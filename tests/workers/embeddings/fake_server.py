"""A fake server of embeddings, as a process: `python -m tests.workers.embeddings.fake_server`.

It answers like Text Embeddings Inference or, with `--infinity`, like infinity. `--task` is its model's:
embed, rerank, predict or sparse. Tests read the received requests (`GET /received`). The text "fail" gives a
failure of the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from tests.workers.fake_text_server import FakeTextServer, arguments, run

MODEL = "tiny"
VECTOR = [0.6, 0.8]
# The routes of each task, with TEI and with infinity.
TEI = {
    "embed": ("/embed", "/embed_all", "/similarity", "/embeddings", "/v1/embeddings"),
    "sparse": ("/embed_sparse",),
    "rerank": ("/rerank",),
    "predict": ("/predict",),
}
INFINITY = {"embed": ("/embeddings",), "rerank": ("/rerank",), "predict": ("/classify",)}
# The field without which TEI and infinity refuse a request of this route.
REQUIRED = {"/embed": ("inputs", ""), "/rerank": ("texts", "documents")}
# Those that any model has.
ALWAYS = ("/tokenize",)


@dataclass(kw_only=True)
class FakeEmbeddings(FakeTextServer):
    """The server."""

    task: str = "embed"
    infinity: bool = False

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_get("/models" if self.infinity else "/info", self.info)
        app.router.add_post("/{path:.*}", self.post)
        return app

    async def info(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL}]} if self.infinity else {"model_id": MODEL})

    async def post(self, request: web.Request) -> web.Response:
        asked: dict[str, Any] = await request.json()
        self.requests.append({"path": request.path, "body": json.dumps(asked)})
        routes = INFINITY if self.infinity else TEI
        if not any(request.path in paths for paths in routes.values()) and request.path not in ALWAYS:
            return web.json_response({"detail": "Not Found"}, status=404)
        if request.path not in (*routes[self.task], *ALWAYS):
            return self._error(400 if self.infinity else 424, "the model has another task")
        required = REQUIRED.get(request.path, ("", ""))[self.infinity]
        if required and required not in asked:
            return web.json_response({"error": f"missing field {required}"}, status=422)
        if "fail" in json.dumps(asked):
            return self._error(500 if self.infinity else 424, "CUDA error")
        return web.json_response(self._answer(request.path, asked))

    def _answer(self, path: str, asked: Mapping[str, Any]) -> Any:
        if path == "/rerank":
            texts = asked["documents" if self.infinity else "texts"]
            name = "relevance_score" if self.infinity else "score"
            ranks = [{"index": i, name: 0.5} for i in range(len(texts))]
            return {"object": "rerank", "results": ranks} if self.infinity else ranks
        given: Any = asked.get("input") if "input" in asked else asked.get("inputs")
        texts = cast("list[Any]", given) if isinstance(given, list) else [given]
        if path.endswith("/embeddings"):
            data = [{"object": "embedding", "index": i, "embedding": VECTOR} for i in range(len(texts))]
            return {"object": "list", "data": data, "model": MODEL}
        if path == "/classify":
            return {"object": "classify", "data": [[{"label": "a", "score": 0.5}] for _ in texts]}
        if path == "/predict":
            return [[{"label": "a", "score": 0.5}] for _ in texts]
        return [VECTOR for _ in texts]

    def _error(self, status: int, message: str) -> web.Response:
        error: Any = {"message": message, "code": status} if self.infinity else message
        return web.json_response({"error": error, "error_type": "Backend"}, status=status)


def _made(options: argparse.Namespace) -> FakeEmbeddings:
    return FakeEmbeddings(task=options.task, infinity=options.infinity)


if __name__ == "__main__":
    parser = arguments()
    parser.add_argument("--task", choices=TEI, default="embed")
    parser.add_argument("--infinity", action="store_true")
    run(parser, _made, "%(message)s")
