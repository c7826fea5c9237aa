"""A request whose signature holds, and whose large body goes wrong after it, has an outcome as any other."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from lib.access.arriving import ArrivingEnvelope
from lib.metrics import Outcome
from lib.runtime.settings import CarrierKind
from tests.event_loop import until
from tests.fakes.raw_client import connected, request_bytes
from tests.system import System, with_worker_task

KIB = 1024
MAX_BYTES = 256 * KIB
CARRIERS = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
# Large enough for `auth_data` to be verified while the rest arrives.
FILLER = "y" * (150 * KIB)


def begun(auth: dict[str, Any]) -> bytes:
    """The beginning of an envelope, within a string of its payload."""
    return f'{{"auth_data": {json.dumps(auth)}, "payload": {{"workload": 7.0, "data": "{FILLER}'.encode()


def chunk(data: bytes) -> bytes:
    """A part of a body in the chunked coding; an empty one is the last."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.fixture
def envelopes(monkeypatch: pytest.MonkeyPatch) -> Generator[weakref.WeakSet[ArrivingEnvelope]]:
    """The envelopes that are in memory; meanwhile the garbage collector frees nothing."""
    alive: weakref.WeakSet[ArrivingEnvelope] = weakref.WeakSet()
    enter = ArrivingEnvelope.__aenter__

    def entered(self: ArrivingEnvelope) -> object:
        alive.add(self)
        return enter(self)

    monkeypatch.setattr(ArrivingEnvelope, "__aenter__", entered)
    gc.collect()
    gc.disable()
    try:
        yield alive
    finally:
        gc.enable()


def reported(system: System) -> dict[int, str]:
    return {f.request.request_idx: f.request.status for f in system.engine.finished}


@CARRIERS
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (b'"}, "auth_data": {}}', 422),
        (b'"}, "session_id": 5}', 422),
        (b'"}} more', 422),
        (b'"', 422),
        (b'", "deep": ' + b"[" * 2000 + b"]" * 2000 + b"}}", 422),
        (b"y" * MAX_BYTES + b'"}}', 413),
    ],
    ids=["auth_data twice", "wrong session_id", "more than JSON", "cut off", "too deep", "too large"],
)
async def test_a_body_that_goes_wrong_is_errored(
    tmp_path: Path,
    carrier: CarrierKind,
    end: bytes,
    status: int,
    envelopes: weakref.WeakSet[ArrivingEnvelope],
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier, max_json_bytes=MAX_BYTES) as system:
        assert system.running is not None
        running = system.running
        async with connected(system.url) as client:
            # Chunked: the limit on its size is met only when the signature is verified.
            await client.send(request_bytes("/echo", b"", {"Transfer-Encoding": "chunked"}))
            await client.send(chunk(begun(system.auth(request_idx=77))))
            await until(lambda: running.verified_bodies.held_bytes > 0)  # the signature is verified
            await client.send(chunk(end) + chunk(b""))
            head, _ = await client.answer()
            assert head.status == status
        await until(lambda: reported(system) == {77: "Error"})
        assert system.backend is not None
        metrics = system.backend.metrics
        assert (metrics.opened, metrics.outcomes[Outcome.ERRORED], metrics.arriving) == (1, 1, 0)
        assert system.model.requests == []
        await until(lambda: not envelopes)  # nothing keeps the body


@CARRIERS
async def test_a_client_that_leaves_while_it_sends_is_cancelled(
    tmp_path: Path, carrier: CarrierKind, envelopes: weakref.WeakSet[ArrivingEnvelope]
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier, max_json_bytes=MAX_BYTES) as system:
        async with connected(system.url) as client:
            body = begun(system.auth(request_idx=78))
            await client.send(request_bytes("/echo", body, {"Content-Length": str(len(body) + KIB)}))
            assert system.running is not None
            running = system.running
            await until(lambda: running.verified_bodies.held_bytes > 0)  # the signature is verified
            assert len(envelopes) == 1
            client.leave()
        await until(lambda: reported(system) == {78: "Cancelled"})
        await until(lambda: not envelopes)
        await until(lambda: running.verified_bodies.held_bytes == 0)
