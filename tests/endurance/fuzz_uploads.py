"""Mutated uploads: forms in every framing, changed and cut anywhere, to a worker process.

tests/e2e/test_fuzz_uploads.py sends a few. By hand, many:

    python -m tests.endurance.fuzz_uploads 50000

It fails as tests/endurance/fuzz_front.py does, and if a body is left on disk.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import sys
import tempfile
from pathlib import Path

import anyio

from tests.endurance.fuzz_front import Findings, send_mutations
from tests.endurance.holdings import until_status
from tests.fakes.raw_client import request_bytes
from tests.fakes.worker import Setup
from tests.system import System, with_worker_process

CONNECTIONS = 24
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
BODY = (
    b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n'
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n--xyz--\r\n"
)


def upload_requests(system: System) -> list[bytes]:
    """Uploads in every framing."""
    auth = {"signature": "x", "cost": 1, "endpoint": "e", "reqnum": 1, "url": system.url}
    signed = {**FORM, "X-Vast-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}
    chunked = {**signed, "Transfer-Encoding": "chunked"}
    packed = gzip.compress(BODY)
    chunks = b"%x;a=b\r\n%s\r\n1\r\n%s\r\n0\r\nA: b\r\n\r\n" % (len(BODY) - 1, BODY[:-1], BODY[-1:])
    return [
        request
        for path in ("/upload/echo", "/upload/accepted", "/upload/error422", "/upload/close", "/echo")
        for request in (
            request_bytes(path, BODY, signed),
            request_bytes(path, chunks, chunked),
            request_bytes(path, BODY, {**signed, "Expect": "100-continue"}),
            request_bytes(path, packed, {**signed, "Content-Encoding": "gzip"}),
            request_bytes(path, BODY, {**signed, "Connection": "keep-alive"}, b"1.0"),
            request_bytes(path, b"", signed),
        )
    ]


async def fuzz_uploads(system: System, count: int, seed: int) -> Findings:
    """Send `count` streams of mutated uploads to the worker, several at once."""
    findings = await send_mutations(system, upload_requests(system), count, seed, CONNECTIONS)
    await until_status(system, lambda status: status["requests"]["in_flight"] == 0)
    return findings


async def run_uploads(folder: Path, count: int, seed: int) -> tuple[Findings, list[str]]:
    """Send uploads to a worker of its own; return the findings, and what else was wrong."""
    spool = folder / "spool"
    await anyio.Path(spool).mkdir()
    env = {"UNSECURED": "true", "TMPDIR": str(spool)}
    module = "tests.fakes.many_routes"
    async with with_worker_process(folder, Setup(health="/health"), env, module=module) as system:
        findings = await fuzz_uploads(system, count, seed)
        assert system.worker is not None
        output, wrong = system.worker.output(), list[str]()
        if "Traceback" in output:
            wrong.append(output[output.index("Traceback") - 500 :][:5000])
        if system.worker.process.returncode is not None:
            wrong.append("the worker has ended")
    async for path in anyio.Path(spool).iterdir():
        wrong.append(f"left on disk: {path.name}")
    return findings, wrong


async def _main(count: int, seed: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        findings, wrong = await run_uploads(Path(folder), count, seed)
    print(f"seed {seed}: {findings.done} streams; answers: {dict(sorted(findings.statuses.items()))}")
    for name, streams in (("not HTTP", findings.malformed), ("hung", findings.hung)):
        print(f"{name}: {len(streams)}", *streams[:5], sep="\n    ")
    print(*wrong, sep="\n")
    return 1 if wrong or findings.malformed or findings.hung else 0


if __name__ == "__main__":
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    sys.exit(asyncio.run(_main(int(sys.argv[1]), seed)))
