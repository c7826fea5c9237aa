"""The names of `Backend` and its metrics that older workers read, and the methods that count requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from lib.backend import Backend, Exchange, Observer
from tests.authors.older_names import count_again, make
from tests.fakes.raw_client import connected
from tests.guard import GUARD_S
from tests.slots import holding
from tests.system import CONTAINER_ID, MASTER_TOKEN, System, with_worker_process, with_worker_task


@asynccontextmanager
async def worker(tmp_path: Path, **options: Any) -> AsyncGenerator[System, None]:
    async with with_worker_task(tmp_path, make=lambda url, _: make(url, **options)) as system:
        yield system


async def facts(system: System) -> dict[str, Any]:
    async with system.http.get(system.url + "/facts") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def post(system: System, path: str, **call: Any) -> Any:
    async with system.http.post(system.url + path, json=call) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_a_worker_reads_them_before_and_after_its_start(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, module="tests.authors.older_names") as system:
        seen = await facts(system)
        assert (seen["id"], seen["url"], seen["mtoken"]) == (CONTAINER_ID, system.url, MASTER_TOKEN)
        assert seen["report_addr"] == [[system.engine_url], system.engine_url]
        assert seen["version"]
        assert (seen["loaded"], seen["error"], seen["max_throughput"]) == ([True, True], [False, None], 50.0)
        assert (seen["reqnum"], seen["sessions"], seen["locked"]) == (-1, {}, False)
        assert system.worker is not None
        output = await system.worker.final_output()
    before = {"id": CONTAINER_ID, "url": system.url, "mtoken": MASTER_TOKEN, "sessions": 0}
    assert f"before the start: {before}" in output


async def test_they_show_what_happens(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        envelope = {"auth_data": system.auth(reqnum=17), "payload": {"text": "four"}}
        assert (await system.http.post(system.url + "/text", json=envelope)).status == 200
        opened = await system.http.post(
            system.url + "/session/create", json={"auth_data": system.auth(5.0), "payload": {"lifetime": 30}}
        )
        session_id = (await opened.json())["session_id"]
        seen = await facts(system)
        assert seen["reqnum"] >= 17
        assert seen["sessions"] == {session_id: 30.0}
        assert (seen["served"], seen["received"], seen["pending"]) == (4.0, 9.0, [5.0, 5.0, 0.1])
        assert (seen["working"], len(seen["idxs"])) == ([5.0], 1)
        assert system.backend is not None
        sessions = system.backend.sessions
        assert (session_id in sessions, len(sessions), list(sessions)) == (True, 1, [session_id])
        assert sessions[session_id].auth_data["cost"] == 5.0
        assert sessions.get("another") is None


@pytest.mark.parametrize(
    ("ends", "served", "errored", "cancelled"),
    [
        ("success", 12.0, 0.0, 0.0),
        ("errored", 0.0, 12.0, 0.0),
        ("canceled", 0.0, 0.0, 12.0),
        ("without a word", 0.0, 0.0, 12.0),
        ("twice", 0.0, 12.0, 0.0),
    ],
)
async def test_a_request_that_a_route_counts_by_numbers_counts_once(
    tmp_path: Path, ends: str, served: float, errored: float, cancelled: float
) -> None:
    async with worker(tmp_path) as system:
        await post(system, "/by_numbers", workload=12, reqnum=3, ends=ends)
        seen = await facts(system)
        assert (seen["served"], seen["errored"], seen["cancelled"]) == (served, errored, cancelled)
        assert (seen["received"], seen["pending"][0], seen["working"]) == (12.0, 0.0, [])
        await system.reported(served=served)


@pytest.mark.parametrize(
    ("ends", "status", "success"),
    [
        ("success", "Success", True),
        ("errored", "Error", False),
        ("canceled", "Cancelled", True),
        ("reject", "Rejected", False),
    ],
)
async def test_a_request_that_a_route_counts_by_an_object_is_reported_once(
    tmp_path: Path, ends: str, status: str, success: bool
) -> None:
    async with worker(tmp_path) as system:
        system.auth()  # the engine knows of request 1
        answer = await post(system, "/by_object", request_idx=1, reqnum=3, workload=12.0, ends=ends)
        assert answer == {"status": status, "success": success}
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        (finished,) = system.engine.finished
        request = finished.request
        assert (request.request_idx, request.status, request.success) == (1, status, success)
        assert (await facts(system))["rejected"] == (12.0 if ends == "reject" else 0.0)


async def test_the_calls_of_a_handler_whose_request_is_counted_do_nothing(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        envelope = {"auth_data": system.auth(), "payload": {"text": "four"}}
        async with system.http.post(system.url + "/text", json=envelope) as answer:
            assert answer.status == 200
        seen = await facts(system)
        assert (seen["served"], seen["received"], seen["working"]) == (4.0, 4.0, [])
        # On the same connection, a route of the author's own counts.
        await post(system, "/by_numbers", workload=12, reqnum=3, ends="success")
        assert (await facts(system))["served"] == 16.0


@dataclass
class CountingObserver(Observer):
    backend: Backend

    def admitted(self, exchange: Exchange) -> None:
        count_again(self.backend)

    def ended(self, exchange: Exchange) -> None:
        count_again(self.backend)


@pytest.mark.parametrize("path", ["/text", "/call"])
async def test_calls_around_a_handler_do_nothing_either(tmp_path: Path, path: str) -> None:
    def counted(url: str, _: object) -> Any:
        async def counting(request: web.Request, handler: Handler) -> web.StreamResponse:
            count_again(backend)
            return await handler(request)

        backend, routes = make(url)
        backend.middlewares.append(counting)
        backend.observers.append(CountingObserver(backend))
        return backend, routes

    async with with_worker_task(tmp_path, make=counted) as system:
        system.model.release()
        envelope = {"auth_data": system.auth(), "payload": {"text": "four"}}
        async with system.http.post(system.url + path, json=envelope) as answer:
            assert answer.status == 200
        await system.reported(served=4.0)
        seen = await facts(system)
        assert (seen["served"], seen["received"], seen["rejected"]) == (4.0, 4.0, 0.0)


async def test_calls_for_a_client_that_has_left_do_nothing_either(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        async with connected(system.url) as client:
            await client.post("/call", {"auth_data": system.auth(), "payload": {"text": "four"}})
            await system.model.until(lambda: any(r.path == "/held" for r in system.model.requests))
        await system.model.until(lambda: any(r.path == "/interrupt" for r in system.model.requests))
        seen = await facts(system)
        assert (seen["served"], seen["received"], seen["rejected"]) == (0.0, 4.0, 0.0)


async def test_a_request_of_a_route_that_is_open_when_the_worker_stops_has_errored(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, make=lambda url, _: make(url), drain_timeout_s=0.0) as system:
        system.auth()  # the engine knows of request 1
        await post(system, "/unended", request_idx=1)
        assert (await facts(system))["working"] == [12.0]
    (finished,) = system.engine.finished
    assert (finished.request.request_idx, finished.request.status) == (1, "Error")
    assert (system.totals.new_load, system.last_report.num_requests_working) == (12.0, 0)


async def test_a_route_takes_its_turn_with_handlers(tmp_path: Path) -> None:
    async with worker(tmp_path) as system:
        assert system.backend is not None
        queue = system.backend.lanes.shared
        async with anyio.create_task_group() as tasks:
            async with holding(queue):
                assert (await facts(system))["locked"]
                tasks.start_soon(post, system, "/in_turn")
                with anyio.fail_after(GUARD_S):
                    while not queue.waiting:
                        await anyio.lowlevel.checkpoint()
                assert not any(r.path == "/echo" for r in system.model.requests)
            await system.model.until(lambda: any(r.path == "/echo" for r in system.model.requests))
        assert not (await facts(system))["locked"]


async def test_without_a_limit_no_turn_is_waited_for(tmp_path: Path) -> None:
    async with worker(tmp_path, allow_parallel_requests=True) as system:
        assert await post(system, "/in_turn") == {"locked": False, "status": 200}


def test_none_of_them_can_be_set() -> None:
    backend: Any = Backend("http://model")
    for name in ("sessions", "reqnum", "sem", "report_addr", "mtoken", "version"):
        with pytest.raises(AttributeError, match=name):
            setattr(backend, name, 1)
    assert (backend.reqnum, dict(backend.sessions), backend.sem.locked()) == (-1, {}, False)
