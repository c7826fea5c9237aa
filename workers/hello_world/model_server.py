"""A small model server that generates text: `python -m workers.hello_world.model_server`.

It takes the place of vLLM or TGI and needs no GPU and no download. Like them, it takes time to load, logs
when it is ready, has a limited speed, and stops generating for a client that has disconnected. The text comes
from a Markov chain over two chapters of "Alice's Adventures in Wonderland" (Lewis Carroll, 1865, in the
public domain). It knows nothing about PyWorker.

    POST /generate         {"response": str, "tokens": int}
    POST /generate_stream  application/x-ndjson: a line {"token": str} per token, each in a chunk of its own
    GET  /health           200 {"status": "ok"}, or 503 while the model loads

Both POSTs take {"prompt": str, "max_response_tokens": int | null}. Errors are {"error": str}: 422 names the
wrong field, 503 says that the model is loading.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import anyio
from aiohttp import web

from workers.hello_world.markov import Chain

log = logging.getLogger(__name__)

CORPUS = Path(__file__).with_name("corpus.txt")

LOADING_LINE = "loading model"
READY_LINE = "infer server has started"
CORRUPTED_LINE = "Exception: corrupted model file"

DEFAULT_TOKENS = 200
MAX_TOKENS = 4096
# Sleeps end about a millisecond late. A delay of up to this many seconds is made up for.
SLACK_S = 0.02
# Seconds that requests in progress may take to finish after SIGTERM. Then they are cut.
SHUTDOWN_S = 1.0


class Refusal(Exception):
    """An error for the client: its HTTP `status`, and `why`, the message."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass(frozen=True)
class Prompt:
    text: str
    max_tokens: int


class Pace:
    """Limits generation to `tokens_per_s` over all requests together; 0: no limit.

    Requests in progress take turns, so that each gets an equal share, as in one batch on a GPU.
    """

    def __init__(self, tokens_per_s: float) -> None:
        self._interval_s = 1 / tokens_per_s if tokens_per_s else 0.0
        self._next_s = 0.0
        self._streams = 0

    @contextmanager
    def stream(self) -> Generator[None, None, None]:
        """Count one request as in progress inside the block, where it may call `turn`."""
        if not self._streams:
            # Capacity that was not used before is lost.
            self._next_s = asyncio.get_running_loop().time()
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def turn(self) -> None:
        """Return when the stream may generate its next token."""
        now_s = asyncio.get_running_loop().time()
        self._next_s = max(self._next_s, now_s - SLACK_S) + self._interval_s
        # Sleeps even for 0 s, so that other requests get their turn and a disconnected client is noticed.
        await asyncio.sleep(max(0.0, self._next_s - now_s))


class TextServer:
    """The routes of the model server. They answer 503 until `load` has returned.

    At most `max_concurrency` requests generate at the same time; others wait in the order of their arrival.
    """

    def __init__(self, pace: Pace, max_concurrency: int = 32) -> None:
        self._pace = pace
        self._slots = asyncio.Semaphore(max_concurrency)
        self._chain: Chain | None = None
        self._rng = random.Random()

    def app(self) -> web.Application:
        """The application. It needs `handler_cancellation=True` to notice disconnected clients."""
        app = web.Application(middlewares=[_refusals])
        app.router.add_get("/health", self.health)
        app.router.add_post("/generate", self.generate)
        app.router.add_post("/generate_stream", self.generate_stream)
        return app

    async def load(self) -> None:
        self._chain = await asyncio.to_thread(_read_chain)

    async def health(self, _request: web.Request) -> web.Response:
        self._model()
        return web.json_response({"status": "ok"})

    async def generate(self, request: web.Request) -> web.Response:
        chain = self._model()
        prompt = read_prompt(await request.read())
        answer = [token async for token in self._tokens(chain, prompt)]
        return web.json_response({"response": "".join(answer), "tokens": len(answer)})

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        chain = self._model()
        prompt = read_prompt(await request.read())
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        # A write fails when the client has disconnected, which `_tokens` logs.
        with suppress(ConnectionError):
            await response.prepare(request)
            async with aclosing(self._tokens(chain, prompt)) as tokens:
                async for token in tokens:
                    await response.write(json.dumps({"token": token}).encode() + b"\n")
        return response

    def _model(self) -> Chain:
        if self._chain is None:
            raise Refusal(503, "the model is loading")
        return self._chain

    async def _tokens(self, chain: Chain, prompt: Prompt) -> AsyncGenerator[str, None]:
        """Yield the answer's tokens at the server's pace; log if closed or cancelled before the last."""
        made = 0
        try:
            async with self._slots:
                with self._pace.stream():
                    for token in islice(chain.generate(prompt.text, self._rng), prompt.max_tokens):
                        await self._pace.turn()
                        made += 1
                        yield token
        finally:
            if made < prompt.max_tokens:
                log.info("client disconnected: stopped after %d of %d tokens", made, prompt.max_tokens)


def read_prompt(body: bytes) -> Prompt:
    """The request in `body`. Raises `Refusal` (422), which names the wrong field."""
    try:
        message: Any = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Refusal(422, f"body: not JSON: {e}") from e
    if not isinstance(message, dict):
        raise Refusal(422, "body: must be an object")
    fields = cast("dict[str, Any]", message)
    text = fields.get("prompt")
    if not isinstance(text, str):
        raise Refusal(422, "prompt: must be a string")
    tokens = fields.get("max_response_tokens")
    if tokens is None:
        tokens = DEFAULT_TOKENS
    if type(tokens) is not int or not 1 <= tokens <= MAX_TOKENS:
        raise Refusal(422, f"max_response_tokens: must be an integer from 1 to {MAX_TOKENS}, or null")
    return Prompt(text, tokens)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as e:
        return web.json_response({"error": e.why}, status=e.status)


def _read_chain() -> Chain:
    return Chain(CORPUS.read_text(encoding="utf-8"))


async def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    server = TextServer(Pace(options.tokens_per_s), options.max_concurrency)
    runner = web.AppRunner(
        server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, options.host, options.port).start()
        log.info("listening on http://%s:%d", *runner.addresses[0][:2])
        log.info(LOADING_LINE)
        with anyio.move_on_after(options.load_time_s):
            await stop.wait()
            return 0
        if options.corrupt:
            log.error(CORRUPTED_LINE)
            return 1
        await server.load()
        log.info(READY_LINE)
        await stop.wait()
        return 0
    except OSError as e:
        log.error("cannot listen on %s port %d: %s", options.host, options.port, e)
        return 1
    finally:
        await runner.cleanup()


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workers.hello_world.model_server", description="A small server that generates text."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port",
        type=int,
        default=5001,
        help="port to listen on (default 5001); 0: any free port, written to the log",
    )
    parser.add_argument("--log", type=Path, help="append the log to this file too")
    parser.add_argument(
        "--tokens-per-s",
        type=_not_negative,
        default=0.0,
        help="limit over all requests together; 0 (default): no limit",
    )
    parser.add_argument(
        "--load-time-s", type=_not_negative, default=0.0, help="seconds that loading takes (default 0)"
    )
    parser.add_argument(
        "--max-concurrency",
        type=_positive,
        default=32,
        help="maximum number of requests that generate at the same time (default 32)",
    )
    parser.add_argument(
        "--corrupt",
        action="store_true",
        help="simulate a broken model file: log an error and exit with status 1",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run with the arguments `argv`, by default the process's own; return the exit status."""
    options = arguments().parse_args(argv)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if options.log:
        handlers.append(logging.FileHandler(options.log, encoding="utf-8"))
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
    return asyncio.run(serve(options))


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be a finite number, 0 or more")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
