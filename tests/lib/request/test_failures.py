"""Failures after the answer or in a refusal: they neither end the worker nor become an internal error."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lib.access.authenticator import Admission
from lib.access.body import BodyReader
from lib.access.payload import PayloadReader
from lib.access.spool import SpoolRoom
from lib.backend import Backend
from lib.data_types import JsonDataException
from lib.model.readiness import State
from lib.request.incoming import IncomingRequest
from lib.uploads import Upload
from tests.fakes.worker import Job, JobHandler, altered_worker
from tests.system import System, with_worker_task


class UploadHandler(JobHandler):
    @property
    def accepts_uploads(self) -> bool:
        return True

    def read_upload(self, upload: Any) -> Job:
        return Job()


@pytest.mark.parametrize("policy", ["cancel", "finish"])
async def test_an_upload_that_cannot_be_deleted_does_not_end_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, policy: Any
) -> None:
    unlink = Path.unlink

    def failing(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.name.startswith("pyworker-body-"):
            raise PermissionError(1, "not allowed")

    monkeypatch.setattr(Path, "unlink", failing)

    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/up", backend.create_handler(UploadHandler(on_disconnect=policy)))]

    async with with_worker_task(tmp_path, make=altered_worker(change)) as system:
        headers = {**system.header(1.0), "Content-Type": "image/png"}
        async with system.http.post(system.url + "/up", data=b"1234", headers=headers) as answer:
            assert answer.status == 200
        await system.reported(served=1.0)
        assert (await system.call("/echo", 3.0))[0] == 200
    assert "can't be deleted: not allowed" in caplog.text


class FailingAtTheEnd(PayloadReader):
    """Fails once the payload is no longer needed."""

    def __init__(self) -> None:
        bodies = BodyReader(1000, 10.0)
        super().__init__(bodies, bodies, SpoolRoom(1000))

    @asynccontextmanager
    async def receive(
        self, request: IncomingRequest, admission: Admission, accepts_uploads: bool
    ) -> AsyncGenerator[dict[str, Any] | Upload, None]:
        async with super().receive(request, admission, accepts_uploads) as received:
            yield received
        raise LookupError("a bug at the end")


@pytest.mark.parametrize("path", ["/echo", "/finish/echo"])
async def test_an_error_after_the_answer_is_logged_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.running is not None
        system.running.payloads = FailingAtTheEnd()
        job: dict[str, Any] = {"workload": 3.0, "data": {}}
        async with system.http.post(system.url + path, json=job, headers=system.header(3.0)) as answer:
            assert answer.status == 200
            await answer.read()
        await system.reported(served=3.0)
        assert await state_of(system) == "ready"
    assert "an error after its answer" in caplog.text
    assert "a bug at the end" in caplog.text


async def state_of(system: System) -> str:
    async with aiohttp.ClientSession() as http, http.get(system.url + "/readyz") as answer:
        return await answer.text()


async def until_ready(system: System) -> None:
    assert system.running is not None
    readiness = system.running.readiness
    assert await readiness.until(lambda: readiness.state is State.READY, 30.0)


@pytest.mark.parametrize("session_id", [None, "unknown"])
@pytest.mark.parametrize("path", ["/echo", "/session/create"])
async def test_null_as_auth_data_is_no_internal_error(
    tmp_path: Path, path: str, session_id: str | None
) -> None:
    async with with_worker_task(tmp_path, engine="none", wait=False) as system:
        await until_ready(system)
        body: dict[str, Any] = {"auth_data": None, "payload": {}, "session_id": session_id}
        async with system.http.post(system.url + path, json=body) as answer:
            assert answer.status in (200, 201, 410, 422)


class Unserialisable(JobHandler):
    def read_payload(self, req_data: dict[str, Any]) -> Job:
        circle: dict[Any, Any] = {("a", "key"): 1}
        circle["itself"] = circle
        raise JsonDataException(circle)


async def test_a_refusal_that_is_not_json_is_sent_as_text(tmp_path: Path) -> None:
    def change(backend: Backend) -> list[web.AbstractRouteDef]:
        return [web.post("/odd", backend.create_handler(Unserialisable()))]

    async with with_worker_task(tmp_path, make=altered_worker(change)) as system:
        status, body = await system.call("/odd")
        assert (status, list(json.loads(body))) == (422, ["('a', 'key')", "itself"])
