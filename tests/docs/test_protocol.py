"""Checks docs/protocol.md against the messages on the wire: samples, fields, statuses, routes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from aiohttp.test_utils import TestServer

from lib.backend import Backend
from lib.front.connection import MAX_HEAD_BYTES
from lib.front.front import HEAD_LIMIT_S, IDLE_LIMIT_S, MAX_HEADS, MAX_WAITING
from lib.front.tls_gate import MAX_HANDSHAKES, MAX_SILENT
from lib.metrics import Outcome
from lib.routes.management import loopback_routes, public_routes
from lib.routes.sessions import end_route, session_routes
from lib.runtime.file_limit import RESERVED_FILES
from lib.wire import DeleteRequests, RouteRequest, full_signed_text, url_signed_text
from lib.worker import HandlerConfig, Worker, WorkerConfig
from tests.docs.blocks import codes, document, shape, table
from tests.docs.test_operating import OTHER_STATUSES, own_statuses
from tests.fakes.worker import Setup
from tests.system import GUARD_S, System, with_worker_task

DOC = document("protocol")
CLIENT_CLOSED = 499  # in the log only


async def post(system: System, url: str, message: Any) -> tuple[int, Any]:
    async with system.http.post(url, json=message) as answer:
        return answer.status, await answer.json()


async def route(system: System) -> Any:
    """The engine's answer to the sample `route request`, for the test's endpoint."""
    request = {**DOC.sample("route request"), "endpoint": system.engine.endpoint}
    status, answer = await post(system, system.engine_url + "/route/", request)
    assert status == 200
    return answer


def has_shape_of(answer: Any, sample: str) -> bool:
    """Whether `answer` has the same keys and types as the sample."""
    return shape(answer) == shape(DOC.sample(sample))


async def test_routing_and_calling_a_worker(tmp_path: Path) -> None:
    assert has_shape_of(RouteRequest("e", "k", 256.0).to_json(), "route request")
    async with with_worker_task(tmp_path, Setup(health="/held"), wait=False) as system:
        await system.engine.wait_for(lambda: system.last_report is not None)
        no_worker, sample = await route(system), DOC.sample("no worker")
        assert shape({**no_worker, "status": {}}) == shape({**sample, "status": {}})
        assert sample["status"].items() <= no_worker["status"].items()
        status, refused = await post(system, system.url + "/echo", system.envelope())
        assert (status, refused) == (503, DOC.sample("503"))

        system.model.release()
        await system.ready()
        auth_data = await route(system)
        assert has_shape_of(auth_data, "route answer")
        sample = DOC.sample("envelope")
        assert shape(sample["auth_data"]) == {
            k: v for k, v in shape(auth_data).items() if k != "__request_id"
        }
        envelope = {**sample, "auth_data": {k: auth_data[k] for k in sample["auth_data"]}}
        assert (await post(system, system.url + "/echo", envelope))[0] == 200


async def test_the_answers_to_invalid_requests(tmp_path: Path) -> None:
    def make(url: str, _: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
        worker = Worker(WorkerConfig(handlers=[HandlerConfig("/say", remote_function=repeat_prompt)]))
        return worker.backend, worker.routes

    async with with_worker_task(tmp_path, make=make) as system:
        auth = system.auth()
        assert await post(system, system.url + "/say", {"auth_data": auth}) == (422, DOC.sample("422 shape"))
        wrong = {**{k: v for k, v in auth.items() if k != "url"}, "reqnum": "17"}
        answer = await post(system, system.url + "/say", {"auth_data": wrong, "payload": {}})
        assert answer == (422, DOC.sample("422 auth_data"))
        answer = await post(system, system.url + "/say", {"auth_data": auth, "payload": {}})
        assert answer == (422, DOC.sample("422 payload"))


def repeat_prompt(prompt: str) -> str:
    return prompt


def test_the_signed_texts() -> None:
    names: dict[str, Any] = {}
    exec(DOC.block("python", "signed texts"), names)
    auth_data = {**DOC.sample("route answer"), "cost": "256"}
    assert names["full"](auth_data) == full_signed_text(auth_data)
    assert names["url"](auth_data) == url_signed_text(auth_data["url"])


async def chat(request: web.Request) -> web.Response:
    payload = await request.json()
    message = {"role": "assistant", "content": f"{payload['messages'][0]['content']} to you"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    answer = {"id": "c1", "created": 1, "model": payload["model"], "object": "chat.completion"}
    return web.json_response({**answer, "choices": [choice]})


async def test_the_openai_client_with_a_token(tmp_path: Path) -> None:
    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/health", empty_answer)])
    async with TestServer(app) as server:

        def make(_: str, __: Setup) -> tuple[Backend, list[web.AbstractRouteDef]]:
            handler = HandlerConfig("/v1/chat/completions", workload_calculator=tokens)
            url = str(server.make_url(""))
            worker = Worker(WorkerConfig(url, handlers=[handler], model_healthcheck_url="/health"))
            return worker.backend, worker.routes

        async with with_worker_task(tmp_path, scheme="url", make=make) as system:
            source = DOC.block("python", "openai")
            for documented, actual in (
                ("https://run.vast.ai", system.engine_url),
                ('"my-endpoint"', f'"{system.engine.endpoint}"'),
            ):
                assert source.count(documented) == 1
                source = source.replace(documented, actual)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", source), stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
            )
            with anyio.fail_after(GUARD_S):
                output, _ = await process.communicate()
            assert (process.returncode, output.decode()) == (0, "Hello to you\n")
            await system.reported(served=256.0)


def tokens(payload: dict[str, Any]) -> float:
    return float(payload["max_tokens"])


async def empty_answer(_: web.Request) -> web.Response:
    return web.Response()


async def test_a_sessions_messages(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        sample = DOC.sample("session create")
        auth = system.auth(50.0)
        assert set(sample["auth_data"]) <= set(auth)
        status, created = await post(system, system.url + "/session/create", {**sample, "auth_data": auth})
        assert (status, shape(created)) == (201, shape(DOC.sample("session created")))
        call = {**DOC.sample("session call"), "session_id": created["session_id"], "session_auth": auth}

        inside = {"auth_data": auth, "payload": {}, "session_id": created["session_id"]}
        assert (await post(system, system.url + "/echo", inside))[0] == 200
        got = (await post(system, system.url + "/session/get", call))[1]
        assert shape({**got, "auth_data": {}}) == shape({**DOC.sample("session got"), "auth_data": {}})
        assert {k: got[k] for k in sample["payload"]} == sample["payload"]
        assert await post(system, system.url + "/session/health", call) == (200, {"ok": True})
        status, ended = await post(system, system.url + "/session/end", call)
        assert (status, shape(ended)) == (200, shape(DOC.sample("session ended")))
        assert await post(system, system.url + "/session/health", call) == (200, {"ok": False})
        assert (await post(system, system.url + "/session/get", call))[0] == 410
        await system.model.until(lambda: system.model.requests[-1].path == "/close")
        assert system.model.requests[-1].json() == {"a": 1, "session_id": created["session_id"]}


async def test_every_field_of_the_reports(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo", 3.0)
        await system.reported(served=3.0)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        async with system.http.get(system.loopback_url + "/status") as answer:
            reports = (await answer.json())["reports"]
        message = next(r["message"] for r in reports if r["path"] == "/worker_status/")
        rows = table(DOC.section("### Worker status"))
        documented = {codes(row[0])[0]: row[1] for row in rows}
        assert documented == {**shape(message), "working_request_idxs": "list", "mtoken": "str"}
        (version,) = [row[2] for row in rows if row[0] == "`version`"]
        assert f'"{message["version"]}"' in version
        finished = DeleteRequests(4711, "", (system.engine.finished[0].request,))
        assert has_shape_of(json.loads(finished.encoded()), "delete_requests")


def test_every_outcome() -> None:
    documented = [[row[0], codes(row[1])[0], row[2]] for row in table(DOC.section("## Outcomes"))]
    assert documented == [[o.name.lower(), o.status, json.dumps(o.success)] for o in Outcome]


def test_every_status() -> None:
    rows = table(DOC.section("## Answers"))
    documented = {int(status) for row in rows for status in re.findall(r"\d{3}", row[0])}
    assert documented == (own_statuses() | OTHER_STATUSES) - {CLIENT_CLOSED}


def test_every_limit_on_connections() -> None:
    documented = [row[1] for row in table(DOC.section("### Connections"))]
    assert documented == [
        f"{MAX_HEAD_BYTES // 1024} KiB",
        f"{HEAD_LIMIT_S:g} s",
        f"{IDLE_LIMIT_S:g} s",
        str(MAX_WAITING),
        str(MAX_HEADS),
        f"{HEAD_LIMIT_S:g} s",
        str(MAX_SILENT),
        str(MAX_HANDSHAKES),
        f"half of the limit on open files (`ulimit -n`), less {RESERVED_FILES // 2}",
        "`CLIENT_STALL_TIMEOUT_S`",
    ]


def test_every_management_route() -> None:
    backend = Backend(None)
    public = {*_named(public_routes(backend)), *_named(session_routes(backend))}
    loopback = {*_named(loopback_routes(backend, [])), *_named([end_route(backend)])}
    rows = table(DOC.section("## Management routes"))
    where = {codes(row[0])[0]: row[1] for row in rows}
    assert {name for name, ports in where.items() if ports != "loopback port"} == public
    assert {name for name, ports in where.items() if ports != "public port"} == loopback


def _named(routes: list[web.RouteDef]) -> list[str]:
    return [f"{route.method} {route.path}" for route in routes]
