"""Handlers that speak to the model server in a way of their own (`call_model`)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lib.backend import Backend
from tests.fakes.worker import Job, JobHandler, Setup
from tests.rig import PortLease, inner_rig


@dataclass(kw_only=True)
class TwoCalls(JobHandler):
    """Asks the model server twice, the first time by `backend.session` at `first`."""

    backend: Backend
    first: str

    @asynccontextmanager
    async def call_model(self, model: Any, payload: Job) -> AsyncGenerator[Any, None]:
        if payload.data.get("socket"):
            async with self.backend.session.ws_connect(self.first):
                pass
        async with self.backend.session.post(self.first, json={}) as answer:
            seen = json.loads(await answer.read())
        async with model.post_json("/echo", {"first": seen["path"]}) as answer:
            yield answer


def two_calls(first: str) -> Any:
    def make(model_url: str, setup: Setup) -> tuple[Backend, list[web.RouteDef]]:
        backend = Backend(model_url, healthcheck_url=setup.health)
        handler = TwoCalls(backend=backend, first=first)
        return backend, [web.post("/two", backend.create_handler(handler))]

    return make


async def test_what_it_reads_is_never_compressed(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, make=two_calls("/echo")) as here:
        async with here.post("/two", headers={"Accept-Encoding": "gzip", "X-Request-Id": "id-7"}) as answer:
            seen = await answer.json()
        assert (answer.status, json.loads(seen["body"])) == (200, {"first": "/echo"})
        assert "Accept-Encoding" not in seen["headers"]
        assert seen["headers"]["X-Request-Id"] == "id-7"


async def test_a_server_that_cannot_be_reached_is_a_502(tmp_path: Path) -> None:
    lease = PortLease()
    try:
        async with inner_rig(tmp_path, make=two_calls(f"http://127.0.0.1:{lease.port}/echo")) as here:
            for data in ({}, {"socket": True}):
                async with here.post("/two", data=data) as answer:
                    assert answer.status == 502
                    assert "could not be reached" in (await answer.json())["error"]
            await here.engine.wait_for(lambda: len(here.engine.finished) == 2)
            assert {f.request.status for f in here.engine.finished} == {"Error"}
    finally:
        lease.close()


async def test_a_refused_websocket_is_one_too(tmp_path: Path) -> None:
    async with (
        inner_rig(tmp_path, make=two_calls("/missing")) as here,
        here.post("/two", data={"socket": True}) as answer,
    ):
        assert answer.status == 502
