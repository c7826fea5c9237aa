"""The bodies of verified requests share a limit of memory, whoever carries them and however they end."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.http.shares import Shares
from lib.metrics import Outcome
from lib.runtime.settings import CarrierKind
from tests.event_loop import until
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.system import System, with_worker_task

KIB = 1024
MAX_BYTES = 256 * KIB
CARRIERS = pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
# It needs more than half of the least limit that there is.
LARGE: dict[str, Any] = {"x": [[]] * 80_000}
TEXT = {"x": "y" * (100 * KIB)}


@asynccontextmanager
async def worker(tmp_path: Path, carrier: CarrierKind, **settings: Any) -> AsyncGenerator[System, None]:
    """A worker with the least limit that there is."""
    async with with_worker_task(
        tmp_path, carrier=carrier, max_json_bytes=MAX_BYTES, max_body_memory_bytes=1, **settings
    ) as system:
        yield system


def memory(system: System) -> Shares:
    assert system.running is not None
    return system.running.verified_bodies


def reported_statuses(system: System) -> dict[int, str]:
    """The reported statuses of finished requests, by `request_idx`."""
    return {f.request.request_idx: f.request.status for f in system.engine.finished}


def body_of(system: System, data: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**system.envelope(data=data), **more}, separators=(",", ":")).encode()


async def send_request(
    system: System, way: str, path: str, data: dict[str, Any], request_idx: int = 0
) -> tuple[int, Any, str]:
    """Status, JSON and `Retry-After` of the answer to a request whose payload has `data`."""
    headers, body = {}, body_of(system, data, auth_data=system.auth(request_idx=request_idx))
    if way == "header":
        headers = {**system.header(request_idx=request_idx), "Content-Type": "application/json"}
        body = json.dumps({"workload": 1.0, "data": data}, separators=(",", ":")).encode()
    async with system.http.post(system.url + path, data=body, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After", "")


@CARRIERS
@pytest.mark.parametrize("way", ["envelope", "header"])
async def test_what_has_no_room_is_rejected_and_reported_so(
    tmp_path: Path, carrier: CarrierKind, way: str
) -> None:
    async with worker(tmp_path, carrier) as system, anyio.create_task_group() as tasks:
        tasks.start_soon(send_request, system, way, "/held", LARGE, 77)
        await system.model.until(lambda: system.model.working == 1)
        held_bytes = memory(system).held_bytes
        assert held_bytes > memory(system).limit_bytes / 2
        status, answer, retry_after = await send_request(system, way, "/echo", LARGE, 78)
        assert (status, answer["state"], retry_after) == (503, "busy", "1")
        assert memory(system).held_bytes == held_bytes
        assert (await system.call("/echo"))[0] == 200  # small ones go on
        await system.engine.wait_for(lambda: 78 in reported_statuses(system))
        assert reported_statuses(system)[78] == "Rejected"
        assert system.backend is not None
        assert system.backend.metrics.outcomes[Outcome.REJECTED] == 1
        async with system.http.get(system.loopback_url + "/status") as answered:
            assert (await answered.json())["bodies"] == {
                "memory_bytes": held_bytes,
                "memory_limit_bytes": memory(system).limit_bytes,
            }
        system.model.release()
        await until(lambda: memory(system).held_bytes == 0)
        assert (await send_request(system, way, "/echo", LARGE))[0] == 200
        await until(lambda: memory(system).held_bytes == 0)


@CARRIERS
async def test_it_is_refused_before_the_rest_of_its_body_has_come(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with worker(tmp_path, carrier) as system:
        assert memory(system).reserve(memory(system).limit_bytes - 300 * KIB)
        async with connected(system.url) as client:
            body = body_of(system, {"x": "y" * (200 * KIB)})
            await client.send(request_bytes("/echo", body[: 100 * KIB], {"Content-Length": str(len(body))}))
            head, answer = await client.answer()
            assert (head.status, head.headers["retry-after"]) == (503, "1")
            assert "MAX_BODY_MEMORY_BYTES" in json.loads(answer)["error"]
        assert (await send_request(system, "envelope", "/echo", TEXT))[0] == 200  # for which there is room


@CARRIERS
async def test_a_request_inside_a_session_is_refused_and_the_session_goes_on(
    tmp_path: Path, carrier: CarrierKind
) -> None:
    async with worker(tmp_path, carrier) as system:
        raw = system.auth()
        opening = {"auth_data": raw, "payload": {}}
        async with system.http.post(system.url + "/session/create", json=opening) as answer:
            session_id = (await answer.json())["session_id"]
        free = memory(system).limit_bytes
        assert memory(system).reserve(free)
        body = json.dumps({"auth_data": raw, "session_id": session_id, "payload": {"data": TEXT}}).encode()
        statuses: list[int] = []
        for _ in range(2):
            async with system.http.post(system.url + "/echo", data=body) as answer:
                statuses.append(answer.status)
            memory(system).free(free)
            free = 0
        assert statuses == [503, 200]
        assert system.backend is not None
        assert system.backend.metrics.outcomes[Outcome.REJECTED] == 0
        assert system.backend.metrics.in_flight == 1  # the session
        await until(lambda: memory(system).held_bytes == 0)


@CARRIERS
@pytest.mark.parametrize("room", [True, False])
async def test_a_large_request_for_a_session_gives_its_memory_back(
    tmp_path: Path, carrier: CarrierKind, room: bool
) -> None:
    async with worker(tmp_path, carrier) as system:
        taken = 0 if room else memory(system).limit_bytes
        assert memory(system).reserve(taken)
        body = json.dumps({"auth_data": system.auth(), "payload": {}}).encode() + b" " * (200 * KIB)
        async with system.http.post(system.url + "/session/create", data=body) as answer:
            assert answer.status == (201 if room else 503)
        assert memory(system).held_bytes == taken


# Every way to end, in a random order


async def _answered(system: System, rng: random.Random) -> None:
    await send_request(system, rng.choice(["envelope", "header"]), "/echo", rng.choice([TEXT, LARGE]))


async def _model_error(system: System, rng: random.Random) -> None:
    path = rng.choice(["/error500", "/cut_stream", "/close", "/raising"])
    body = body_of(system, {**TEXT, "raise": rng.choice(["parser", "response"])})
    async with connected(system.url) as client:
        await client.send(request_bytes(path, body, {"Connection": "close"}))
        await client.rest()


async def _malformed(system: System, rng: random.Random) -> None:
    body = body_of(system, rng.choice([TEXT, LARGE]))
    wrong = rng.choice(
        [body[:-1], body[:-2] + b"]}", body + b"}", body.replace(b'"workload"', b'"worklo"', 1)]
    )
    async with system.http.post(system.url + "/echo", data=wrong) as answer:
        await answer.read()


async def _forged(system: System, rng: random.Random) -> None:
    auth = {**system.auth(), "cost": 99.0}
    async with system.http.post(system.url + "/echo", data=body_of(system, TEXT, auth_data=auth)) as answer:
        assert answer.status == 401


async def _too_large(system: System, rng: random.Random) -> None:
    body, headers = body_of(system, {"x": "y" * MAX_BYTES}), {}
    if rng.random() < 0.5:
        body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
    try:
        async with system.http.post(system.url + "/echo", data=body, headers=headers) as answer:
            assert answer.status in (413, 503)
    except ConnectionError:  # it was refused while it was being sent
        pass


async def _leaves_while_sending(system: System, rng: random.Random) -> None:
    body = body_of(system, rng.choice([TEXT, LARGE]))
    async with connected(system.url) as client:
        begun = body[: rng.randrange(1, len(body))]
        await client.send(request_bytes("/echo", begun, {"Content-Length": str(len(body))}))
        client.leave()


async def _leaves_while_waiting(system: System, rng: random.Random) -> None:
    path = rng.choice(["/held", "/stream", "/silent_stream"])
    async with connected(system.url) as client:
        await client.send(request_bytes(path, body_of(system, TEXT)))
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        rng.choice([client.leave, client.half_close])()


async def _in_chunks(system: System, rng: random.Random) -> None:
    body = body_of(system, rng.choice([TEXT, LARGE]))
    size = rng.randrange(1000, len(body))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (body[:size], body[size:]) if c)
    last = rng.choice([b"0\r\n\r\n", b"zz\r\n"])
    async with connected(system.url) as client:
        await client.send(request_bytes("/echo", chunks + last, {"Transfer-Encoding": "chunked"}))
        assert (await client.head()).status in (200, 400, 422, 503)


KINDS: list[Callable[[System, random.Random], Coroutine[Any, Any, None]]] = [
    _answered,
    _model_error,
    _malformed,
    _forged,
    _too_large,
    _leaves_while_sending,
    _leaves_while_waiting,
    _in_chunks,
]


@CARRIERS
@pytest.mark.parametrize("seed", range(4))
async def test_it_is_given_back_on_every_way_out(tmp_path: Path, carrier: CarrierKind, seed: int) -> None:
    """Some end while the worker is drained, and some are cut off."""
    rng = random.Random(seed)
    async with worker(tmp_path, carrier, drain_timeout_s=0.1) as system:
        kinds = KINDS * 4
        rng.shuffle(kinds)
        for start in range(0, len(kinds), 4):
            async with anyio.create_task_group() as together:
                for kind in kinds[start : start + 4]:
                    together.start_soon(kind, system, rng)
            assert memory(system).held_bytes <= memory(system).limit_bytes
        await until(lambda: memory(system).held_bytes == 0)
        assert system.stop is not None
        async with connected(system.url) as waiting, connected(system.url) as sending:
            await waiting.send(request_bytes(rng.choice(["/held", "/finish/held"]), body_of(system, TEXT)))
            await system.model.until(lambda: system.model.working == 1)
            await _begin(system, sending, rng.choice(["header", "envelope"]))
            await until(lambda: memory(system).held_bytes > 3 * 100 * KIB)
            system.stop.ask()
            await waiting.rest()
            await sending.rest()
        assert system.backend is not None
        ledger = system.backend.metrics
    assert memory(system).held_bytes == 0
    assert ledger.opened == sum(ledger.outcomes.values())


async def _begin(system: System, client: RawClient, way: str) -> None:
    """Send the most of a verified body, and not the rest."""
    body, headers = body_of(system, TEXT), {"Content-Type": "application/json"}
    if way == "header":
        body, headers = json.dumps({"data": TEXT}).encode(), {**headers, **system.header()}
    length = {"Content-Length": str(len(body)), **headers}
    await client.send(request_bytes("/echo", body[: 90 * KIB], length))
