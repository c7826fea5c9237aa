"""Mutated requests against the front: streams of valid ones, changed and cut anywhere.

tests/lib/front/test_fuzz.py sends a few to a front in its own process. By hand, many go to a worker process:

    python -m tests.endurance.fuzz_front 200000

It prints the statuses of the answers, and fails if the worker logged a traceback, if an answer was not HTTP,
or if a connection stayed open after its client had closed its half.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import anyio
import h11

from tests.fakes.front_server import answers_in
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import System, with_worker_process

CONNECTIONS = 48
# Seconds for the answers to what was sent; then the client closes its half.
ANSWERS_S = 0.25

# What readers of HTTP are known to disagree on, and what changes the framing.
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\n\n",
        b" ",
        b"\t",
        b":",
        b"\x00",
        b"\x0b",
        b"\x7f",
        b"\xff",
        b"\xc2\xa0",
    ),
    *(b",", b"+", b"-", b"0", b"1", b"f", b";", b"/", b"?", b"#", b"%", b"[", b"]", b'"', b"{", b"}", b"\\"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(
        b"Connection: close\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(
        b"Host: w\r\n",
        b"\r\n ",
        b"0\r\n\r\n",
        b"5;a=b\r\n",
        b"X: " + b"x" * 5000 + b"\r\n",
        b"HTTP/1.0",
        b"GET ",
    ),
)


class Change(NamedTuple):
    """Replace `size` bytes at `position` (as a share of the stream, from 0.0 to 1.0) by `piece`."""

    position: float
    size: int
    piece: bytes


def changed(stream: bytes, changes: Sequence[Change]) -> bytes:
    """`stream` with `changes`, one after the other."""
    data = bytearray(stream)
    for change in changes:
        position = int(change.position * len(data))
        data[position : position + change.size] = change.piece
    return bytes(data)


def cut(data: bytes, positions: Sequence[float]) -> Iterator[bytes]:
    """The parts of `data` between `positions`, which are shares of it."""
    ends = sorted({int(p * len(data)) for p in positions} - {0, len(data)})
    for begin, end in zip([0, *ends], [*ends, len(data)], strict=True):
        yield data[begin:end]


def valid_requests(paths: Sequence[str], body: bytes) -> list[bytes]:
    """Requests in every framing, to each of `paths`."""
    chunks = b"5;x\r\n%s\r\n%x\r\n%s\r\n0\r\nA: b\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
    requests: list[bytes] = []
    for path in paths:
        line = b"POST %s HTTP/1.1\r\nHost: w\r\nContent-Type: application/json\r\n" % path.encode()
        length = b"Content-Length: %d\r\n" % len(body)
        requests += [
            line + length + b"\r\n" + body,
            line + b"X-Request-Id: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks,
            line + length + b"Expect: 100-continue\r\n\r\n" + body,
            line.replace(b"1.1", b"1.0") + length + b"Connection: keep-alive\r\n\r\n" + body,
            line + length + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + body,
            b"GET %s?a=b HTTP/1.1\r\nHost: w\r\nAccept: */*\r\n\r\n" % path.encode(),
        ]
    return requests


def mutation(source: random.Random, requests: Sequence[bytes]) -> list[bytes]:
    """A stream of a few of `requests` with a few changes, in parts."""
    stream = b"".join(source.choice(requests) for _ in range(source.randint(1, 4)))
    changes = [
        Change(
            source.random(),
            source.choice((0, 0, 1, 1, 2, 10)),
            source.choice(PIECES) if source.random() < 0.8 else source.randbytes(source.randint(1, 3)),
        )
        for _ in range(source.choice((0, 1, 1, 1, 2, 3)))
    ]
    return list(
        cut(changed(stream, changes), [source.random() for _ in range(source.choice((0, 0, 1, 2, 5)))])
    )


@dataclass
class Findings:
    """The results so far. `malformed` and `hung` have the parts of the streams."""

    done: int = 0
    statuses: Counter[int] = field(default_factory=Counter[int])
    malformed: list[list[bytes]] = field(default_factory=list[list[bytes]])
    hung: list[list[bytes]] = field(default_factory=list[list[bytes]])


async def exchanged(port: int, parts: list[bytes], findings: Findings) -> None:
    """Send one stream, and note what comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received, is_reset = b"", False
    try:
        with suppress(OSError):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            with anyio.move_on_after(ANSWERS_S):
                while data := await reader.read(2**16):
                    received += data
            if writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
        try:
            with anyio.fail_after(GUARD_S):
                while data := await reader.read(2**16):
                    received += data
        except TimeoutError:
            findings.hung.append(parts)
        except OSError:
            is_reset = True
    finally:
        writer.transport.abort()
    findings.done += 1
    try:
        answers, behind = answers_in(received, is_closed=True)
    except h11.RemoteProtocolError:
        findings.malformed.append(parts)
        return
    findings.statuses.update(answer.status for answer in answers)
    if behind and not is_reset:
        findings.malformed.append([*parts, b" -> ", received])


async def fuzz(system: System, count: int, seed: int) -> Findings:
    """Send `count` streams to the worker, several at once."""
    auth = {"signature": "x", "cost": 1, "endpoint": "e", "reqnum": 1, "url": system.url}
    body = json.dumps({"auth_data": auth, "payload": {"workload": 1, "data": {"a": [1, "ü"]}}}).encode()
    paths = ("/echo", "/accepted", "/raising", "/empty", "/bytewise", "/ping", "/session/create", "/nowhere")
    return await send_mutations(system, valid_requests(paths, body), count, seed)


async def send_mutations(
    system: System, requests: Sequence[bytes], count: int, seed: int, at_once: int = CONNECTIONS
) -> Findings:
    """Send `count` streams of mutated `requests` to the worker, `at_once` at the same time."""
    source, findings = random.Random(seed), Findings()
    port, left = int(system.url.rsplit(":", 1)[1]), count

    async def send_some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await exchanged(port, mutation(source, requests), findings)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(send_some)
    return findings


async def main(count: int, seed: int) -> int:
    """Run the fuzzer; print the findings, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        setup, began_s = Setup(health="/health"), time.monotonic()
        async with with_worker_process(Path(folder), setup, {"UNSECURED": "true"}) as system:
            findings = await fuzz(system, count, seed)
            assert system.worker is not None
            is_alive, memory = system.worker.process.returncode is None, system.worker.memory_kib() // 1024
            output = await system.worker.final_output()
    tracebacks = output.count("Traceback (most recent call last)")
    print(f"seed {seed}: {findings.done} streams in {time.monotonic() - began_s:.0f} s")
    print("answers:", dict(sorted(findings.statuses.items())))
    print(f"tracebacks: {tracebacks}; alive: {is_alive}, {memory} MiB")
    for name, streams in (("not HTTP", findings.malformed), ("hung", findings.hung)):
        print(f"{name}: {len(streams)}")
        for parts in streams[:5]:
            print("   ", parts)
    if tracebacks:
        print(output[output.index("Traceback") - 500 :][:5000])
    return 1 if tracebacks or findings.malformed or findings.hung or not is_alive else 0


if __name__ == "__main__":
    sys.exit(
        asyncio.run(
            main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6))
        )
    )
