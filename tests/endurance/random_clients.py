"""Signed requests of random clients: what each saw, and which statuses the engine may be told of it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio

from tests.endurance.matrix_clients import FORM, PART, read
from tests.endurance.sums import Sums
from tests.fakes.raw_client import RawClient, connected, request_bytes
from tests.system import System

# The workload of the request that ends a rest: more than all deficits, and less than what is capped.
LAST_WORKLOAD = 100_000.0
# An upload of this workload, which is also that of an upload that is refused before it is read.
UPLOAD = PART % (b"x" * (100_000 - len(PART) + 2))
UPLOAD_WORKLOAD = 100.0

# What a client sees of each path if nothing else happens, with the status that the engine is told.
PATHS = {
    "/echo": ("200", "Success"),
    "/held": ("200", "Success"),
    "/stream": ("200", "Success"),
    "/single/echo": ("200", "Success"),
    "/single/held": ("200", "Success"),
    "/finish/held": ("200", "Success"),
    "/finish/stream": ("200", "Success"),
    "/beating/stream": ("200", "Success"),
    "/upload/echo": ("200", "Success"),
    "/upload/held": ("200", "Success"),
    "/error500": ("500", "Error"),
    "/error422": ("422", "Success"),
    "/cut_stream": ("200 cut", "Error"),
    "/close": ("502", "Error"),
}
WITHOUT_WORK = {"/error422"}
REJECTED = {"429", "503"}


@dataclass
class Sent:
    """A signed request or session. `seen` is what its client saw in the end (matrix_clients.py), or None."""

    path: str
    workload: float
    seen: str | None = None
    ended_s: float = 0.0
    is_unsettled: bool = False
    is_drained: bool = False
    has_left: bool = False

    def may_be(self, status: str | None) -> bool:
        """Whether the engine may have been told `status`, or nothing, about it."""
        expected, told = PATHS.get(self.path, ("201", "Success"))
        if self.has_left:
            return True
        if self.is_drained and status == "Cancelled":  # a session that was open at a stop
            return True
        if self.seen in REJECTED:
            return status == "Rejected" or (self.is_unsettled and status in (None, "Error"))
        if self.seen == expected and self.seen != "200 cut":
            return status == told or (self.is_unsettled and status == "Error")
        if self.seen in ("cut", "refused"):  # also if the worker was gone before it had the request
            return status in (None, "Error", "Cancelled")
        return self.seen in ("502", "200 cut", "200") and status == "Error"

    def sums(self, status: str | None) -> Sums:
        """Its part of the engine's sums if the engine was told `status` about it."""
        if status == "Rejected":
            return Sums(0.0, self.workload, 0.0)
        if status == "Error":
            return Sums(self.workload, 0.0, 0.0)
        if status == "Success" and self.path not in WITHOUT_WORK:
            return Sums(self.workload, 0.0, self.workload)
        return Sums(0.0, 0.0, 0.0)


@dataclass
class OpenClient:
    """A client whose request is sent; `task` reads its answer."""

    sent: Sent
    client: RawClient
    task: asyncio.Task[None]


class RandomClients:
    """Sends requests to the system's worker. `sent` has each of them, by `request_idx`."""

    def __init__(self, system: System, rng: random.Random) -> None:
        self.sent: dict[int, Sent] = {}
        self._system = system
        self._rng = rng

    def sign(self, workload: float, path: str) -> dict[str, Any]:
        """Sign a request, or a session (`/session`), and remember it."""
        auth = self._system.auth(workload)
        self.sent[auth["request_idx"]] = Sent(path, workload)
        return auth

    async def begin(self, path: str, workload: float | None = None) -> OpenClient:
        """Send a request; a task reads its answer."""
        is_upload = path.startswith("/upload")
        if workload is None:
            workload = UPLOAD_WORKLOAD if is_upload else float(self._rng.randint(1, 1000))
        auth = self.sign(workload, path)
        sent, stack = self.sent[auth["request_idx"]], AsyncExitStack()
        client = await stack.enter_async_context(connected(self._system.url))
        if is_upload:
            token = base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()
            await client.post(path, UPLOAD, {"X-Vast-Auth": token, **FORM})
        else:
            await client.post(path, {"auth_data": auth, "payload": {"workload": workload}})

        async def finish() -> None:
            async with stack:
                sent.seen = await read(client)
                sent.ended_s = anyio.current_time()

        return OpenClient(sent, client, asyncio.ensure_future(finish()))

    async def ask(self, path: str, workload: float | None = None) -> Sent:
        """Send a request and read its answer."""
        client = await self.begin(path, workload)
        await client.task
        return client.sent

    async def call(self, path: str, body: Any) -> tuple[str, Any]:
        """Send a request that is not remembered; return its status, and the JSON of the answer."""
        async with connected(self._system.url) as client:
            await client.post(path, body)
            head, answer = await client.answer()
            return str(head.status), json.loads(answer)

    async def work_in_session(self) -> None:
        """Open a session, send a request in it, and end it."""
        auth = self.sign(50.0, "/session")
        sent = self.sent[auth["request_idx"]]
        sent.seen, answer = await self.call("/session/create", {"auth_data": auth, "payload": {}})
        if sent.seen == "201":
            session = {"session_id": answer["session_id"]}
            await self.call("/echo", {"auth_data": auth, "payload": {"workload": 1.0}, **session})
            await self.call("/session/end", {"session_auth": auth, **session})

    async def replay(self) -> None:
        """Use a signature twice."""
        auth = self.sign(1.0, "/echo")
        envelope = {"auth_data": auth, "payload": {"workload": 1.0}}
        sent = self.sent[auth["request_idx"]]
        sent.seen, _ = await self.call("/echo", envelope)
        sent.ended_s = anyio.current_time()
        status, _ = await self.call("/echo", envelope)
        assert status == "401"

    async def forge(self) -> None:
        """Change what was signed."""
        auth = {**self._system.auth(1.0), "cost": 1e300}
        status, _ = await self.call("/echo", {"auth_data": auth, "payload": {"workload": 1e300}})
        assert status == "401"

    async def send_half(self) -> None:
        """Send a part of a body, or no HTTP, and go."""
        async with connected(self._system.url) as client:
            parts = [request_bytes("/echo", b"x" * 99)[:-9], b"\x16\x03\x01\r\n\r\n"]
            await client.send(self._rng.choice(parts))
            client.leave()
