"""Model servers in real time whose capacity is known, to measure how true a worker's benchmark is.

usage: python -m benchmarks.known_servers [NAME…]

Each listens on a free port, which is printed after its name. The text servers generate a token for every
request of a batch in each step: `POST /v1/completions` and `GET /v1/models`, like OpenAI's. The others run
jobs: `POST /run`. All have `GET /health`, and `GET /known` with figures of their own. They use little CPU
time, since each event is the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from benchmarks.http_message import HttpMessage, unchunked
from benchmarks.processes import run_fast
from lib.runtime.file_limit import raise_file_limit

# Tokens of the requests that a text server's capacity is stated for: those of the worker's benchmark.
TOKENS = 500
DEFAULT_TOKENS = 16
MODEL_NAME = "known"
# A step that ends later than this moves all later ones. Smaller delays are made up for by the next step.
LATE_S = 0.05
# Connections that wait to be accepted. The system may allow fewer.
_BACKLOG = 4096

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_TEXT = " word"
_FIELDS: dict[str, Any] = {"id": "cmpl-known", "object": "text_completion", "created": 0, "model": MODEL_NAME}


@dataclass(frozen=True, kw_only=True)
class BatchingServer:
    """A text server: a step takes `base_s` + `each_s` x batch, and each prompt adds `prefill_s` to a step.

    At most `most` requests are in the batch. Answers end at a uniform share between `early_end` and 1 of
    what was asked for, unless a request has `ignore_eos`. The first step of each size class of batches
    (powers of two) takes `compile_s` more.
    """

    base_s: float
    each_s: float
    most: int
    prefill_s: float
    early_end: float = 1.0
    compile_s: float = 0.0

    @property
    def capacity(self) -> float:
        """Tokens/s of the largest batch, always full, in which `most` / `TOKENS` prompts are new."""
        return self.most / (self.base_s + self.each_s * self.most + self.most * self.prefill_s / TOKENS)

    def model(self) -> KnownModel:
        return KnownText(self)


@dataclass(frozen=True, kw_only=True)
class JobServer:
    """A server of jobs, `slots` at once; each takes `mean_s` ± `jitter` and counts as `workload`."""

    slots: int
    mean_s: float
    jitter: float
    workload: float

    @property
    def capacity(self) -> float:
        """The workload/s of full slots."""
        return self.slots * self.workload / self.mean_s

    def model(self) -> KnownModel:
        return KnownJobs(self)


KnownServer = BatchingServer | JobServer
_FAST = partial(BatchingServer, base_s=0.008, each_s=0.00005, most=256, prefill_s=0.001)
SERVERS: Mapping[str, KnownServer] = {
    "fast": _FAST(),
    "mid": BatchingServer(base_s=0.020, each_s=0.0004, most=64, prefill_s=0.005),
    "slow": BatchingServer(base_s=0.016, each_s=0.001, most=16, prefill_s=0.002),
    "early": _FAST(early_end=0.1),
    "compile": _FAST(compile_s=4.0),
    "images": JobServer(slots=1, mean_s=3.0, jitter=0.1, workload=100.0),
    "audio": JobServer(slots=4, mean_s=1.0, jitter=0.1, workload=100.0),
}


class KnownModel(ABC):
    """A running server. `most_at_once` is the largest number of requests in flight so far."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.in_flight = 0
        self.most_at_once = 0

    def receive(self, path: bytes, body: bytes, connection: KnownConnection) -> None:
        """Answer a request, or accept it for later."""
        if path == b"/health":
            connection.write(_answer({}))
        elif path == b"/known":
            connection.write(_answer(self.facts()))
        elif not self.accept(path, body, connection):
            connection.write(_answer({"error": "not found"}, b"404 Not Found"))

    def began(self) -> None:
        """Count a request that begins."""
        self.in_flight += 1
        self.most_at_once = max(self.most_at_once, self.in_flight)

    def facts(self) -> dict[str, Any]:
        return {"in_flight": self.in_flight, "most_at_once": self.most_at_once}

    @abstractmethod
    def accept(self, path: bytes, body: bytes, connection: KnownConnection) -> bool:
        """Begin the request; return False if there is no such path."""

    @abstractmethod
    def left(self, connection: KnownConnection) -> None:
        """End the request of a connection that was closed."""


class KnownConnection(asyncio.Protocol):
    """One connection, with one request after the other."""

    def __init__(self, model: KnownModel) -> None:
        self._model = model
        self._message = HttpMessage()
        self._received = bytearray()
        self.is_open = True
        self.is_answered = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's has another base class

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self.is_answered:
            self._model.left(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._message.feed(data):
            return
        message, received = self._message, bytes(self._received)
        self._message, self._received = HttpMessage(), bytearray()
        body = received[len(received) - message.body_bytes :]
        if b"\r\ntransfer-encoding: chunked" in message.head:
            body = unchunked(body)
        self.is_answered = False
        self._model.receive(message.head.split(b" ", 2)[1], body, self)

    def write(self, data: bytes) -> None:
        """Write an answer, or the end of one."""
        self.is_answered = True
        self.write_part(data)

    def write_part(self, data: bytes) -> None:
        """Write a part of an answer, unless the client has just left."""
        if not self._transport.is_closing():
            self._transport.write(data)


@dataclass(eq=False, slots=True)
class Completion:
    """A completion that is being generated: `length` tokens, of which `left` are to come."""

    connection: KnownConnection
    asked: int
    length: int
    left: int
    is_stream: bool
    has_usage: bool
    prompt_tokens: int

    def end(self) -> bytes:
        """The last bytes of the answer, with the last token; of the whole answer if it is no stream."""
        reason = "length" if self.length == self.asked else "stop"
        total = self.prompt_tokens + self.length
        usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.length, "total_tokens": total}
        if not self.is_stream:
            return _answer({**_completion(_TEXT * self.length, reason), "usage": usage})
        events = [json.dumps(_completion(_TEXT, reason))]
        if self.has_usage:
            events.append(json.dumps({**_FIELDS, "choices": [], "usage": usage}))
        return b"".join(_event(event) for event in [*events, "[DONE]"]) + b"0\r\n\r\n"


class KnownText(KnownModel):
    """A text server. Steps follow a schedule, so that the time it takes to write them doesn't slow them."""

    def __init__(self, server: BatchingServer) -> None:
        super().__init__()
        self._server = server
        self._batch: list[Completion] = []
        self._waiting: deque[Completion] = deque()
        self._compiled: set[int] = set()
        self._is_running = False
        self._ends_s = 0.0
        self._stepping_s = 0.0
        self._late_s = 0.0
        self._tokens = 0

    def facts(self) -> dict[str, Any]:
        """With the seconds of all steps, and those that were lost because this process came too late."""
        own = {"tokens": self._tokens, "stepping_s": self._stepping_s, "late_s": self._late_s}
        return {**super().facts(), **own}

    def accept(self, path: bytes, body: bytes, connection: KnownConnection) -> bool:
        if path == b"/v1/models":
            connection.write(_answer({"object": "list", "data": [{"id": MODEL_NAME, "object": "model"}]}))
            return True
        if path != b"/v1/completions":
            return False
        try:
            completion = self._completion(json.loads(body), connection)
        except (ValueError, TypeError, AttributeError) as e:
            connection.write(_answer({"error": {"message": str(e)}}, b"400 Bad Request"))
            return True
        self.began()
        if completion.is_stream:
            connection.write_part(_STREAM_HEAD)
        self._waiting.append(completion)
        if not self._is_running:
            self._is_running = True
            self._begin_step(self.loop.time())
        return True

    def left(self, connection: KnownConnection) -> None:
        self.in_flight -= 1  # the next step is without it

    def _completion(self, request: Mapping[str, Any], connection: KnownConnection) -> Completion:
        asked = max(1, int(request.get("max_tokens") or DEFAULT_TOKENS))
        options: Mapping[str, Any] = request.get("stream_options") or {}
        length = asked
        if not request.get("ignore_eos"):
            length = max(1, round(asked * random.uniform(self._server.early_end, 1)))
        return Completion(
            connection,
            asked,
            length,
            length,
            is_stream=bool(request.get("stream")),
            has_usage=bool(options.get("include_usage")),
            prompt_tokens=len(str(request.get("prompt"))) // 4,
        )

    def _begin_step(self, begins_s: float) -> None:
        """Admit requests, and schedule the end of the step that begins at `begins_s`."""
        server = self._server
        batch = self._batch = [c for c in self._batch if c.connection.is_open]
        running = len(batch)
        while self._waiting and len(batch) < server.most:
            completion = self._waiting.popleft()
            if completion.connection.is_open:
                batch.append(completion)
        if not batch:
            self._is_running = False
            return
        step_s = server.base_s + server.each_s * len(batch) + server.prefill_s * (len(batch) - running)
        size_class = (len(batch) - 1).bit_length()
        if size_class not in self._compiled:
            self._compiled.add(size_class)
            step_s += server.compile_s
        self._stepping_s += step_s
        self._ends_s = begins_s + step_s
        self.loop.call_at(self._ends_s, self._end_step)

    def _end_step(self) -> None:
        ends_s = self._ends_s
        late_s = self.loop.time() - ends_s
        if late_s > LATE_S:
            self._late_s += late_s
            ends_s += late_s
        self._tokens += len(self._batch)
        alive: list[Completion] = []
        for completion in self._batch:
            completion.left -= 1
            if completion.left:
                alive.append(completion)
                if completion.is_stream:
                    completion.connection.write_part(_TOKEN_EVENT)
            elif completion.connection.is_open:
                self.in_flight -= 1
                completion.connection.write(completion.end())
        self._batch = alive
        self._begin_step(ends_s)


class KnownJobs(KnownModel):
    """A server of jobs, first come first served. A job whose client leaves is ended."""

    def __init__(self, server: JobServer) -> None:
        super().__init__()
        self._server = server
        self._waiting: deque[KnownConnection] = deque()
        self._timers: dict[KnownConnection, asyncio.TimerHandle] = {}

    def accept(self, path: bytes, body: bytes, connection: KnownConnection) -> bool:
        if path != b"/run":
            return False
        self.began()
        self._waiting.append(connection)
        self._fill()
        return True

    def left(self, connection: KnownConnection) -> None:
        self.in_flight -= 1
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()
        self._fill()

    def _fill(self) -> None:
        """Begin jobs while slots are free."""
        while self._waiting and len(self._timers) < self._server.slots:
            connection = self._waiting.popleft()
            if connection.is_open:
                job_s = self._server.mean_s * random.uniform(1 - self._server.jitter, 1 + self._server.jitter)
                self._timers[connection] = self.loop.call_later(job_s, self._end, connection)

    def _end(self, connection: KnownConnection) -> None:
        del self._timers[connection]
        self.in_flight -= 1
        connection.write(_answer({"result": "done"}))
        self._fill()


def _answer(content: Mapping[str, Any], status: bytes = b"200 OK") -> bytes:
    body = json.dumps(content).encode()
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _event(data: str) -> bytes:
    """A chunk with one server-sent event."""
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def _completion(text: str, finish_reason: str | None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
    return {**_FIELDS, "choices": [choice]}


_TOKEN_EVENT = _event(json.dumps(_completion(_TEXT, None)))


async def listen(server: KnownServer) -> asyncio.Server:
    """Start `server` on a free port of the loopback address."""
    model = server.model()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: KnownConnection(model), "127.0.0.1", 0, backlog=_BACKLOG)


def port_of(listening: asyncio.Server) -> int:
    return listening.sockets[0].getsockname()[1]


async def main(names: Sequence[str]) -> None:
    raise_file_limit()
    listening = [await listen(SERVERS[name]) for name in names]
    for name, server in zip(names, listening, strict=True):
        print(name, port_of(server), flush=True)
    await asyncio.gather(*(server.serve_forever() for server in listening))


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(SERVERS)
    if unknown := [name for name in chosen if name not in SERVERS]:
        sys.exit(f"no server is called {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    run_fast(partial(main, chosen))
