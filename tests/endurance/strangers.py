"""What strangers cost: memory for each connection, and the latency of honest requests under floods.

    python -m tests.endurance.strangers            # all of it, about two minutes
    python -m tests.endurance.strangers memory     # only the memory
    python -m tests.endurance.strangers floods 5   # only the floods, 5 s each

The worker, the flood and the honest client are processes of their own. Strangers come from 127.0.0.2 and up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.fakes.raw_client import request_bytes
from tests.fakes.worker import Setup
from tests.system import System, engine_and_model_server, worker_process

CONNECTIONS = 200
ADDRESSES = 50
HONEST_AT_ONCE = 4
KINDS = ("signatures", "connections", "heads", "bodies")
KIB = 1024
HALF_HEAD = b"POST /echo HTTP/1.1\r\nHost: worker\r\nX-Long: " + b"x" * (30 * KIB)
UNSIGNED = {"signature": "A" * 342 + "==", "cost": 1.0, "endpoint": "e", "reqnum": 1, "url": "http://w"}


def stranger(port: int, number: int) -> socket.socket:
    """A connection of one of the strangers."""
    connection = socket.socket()
    connection.bind((f"127.0.0.{2 + number % ADDRESSES}", 0))
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


# Memory


def rss_kib(process: psutil.Process) -> float:
    return process.memory_info().rss / KIB


async def cost_of_each(
    system: System, count: int, open_one: Callable[[int, int], Awaitable[object]], settle: Callable[[], Any]
) -> float:
    """The growth of the worker's memory in KiB for each of `count` connections."""
    assert system.worker is not None
    process = psutil.Process(system.worker.process.pid)
    port = int(system.url.rsplit(":", 1)[1])
    warm = [await open_one(port, number) for number in range(50)]  # what the first ones need, all need once
    await settle()
    before = rss_kib(process)
    opened = [await open_one(port, number) for number in range(count)]
    await settle()
    grown = rss_kib(process) - before
    for one in (*warm, *opened):
        close(one)
    await settle()
    return grown / count


def close(connection: Any) -> None:
    with suppress(OSError):
        connection.close()


async def open_silent(port: int, number: int) -> socket.socket:
    return stranger(port, number)


async def open_half_head(port: int, number: int) -> socket.socket:
    connection = stranger(port, number)
    connection.sendall(HALF_HEAD)
    return connection


async def open_half_handshake(port: int, number: int) -> socket.socket:
    connection = stranger(port, number)
    connection.sendall(b"\x16")
    return connection


async def open_tls(port: int, number: int) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.to_thread(context.wrap_socket, stranger(port, number))


async def measure_memory(folder: Path) -> None:
    cert, key = str(folder / "worker.crt"), str(folder / "worker.key")
    options = ["-subj", "/CN=127.0.0.1", "-days", "2", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", cert, *options]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    for name, count, open_one, env in (
        ("a plain connection that sends nothing", 1000, open_silent, {}),
        ("half a head of 30 KiB", 500, open_half_head, {}),
        ("a connection to a TLS port that sends nothing", 500, open_silent, {"USE_SSL": "true"}),
        ("the first byte of a handshake", 200, open_half_handshake, {"USE_SSL": "true"}),
        ("a TLS connection that sends nothing after its handshake", 500, open_tls, {"USE_SSL": "true"}),
    ):
        env = {**env, "SSL_CERT": cert, "SSL_KEY": key}
        async with (
            engine_and_model_server(folder) as system,
            worker_process(system, folder, Setup(health="/health"), env) as system.worker,
        ):
            await system.ready()

            async def settle() -> None:
                await asyncio.sleep(1)

            each_kib = await cost_of_each(system, count, open_one, settle)
            print(f"{name}: {each_kib:.1f} KiB each")


# Floods


def flood(kind: str, port: int) -> None:
    """Send for ever what `kind` says, on `CONNECTIONS` connections at a time."""
    bad = request_bytes("/echo", json.dumps({"auth_data": UNSIGNED, "payload": {}}).encode())
    body = b'{"payload": {"x": "' + b"x" * 1024 * KIB
    half_body = request_bytes("/echo", body, {"Content-Length": str(10 * len(body))})
    asyncio.run(
        _flood(port, {"signatures": bad, "connections": b"", "heads": HALF_HEAD, "bodies": half_body}[kind])
    )


async def _flood(port: int, data: bytes) -> None:
    await asyncio.gather(*(_flood_from(port, data, number) for number in range(CONNECTIONS)))


async def _flood_from(port: int, data: bytes, number: int) -> None:
    address = (f"127.0.0.{2 + number % ADDRESSES}", 0)
    is_answered = data.startswith(b"POST") and b"signature" in data
    while True:
        with suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address)
            try:
                while True:
                    writer.write(data)
                    await writer.drain()
                    if is_answered:
                        await reader.readuntil(b"}")
                    elif data:
                        await reader.read()  # until the worker ends it
                        break
                    else:
                        await asyncio.sleep(0.05)  # and comes again
                        break
            finally:
                writer.transport.abort()


async def honest_latencies(system: System, duration_s: float) -> tuple[list[float], int]:
    """The latencies in ms of honest requests, and the number of those that failed."""
    taken: list[float] = []
    failed = 0
    end = time.monotonic() + duration_s

    async def ask() -> None:
        nonlocal failed
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                status, _ = await system.call("/echo")
            except OSError:
                status = 0
            failed += status != 200
            taken.append(1000 * (time.monotonic() - begun))
            await asyncio.sleep(0.01)

    await asyncio.gather(*(ask() for _ in range(HONEST_AT_ONCE)))
    return taken, failed


def p99(latencies_ms: list[float]) -> float:
    return statistics.quantiles(latencies_ms, n=100)[98]


async def measure_floods(folder: Path, duration_s: float) -> bool:
    is_kept = True
    async with (
        engine_and_model_server(folder) as system,
        worker_process(system, folder, Setup(health="/health")) as system.worker,
    ):
        await system.ready()
        process = psutil.Process(system.worker.process.pid)
        port = system.url.rsplit(":", 1)[1]
        await honest_latencies(system, 1)
        quiet_ms = p99((await honest_latencies(system, duration_s))[0])
        limit_ms = 50 + 10 * quiet_ms
        print(f"quiet: p99 {quiet_ms:.1f} ms; under a flood it may be {limit_ms:.1f} ms")
        for kind in KINDS:
            before = rss_kib(process)
            flooding = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.endurance.strangers", "flood", kind, port
            )
            await asyncio.sleep(2)
            taken, failed = await honest_latencies(system, duration_s)
            grown_mib = (rss_kib(process) - before) / KIB
            flooding.kill()
            await flooding.wait()
            is_kept = is_kept and not failed and p99(taken) <= limit_ms
            print(
                f"{kind}: {len(taken)} honest requests, {failed} failed, p99 {p99(taken):.1f} ms, "
                f"memory +{grown_mib:.0f} MiB"
            )
    return is_kept


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["flood"]:
        flood(arguments[1], int(arguments[2]))
    duration_s = float(arguments[1]) if len(arguments) > 1 else 10.0
    with tempfile.TemporaryDirectory() as folder:
        if arguments[:1] in ([], ["memory"]):
            asyncio.run(measure_memory(Path(folder)))
        if arguments[:1] in ([], ["floods"]):
            return int(not asyncio.run(measure_floods(Path(folder), duration_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
