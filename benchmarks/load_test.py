"""The cost of the load test itself: its CPU time per request, and how late its requests are sent.

usage: python -m benchmarks.load_test [-rps RATE] [--duration SECONDS] [--events N]

Another process stands in for engine and worker, and uses very little CPU time. The load test is measured
twice: without and with its progress table, which is drawn on a pseudo-terminal. If the machine has more than
one core, the load test runs alone on one of them. With `--events`, each answer is a stream of N events.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
from asyncio.subprocess import PIPE

import anyio

from lib.client import Target
from lib.tools.load_report import summary_lines
from lib.tools.load_screen import show_progress
from lib.tools.load_tally import LATE
from lib.tools.load_test import LoadPlan, LoadTest

_BODY = json.dumps({"text": "x" * 1000}).encode()
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b'data: {"choices": [{"index": 0, "text": " token", "finish_reason": null}]}\n\n'
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the load test: its CPU time per request, and how late its requests are sent."
    )
    parser.add_argument("-rps", type=float, default=500.0, help="requests per second (default 500)")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of each run (default 20)")
    parser.add_argument("--events", type=int, default=0, help="events per answer (default 0: plain JSON)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    asyncio.run(serve(args.events) if args.serve else run(args))


class FastEndpoint(asyncio.Protocol):
    """One connection to engine and worker in one, with one request after the other."""

    def __init__(self, events: int) -> None:
        self._events = events
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        host, port = transport.get_extra_info("sockname")
        fields = {"url": f"http://{host}:{port}", "reqnum": 1, "signature": "c2ln" * 86, "endpoint": "local"}
        self._route = _whole(json.dumps({**fields, "cost": 50.0, "request_idx": 1}).encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if head.startswith(b"post /route/"):
                self._transport.write(self._route)
            elif self._events:
                asyncio.get_running_loop().create_task(self._stream())
            else:
                self._transport.write(_whole(_BODY))

    async def _stream(self) -> None:
        self._transport.write(_STREAM_HEAD)
        for _ in range(self._events):
            self._transport.write(_CHUNK)
            await asyncio.sleep(0)
        self._transport.write(b"0\r\n\r\n")


def _whole(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def serve(events: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: FastEndpoint(events), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def run(args: argparse.Namespace) -> None:
    own, *others = sorted(os.sched_getaffinity(0))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.load_test", "--serve", "--events", f"{args.events}"), stdout=PIPE
    )
    os.sched_setaffinity(0, {own})
    os.sched_setaffinity(child.pid, others or {own})
    try:
        assert child.stdout is not None
        with anyio.fail_after(30):
            url = f"http://127.0.0.1:{int(await child.stdout.readline())}"
        for drawn in (False, True):
            await measure(args, url, drawn)
    finally:
        child.terminate()
        await child.wait()


async def measure(args: argparse.Namespace, url: str, drawn: bool) -> None:
    plan = LoadPlan(Target(url, "local", "key"), "/generate", None, args.rps, duration_s=args.duration)
    payload = {"prompt": "say something " * 20, "max_response_tokens": 50}
    test = LoadTest(plan, lambda: payload)
    before = resource.getrusage(resource.RUSAGE_SELF)
    async with anyio.create_task_group() as group:
        if drawn:
            group.start_soon(_draw, test)
        await test.run()
        group.cancel_scope.cancel()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    late = " ".join(f"{name} {s * 1e3:.1f}" for name, s in test.tally.times[LATE].summary().items())
    print(f"{'with' if drawn else 'without'} a table:")
    print(f"  CPU {cpu_s / test.sent * 1e6:.0f} µs per request: {cpu_s / test.elapsed_s:.0%} of a core")
    print(f"  late, in ms: {late}")
    print(f"  preempted {after.ru_nivcsw - before.ru_nivcsw} times")
    print(f"  peak resident memory {after.ru_maxrss / 1024:.0f} MiB")
    print("\n".join(f"  {line}" for line in summary_lines(test)), flush=True)


async def _draw(test: LoadTest) -> None:
    """Show the progress table on a pseudo-terminal."""
    terminal, client_side = os.openpty()
    loop = asyncio.get_running_loop()
    loop.add_reader(terminal, os.read, terminal, 65536)
    try:
        with os.fdopen(client_side, "w") as out:
            await show_progress(test, out)
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)


if __name__ == "__main__":
    main()
