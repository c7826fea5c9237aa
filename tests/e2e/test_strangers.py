"""Strangers can't take the place of others: floods from many connections, and honest requests beside them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.http.shares import STRANGERS_BYTES
from lib.runtime.addresses import networks_in
from lib.runtime.settings import CarrierKind
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import MASTER_TOKEN, System, with_worker_process, with_worker_task

CONNECTIONS = 200
ADDRESSES = 40
KIB, MIB = 1024, 1024 * 1024
UNSIGNED = {"signature": "A" * 342 + "==", "cost": 1.0, "endpoint": "e", "reqnum": 1, "url": "http://w"}
BODY = b'{"payload": {"x": "' + b"x" * MIB
ENGINES = {"Authorization": f"Bearer {MASTER_TOKEN}"}
FLOODS = {
    "bad signatures": request_bytes("/echo", json.dumps({"auth_data": UNSIGNED, "payload": {}}).encode()),
    "connections": b"",
    "half heads": b"POST /echo HTTP/1.1\r\nHost: worker\r\nX-Long: " + b"x" * (30 * KIB),
    "half bodies": request_bytes("/echo", BODY, {"Content-Length": str(10 * len(BODY))}),
}


@asynccontextmanager
async def stranger(system: System, number: int) -> AsyncGenerator[RawClient, None]:
    """A connection of one of the strangers, whose addresses are 127.0.0.2 and up."""
    async with connected(system.url, local_address=f"127.0.0.{2 + number % ADDRESSES}") as client:
        yield client


async def flood(system: System, data: bytes, number: int, sent: asyncio.Semaphore) -> None:
    """Send `data` on one connection after the other, until cancelled."""
    while True:
        async with stranger(system, number) as client:
            await client.send(data)
            sent.release()
            await client.rest()


@pytest.mark.parametrize("kind", FLOODS)
async def test_under_a_flood_no_honest_request_fails(tmp_path: Path, kind: str) -> None:
    env = {"FORCE_UPDATE_FILE": str(tmp_path / "update")}
    async with with_worker_process(tmp_path, env=env) as system, anyio.create_task_group() as strangers:
        assert system.worker is not None
        sent = asyncio.Semaphore(0)
        for number in range(CONNECTIONS):
            strangers.start_soon(flood, system, FLOODS[kind], number, sent)
        for _ in range(CONNECTIONS):
            await sent.acquire()
        for number in range(20):
            data = {"x": "y" * (MIB if number % 10 == 0 else 10)}
            assert (await post(system, json.dumps(system.envelope(data=data)).encode()))[0] == 200
            for method, path in (("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/pyworker/update")):
                async with system.http.request(method, system.url + path, headers=ENGINES) as answer:
                    assert answer.status == 200, path
        assert (await status_of(system))["strangers"]["memory_bytes"] <= STRANGERS_BYTES
        strangers.cancel_scope.cancel()


async def status_of(system: System) -> dict[str, Any]:
    async with system.http.get(f"{system.loopback_url}/status") as answer:
        return await answer.json()


async def test_bodies_that_trickle_do_not_keep_envelopes_out(tmp_path: Path) -> None:
    """Seven connections send much and then nothing; other large envelopes are served."""
    padding = b'{"payload": {"x": "' + b"x" * (8 * MIB)
    async with (
        with_worker_task(tmp_path, max_spool_bytes=16 * MIB) as system,
        anyio.create_task_group() as group,
    ):
        answers: list[int] = []
        is_answered = anyio.Event()

        async def trickle(number: int) -> None:
            async with stranger(system, number) as client:
                await client.send(request_bytes("/echo", padding, {"Content-Length": str(60 * MIB)}))
                answers.append((await client.head()).status)
                is_answered.set()

        for number in range(7):
            group.start_soon(trickle, number)
        with anyio.fail_after(GUARD_S):
            await is_answered.wait()
        envelope = system.envelope(data={"x": "y" * (2 * MIB)})
        auth_last = dict(reversed(envelope.items()))
        assert (await post(system, json.dumps(auth_last).encode()))[0] == 200
        assert set(answers) == {503}
        group.cancel_scope.cancel()


async def test_a_signature_is_verified_before_the_rest_of_a_body_has_come(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, stranger(system, 0) as client:
        begin = b'{"auth_data": %s, "payload": {"x": "' % json.dumps({**system.auth(), "cost": 7.0}).encode()
        await client.send(request_bytes("/echo", begin, {"Content-Length": str(MIB)}))
        head, body = await client.answer()
        assert (head.status, json.loads(body)) == (401, {"error": "the signature is invalid"})


async def test_a_signed_body_of_nothing_is_refused_while_others_go_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        envelope = json.dumps(system.envelope(data={"x": "HERE"})).encode()
        nothing = envelope.replace(b'"HERE"', b"[" + b"{}," * (20 * MIB) + b"{}]")
        refused = asyncio.create_task(post(system, nothing))
        assert [(await system.call("/echo"))[0] for _ in range(5)] == [200] * 5
        status, answer = await refused
        assert (status, answer) == (413, {"error": "the body has more than 1000000 values"})


async def post(system: System, body: bytes) -> tuple[int, Any]:
    async with system.http.post(f"{system.url}/echo", data=io.BytesIO(body)) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize("kind", ["small", "large", "in a header", "a session", "refused"])
async def test_who_has_sent_a_verified_request_is_no_stranger(
    tmp_path: Path, carrier: CarrierKind, kind: str
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system, connected(system.url) as client:
        await client.send(b"GET /ping HTTP/1.1\r\nHost: w\r\n\r\n")
        await client.answer()
        before = (await status_of(system))["strangers"]["memory_bytes"]
        path, headers = "/session/create" if kind == "a session" else "/echo", {}
        envelope = system.envelope(data={"x": "y" * (MIB if kind == "large" else 10)})
        if kind == "in a header":
            headers, envelope = {**system.header(), "Content-Type": "application/json"}, envelope["payload"]
        elif kind == "a session":
            envelope["payload"] = {}
        elif kind == "refused":
            envelope["auth_data"]["cost"] = 2.0
        await client.post(path, envelope, headers)
        assert (await client.head()).status == {"refused": 401, "a session": 201}.get(kind, 200)
        after = (await status_of(system))["strangers"]["memory_bytes"]
        assert (after < before) == (kind != "refused")


async def test_behind_a_trusted_proxy_each_client_is_counted(tmp_path: Path) -> None:
    """All clients of a proxy have one address; what it forwards tells them apart."""
    proxies = networks_in("127.0.0.0/8")
    async with with_worker_task(
        tmp_path, Setup(health="/health"), max_spool_bytes=4 * MIB, trusted_proxies=proxies
    ) as system:
        honest = request_bytes(
            "/echo", BODY, {"Content-Length": str(2 * MIB), "X-Forwarded-For": "192.0.2.1"}
        )
        greedy = request_bytes(
            "/echo", BODY * 3, {"Content-Length": str(60 * MIB), "X-Forwarded-For": "192.0.2.66"}
        )
        async with (
            connected(system.url) as one,
            connected(system.url) as other,
            connected(system.url) as third,
        ):
            await one.send(honest)
            await other.send(greedy)
            await third.send(greedy)
            statuses: set[int] = set()
            async with anyio.create_task_group() as waits:

                async def wait(client: RawClient) -> None:
                    statuses.add((await client.head()).status)
                    waits.cancel_scope.cancel()

                waits.start_soon(wait, other)
                waits.start_soon(wait, third)
            assert statuses == {503}
            auth = json.dumps(system.auth()).encode()
            rest = b'"}, "auth_data": %s}' % auth
            await one.send(rest + b" " * (2 * MIB - len(BODY) - len(rest)))
            assert (await one.head()).status == 200
