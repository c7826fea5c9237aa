"""The cost of the worker per request and per streamed event, compared with a bare aiohttp proxy.

usage: python -m benchmarks.proxy [-n REQUESTS] [-c CONCURRENCY] [--rounds N] [--events N]

Worker and proxy take turns in each round. Prints the CPU time (user and system) of each per request and per
streamed event, with medians and ratios, and the worker's resident memory before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil

from lib.local.engine import LocalEngine
from lib.local.serving import serve_engine

CONTAINER_ID = 1
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class MeasuredProcess:
    """A process to measure, and the port on which it listens."""

    name: str
    process: psutil.Process
    port: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the cost of the worker per request and per streamed event."
    )
    parser.add_argument("-n", type=int, default=5000, help="requests per round (default 5000)")
    parser.add_argument("-c", type=int, default=32, help="requests in flight (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    parser.add_argument("--events", type=int, default=200, help="events per stream (default 200)")
    asyncio.run(run(parser.parse_args()))


async def run(args: argparse.Namespace) -> None:
    async with running_system(args.events) as (engine, worker, bare):
        before = worker.process.memory_info().rss
        streams = max(1, args.n // 20)
        costs: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for target in (worker, bare):
                for path, count in (("/json", args.n), ("/stream", streams)):
                    bodies = signed_bodies(engine, worker.port, count)
                    cpu_s = await cpu_of(target, path, bodies, args.c)
                    unit = count if path == "/json" else count * args.events
                    costs.setdefault(f"{target.name} {path}", []).append(cpu_s / unit * 1e6)
        report(costs, args, before, worker.process.memory_info().rss)


def report(costs: dict[str, list[float]], args: argparse.Namespace, before: int, after: int) -> None:
    print(f"{args.rounds} rounds, {args.n} requests each, {args.c} in flight; µs of CPU time")
    for path, unit in (("/json", "request"), ("/stream", "event")):
        worker, bare = costs[f"worker {path}"], costs[f"bare {path}"]
        for name, figures in (("worker", worker), ("bare proxy", bare)):
            each = " ".join(f"{f:.1f}" for f in figures)
            print(f"  {name:10} per {unit:8} median {statistics.median(figures):7.1f}   ({each})")
        ratio = statistics.median(w / b for w, b in zip(worker, bare, strict=True))
        print(f"  worker / bare proxy, median of pairs: {ratio:.2f}")
    print(f"worker's resident memory: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after")


@asynccontextmanager
async def running_system(
    events: int,
) -> AsyncGenerator[tuple[LocalEngine, MeasuredProcess, MeasuredProcess], None]:
    """Run model server, engine, worker and bare proxy; give the engine and the two processes to measure."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = LocalEngine("full")
        engine_url = await stack.enter_async_context(serve_engine(engine))
        log = home / "model.log"
        model = await stack.enter_async_context(process(home, "fast_model", str(log), str(events)))
        url = f"http://127.0.0.1:{await printed_port(model)}"
        ports = free_ports(2)
        env = {
            "MODEL_SERVER_URL": url,
            "MODEL_LOG": str(log),
            "CONTAINER_ID": str(CONTAINER_ID),
            "PUBLIC_IPADDR": "127.0.0.1",
            "WORKER_PORT": str(ports[0]),
            "WORKER_HTTP_PORT": str(ports[1]),
            f"VAST_TCP_PORT_{ports[0]}": str(ports[0]),
            "REPORT_ADDR": engine_url,
        }
        worker = await stack.enter_async_context(process(home, "bench_worker", **env))
        bare = await stack.enter_async_context(process(home, "bare_proxy", MODEL_SERVER_URL=url))
        await engine.wait_for(lambda: (last := engine.worker(CONTAINER_ID).last) and last.loadtime > 0, 30.0)
        bare_port = await printed_port(bare)
        yield (
            engine,
            MeasuredProcess("worker", psutil.Process(worker.pid), ports[0]),
            MeasuredProcess("bare", psutil.Process(bare.pid), bare_port),
        )


@asynccontextmanager
async def process(home: Path, module: str, *args: str, **env: str) -> AsyncGenerator[Process, None]:
    with (home / f"{module}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"benchmarks.{module}",
            *args,
            cwd=home,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    try:
        yield child
    finally:
        child.terminate()
        await child.wait()


async def printed_port(process: Process) -> int:
    """Wait for the port that a process prints when it listens, and return it."""
    assert process.stdout is not None
    with anyio.fail_after(30):
        return int(await process.stdout.readline())


def free_ports(count: int) -> list[int]:
    """Ports that are free at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def signed_bodies(engine: LocalEngine, port: int, count: int) -> list[bytes]:
    """Bodies of `count` requests, each signed for itself, as the worker accepts a signature only once."""
    payload: dict[str, Any] = {"prompt": "say something " * 20, "max_tokens": 200}
    bodies: list[bytes] = []
    for _ in range(count):
        auth = engine.sign(url=f"http://127.0.0.1:{port}", cost=200.0)
        bodies.append(json.dumps({"auth_data": auth, "payload": payload}).encode())
    return bodies


async def cpu_of(target: MeasuredProcess, path: str, bodies: list[bytes], concurrency: int) -> float:
    """The CPU time in seconds that `target` needs to answer `bodies`; raises unless every answer is a 200."""
    before = target.process.cpu_times()
    left = iter(bodies)
    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(_client, target.port, path, left)
    after = target.process.cpu_times()
    return after.user + after.system - before.user - before.system


async def _client(port: int, path: str, bodies: Any) -> None:
    """Send requests one by one on one connection; parse only what is needed to find an answer's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not answer.startswith(b"http/1.1 200"):
            raise RuntimeError(f"{path} answered {answer.decode()}")
        at = answer.find(b"content-length:")
        if at >= 0:
            await reader.readexactly(int(answer[at + 15 :].split(b"\r\n", 1)[0]))
        else:
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
    writer.close()


if __name__ == "__main__":
    main()
