"""Sessions over real sockets: what clients get, and what the engine is told (authoring.md §3)."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import connected
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.manual_clock import ManualClock
from tests.rig import Rig, inner_rig, rig

ONE_AT_A_TIME: dict[str, Any] = {"allow_parallel_requests": False}


async def post(rig: Rig, path: str, body: Any, base: str = "") -> tuple[int, Any]:
    """Status and JSON of the answer to `body`, NaN and all."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with rig.http.post((base or rig.url) + path, data=io.BytesIO(data)) as answer:
        return answer.status, await answer.json()


async def create(rig: Rig, cost: float = 50.0, **terms: Any) -> tuple[dict[str, Any], str]:
    """The `auth_data` of a new session, and its id."""
    auth = rig.auth(cost)
    status, answer = await post(rig, "/session/create", {"auth_data": auth, "payload": terms})
    assert status == 201, answer
    return auth, answer["session_id"]


async def call(rig: Rig, path: str, session: tuple[dict[str, Any], str], **options: Any) -> tuple[int, Any]:
    auth, session_id = session
    return await post(rig, path, {"session_id": session_id, "session_auth": auth}, **options)


def inside(session: tuple[dict[str, Any], str], workload: float = 7.0, **data: Any) -> dict[str, Any]:
    """The envelope of a request in `session`."""
    auth, session_id = session
    payload = {"workload": workload, "data": data}
    return {"auth_data": auth, "payload": payload, "session_id": session_id}


@asynccontextmanager
async def clocked(tmp_path: Path, **backend: Any) -> AsyncGenerator[tuple[Rig, ManualClock], None]:
    """A rig on which no time passes unless the test says so."""
    clock = ManualClock()
    async with inner_rig(tmp_path, Setup(health="/health", backend={"clock": clock, **backend})) as here:
        yield here, clock


async def finished(rig: Rig, count: int = 1, *, stop: bool = False) -> list[str]:
    """The statuses that the engine was told, once there are `count`.

    `stop` the worker first where time stands still: its last reports don't wait for any.
    """
    if stop:
        assert rig.stop is not None
        rig.stop.ask()
    await rig.engine.wait_for(lambda: len(rig.engine.finished) >= count)
    return [f.request.status for f in rig.engine.finished]


# The table of calls


async def test_the_calls_and_their_answers(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        auth = here.auth(50.0)
        terms = {"lifetime": 30, "on_close_route": "/echo", "on_close_payload": {"a": 1}}
        status, created = await post(here, "/session/create", {"auth_data": auth, "payload": terms})
        now = clock.wall()
        assert (status, created) == (201, {"session_id": created["session_id"], "expiration": now + 30})
        session = (auth, created["session_id"])
        assert await call(here, "/session/get", session) == (
            200,
            {"session_id": session[1], "auth_data": auth, "expiration": now + 30, "created_at": now, **terms},
        )
        assert await call(here, "/session/health", session) == (200, {"ok": True})
        assert await call(here, "/session/end", session) == (
            200,
            {"ended": True, "removed_session": session[1]},
        )
        assert await call(here, "/session/health", session) == (200, {"ok": False})
        for path in ("/session/get", "/session/end"):
            status, answer = await call(here, path, session)
            assert (status, list(answer)) == (410, ["error"])
            assert (await call(here, path, (auth, "unknown")))[0] == 410


async def test_null_is_absent_and_the_default_is_a_minute(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, _):
        session = await create(here, lifetime=None, on_close_route=None, on_close_payload=None)
        _, told = await call(here, "/session/get", session)
        assert (told["lifetime"], told["on_close_route"], told["on_close_payload"]) == (60.0, None, None)


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as here:
        wrong: dict[str, Any] = {"lifetime": 0, "on_close_route": "//elsewhere", "on_close_payload": []}
        status, answer = await post(here, "/session/create", {"auth_data": here.auth(), "payload": wrong})
        assert (status, list(answer["payload"])) == (422, list(wrong))
        endless = b'{"auth_data": %s, "payload": {"lifetime": 1e999}}' % json.dumps(here.auth()).encode()
        assert (await post(here, "/session/create", endless))[0] == 422
        assert (await post(here, "/session/create", {"payload": {}}))[0] == 422
        for path in ("/session/get", "/session/health", "/session/end"):
            assert await post(here, path, {}) == (
                422,
                {"session_id": "missing parameter", "session_auth": "missing parameter"},
            )
            assert await post(here, path, {"session_id": 5, "session_auth": []}) == (
                422,
                {"session_id": "must be a string", "session_auth": "must be an object"},
            )
            assert (await post(here, path, b"{"))[0] == 422
            assert (await post(here, path, b'{"a": "%s"}' % (b"x" * 2**20)))[0] == 413
        session = await create(here)
        status, answer = await post(here, "/echo", {**inside(session), "session_id": 5})
        assert (status, answer) == (422, {"session_id": "must be a string or null"})


async def test_another_auth_data_is_not_the_sessions(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        auth, session_id = session = await create(here, lifetime=10)
        stranger = (here.auth(), session_id)
        for path in ("/session/get", "/session/health", "/session/end"):
            assert (await call(here, path, stranger))[0] == 401
            assert (await call(here, path, ({**auth, "cost": auth["cost"] + 1}, session_id)))[0] == 401
        clock.advance(9.0)
        assert (await post(here, "/echo", inside(stranger)))[0] == 401
        assert (await call(here, "/session/get", ({**auth, "cost": int(auth["cost"])}, session_id)))[0] == 200
        clock.advance(1.0)  # the refused request did not put it off
        assert (await call(here, "/session/get", session))[0] == 410


async def test_there_are_no_more_than_max_sessions(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, Setup(health="/health", backend={"max_sessions": 2})) as here:
        first = await create(here)
        await create(here)
        async with here.http.post(
            here.url + "/session/create", json={"auth_data": here.auth(5.0), "payload": {}}
        ) as refused:
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) >= 1
        await here.engine.wait_for(lambda: here.totals.rej_load == 5.0)
        assert (await call(here, "/session/end", first))[0] == 200
        await create(here)


async def test_none_is_opened_before_the_model_is_ready(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, Setup(health="/held"), wait=False) as here:
        await here.model.until(lambda: bool(here.model.requests))
        status, answer = await post(here, "/session/create", {"auth_data": here.auth(), "payload": {}})
        assert (status, answer["state"]) == (503, "loading")
        here.model.release()


# What it counts as


async def test_a_session_is_one_request_to_the_engine(tmp_path: Path) -> None:
    """Lesson 12."""
    async with inner_rig(tmp_path) as here:
        session = await create(here)
        for path in ("/echo", "/error500", "/error422", "/close"):
            async with here.http.post(here.url + path, json=inside(session)) as answer:
                assert answer.status in (200, 422, 500, 502)
        await here.engine.wait_for(lambda: here.last_report.cur_load == 50.0)
        assert here.last_report.num_requests_working == 1
        assert here.last_report.working_request_idxs == (session[0]["request_idx"],)
        assert not here.engine.finished
        assert (await call(here, "/session/end", session))[0] == 200
        await here.told(served=50.0)
        assert (here.totals.new_load, here.totals.cur_perf, here.totals.rej_load) == (50.0, 50.0, 0.0)
        assert here.last_report.num_requests_received == 1
        assert await finished(here) == ["Success"]
        entry = here.engine.finished[0].request
        assert (entry.request_idx, entry.success) == (session[0]["request_idx"], True)


async def test_a_request_in_no_session_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as here:
        session = await create(here)
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        status, _ = await post(here, "/echo", inside(session))
        assert status == 410
        assert (await post(here, "/echo", inside((here.auth(), "unknown"))))[0] == 410
        forged = {**here.auth(), "signature": "AAAA"}
        assert (await post(here, "/echo", inside((forged, "unknown"))))[0] == 401
        assert here.backend is not None
        outcomes = {outcome.name: count for outcome, count in here.backend.metrics.outcomes.items()}
        assert outcomes == {"SERVED": 1, "ERRORED": 2}
        assert here.model.requests == []


async def test_creating_one_needs_a_signature(tmp_path: Path) -> None:
    """Lesson 1: no slot, no load, no POST to a place of the caller's choice."""
    async with inner_rig(tmp_path, Setup(health="/health", backend={"max_sessions": 1})) as here:
        AUTHOR_CALLS.clear()
        terms = {"on_close_route": "/interrupt", "lifetime": 0.001}
        good = here.auth(10.0)
        for bad in ({**good, "signature": "AAAA"}, {**good, "cost": 1e9}, {**good, "url": "http://x"}):
            status, _ = await post(here, "/session/create", {"auth_data": bad, "payload": terms})
            assert status == 401
        assert (await post(here, "/session/create", {"auth_data": good, "payload": {}}))[0] == 201
        status, answer = await post(here, "/session/create", {"auth_data": good, "payload": {}})
        assert (status, "replay" in answer["error"]) == (401, True)
        await here.engine.wait_for(lambda: here.last_report.cur_load == 10.0)
        assert (here.totals.new_load, here.totals.rej_load) == (10.0, 0.0)
        assert here.model.requests == []
        assert not AUTHOR_CALLS


# Requests inside


@pytest.mark.parametrize("scheme", ["full", "url"])
async def test_a_session_takes_requests_of_any_size(tmp_path: Path, scheme: str) -> None:
    async with inner_rig(tmp_path, scheme=scheme) as here:
        session = await create(here)
        for size in (1, 3 * 2**20):
            status, seen = await post(here, "/echo", inside(session, a="x" * size))
            assert (status, len(json.loads(seen["body"])["data"]["a"])) == (200, size)
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        assert here.totals.new_load == 50.0


async def test_an_unsecured_worker_has_sessions_too(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, unsecured=True) as here:
        auth = {**here.auth(5.0), "signature": ""}
        _, created = await post(here, "/session/create", {"auth_data": auth, "payload": {}})
        session = (auth, created["session_id"])
        assert (await post(here, "/echo", inside(session)))[0] == 200
        assert (await post(here, "/echo", inside((here.auth(), session[1]))))[0] == 401


async def test_they_take_their_place_in_the_queue(tmp_path: Path) -> None:
    async with inner_rig(tmp_path, Setup(health="/health", handler=ONE_AT_A_TIME)) as here:
        session = await create(here)
        async with connected(here.url) as first, connected(here.url) as second:
            await first.post("/held", here.envelope(3.0))
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/held", inside(session))
            await here.engine.wait_for(lambda: here.last_report.num_requests_working == 2)
            here.model.release()
            assert [(await first.head()).status, (await second.head()).status] == [200, 200]
        assert here.model.most_working == 1


async def test_expiry_waits_for_a_request_in_flight(tmp_path: Path) -> None:
    """Lesson 34."""
    async with clocked(tmp_path) as (here, clock), connected(here.url) as client:
        session = await create(here, lifetime=10)
        await client.post("/held", inside(session))
        await here.model.until(lambda: here.model.working == 1)
        clock.advance(1000.0)
        here.model.release()
        head, body = await client.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        assert (await call(here, "/session/get", session))[0] == 410
        assert await finished(here, stop=True) == ["Success"]


async def test_a_client_that_leaves_inside_a_session_leaves_only_its_request(tmp_path: Path) -> None:
    async with inner_rig(tmp_path) as here:
        session = await create(here)
        async with connected(here.url) as client:
            await client.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            client.leave()
            await here.model.until(lambda: here.model.cancelled == 1)
        async with connected(here.url) as client:
            await client.post("/finish/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            client.leave()
        here.model.release()
        assert await call(here, "/session/health", session) == (200, {"ok": True})
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        assert here.model.cancelled == 1


# Its end


async def closing(rig: Rig) -> Any:
    """What the model server was told of a session's end."""
    await rig.model.until(lambda: any(r.path == "/echo" for r in rig.model.requests))
    return next(r.json() for r in rig.model.requests if r.path == "/echo")


@pytest.mark.parametrize("port", ["public", "loopback"])
async def test_the_model_server_is_told_of_the_end(tmp_path: Path, port: str) -> None:
    async with inner_rig(tmp_path) as here:
        session = await create(here, on_close_route="/echo", on_close_payload={"job": 5})
        base = here.loopback_url if port == "loopback" else here.url
        assert (await call(here, "/session/end", session, base=base))[0] == 200
        assert await closing(here) == {"job": 5, "session_id": session[1]}


async def test_and_of_an_expiry(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10, on_close_route="/echo")
        clock.advance(10.0)
        assert await closing(here) == {"session_id": session[1]}
        assert await finished(here, stop=True) == ["Success"]


async def test_a_drain_cancels_sessions_and_tells_the_model_server(tmp_path: Path) -> None:
    async with rig(tmp_path) as here:
        session = await create(here, on_close_route="/echo")
        assert here.worker is not None
        here.worker.terminate()
        assert await here.worker.exit_status() == 0
        assert await closing(here) == {"session_id": session[1]}
        assert await finished(here) == ["Cancelled"]
        assert here.last_report.cur_load == 0.0


@pytest.mark.parametrize("route", ["/error500", "/close", "/missing", "/held"])
async def test_a_model_server_that_does_not_listen_to_it_harms_nobody(
    tmp_path: Path, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, on_close_route=route)
        assert (await call(here, "/session/end", session))[0] == 200
        await here.model.until(lambda: any(r.path == route for r in here.model.requests))
        if route == "/held":
            await clock.wait_for_timer(10.0)
            clock.advance(10.0)
            await here.model.until(lambda: here.model.cancelled == 1)
        assert (await post(here, "/echo", here.envelope()))[0] == 200
        assert "Traceback" not in caplog.text


# And nothing is left


async def test_a_thousand_sessions_leave_nothing_behind(tmp_path: Path) -> None:
    async with clocked(tmp_path, max_sessions=None) as (here, clock):
        assert here.backend is not None
        assert here.parts is not None
        gate = asyncio.Semaphore(50)

        async def live(number: int) -> None:
            async with gate:
                session = await create(here, cost=float(number), lifetime=10)
                assert (await post(here, "/echo", inside(session)))[0] == 200

        timers = clock.pending
        await asyncio.gather(*(live(number) for number in range(1000)))
        assert len(here.parts.sessions) == 1000
        assert here.backend.metrics.cur_load == sum(range(1000))
        clock.advance(10.0)
        assert len(here.parts.sessions) == 0
        assert here.backend.metrics.cur_load == 0.0
        assert clock.pending <= timers + 1
        assert await finished(here, 1000, stop=True) == ["Success"] * 1000
        assert len({f.request.request_idx for f in here.engine.finished}) == 1000
        await here.told(served=sum(range(1000)))
        assert (here.totals.new_load, here.totals.cur_perf) == (sum(range(1000)), sum(range(1000)))
