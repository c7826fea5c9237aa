"""Sessions over real sockets: what clients get, and what the engine is told (authoring.md §3)."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import weakref
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.request.sessions import Session
from lib.server import EXIT_FAILED
from tests.fakes.raw_client import connected
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.manual_clock import ManualClock
from tests.system import GUARD_S, System, with_worker_process, with_worker_task

MIB = 2**20
CALLS = ("/session/get", "/session/health", "/session/end")
TOO_LONG = "must be more than 0 and at most 86400 seconds"
ONE_AT_A_TIME: dict[str, Any] = {"allow_parallel_requests": False}


async def post(system: System, path: str, body: Any, base: str = "") -> tuple[int, Any]:
    """Status and JSON of the answer to `body`, NaN and all."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with system.http.post((base or system.url) + path, data=io.BytesIO(data)) as answer:
        return answer.status, await answer.json()


async def create(system: System, cost: float = 50.0, **terms: Any) -> tuple[dict[str, Any], str]:
    """The `auth_data` of a new session, and its id."""
    auth = system.auth(cost)
    status, answer = await post(system, "/session/create", {"auth_data": auth, "payload": terms})
    assert status == 201, answer
    return auth, answer["session_id"]


async def call(
    system: System, path: str, session: tuple[dict[str, Any], str], **options: Any
) -> tuple[int, Any]:
    auth, session_id = session
    return await post(system, path, {"session_id": session_id, "session_auth": auth}, **options)


def inside(session: tuple[dict[str, Any], str], workload: float = 7.0, **data: Any) -> dict[str, Any]:
    """The envelope of a request in `session`."""
    auth, session_id = session
    payload = {"workload": workload, "data": data}
    return {"auth_data": auth, "payload": payload, "session_id": session_id}


async def told_of(system: System, session: tuple[dict[str, Any], str]) -> Any:
    """What `/session/get` tells of a session that lives."""
    status, answer = await call(system, "/session/get", session)
    assert status == 200, answer
    return answer


@asynccontextmanager
async def clocked(
    tmp_path: Path, handler: dict[str, Any] | None = None, **backend: Any
) -> AsyncGenerator[tuple[System, ManualClock], None]:
    """A system on which no time passes unless the test says so."""
    clock = ManualClock()
    setup = Setup(health="/health", handler=handler or {}, backend={"clock": clock, **backend})
    async with with_worker_task(tmp_path, setup) as here:
        yield here, clock


async def waiting(system: System, count: int) -> None:
    """Return once `count` requests wait for a slot; each look is an answer of the worker's."""
    told: Any = None
    with anyio.fail_after(GUARD_S):
        while told is None or told["queue"]["waiting"] != count:
            async with system.http.get(system.loopback_url + "/status") as answer:
                told = await answer.json()


async def quiet(system: System) -> None:
    """Return once nothing is in flight, what is posted at a session's end included."""
    assert system.backend is not None
    with anyio.fail_after(GUARD_S):
        await system.backend.metrics.emptied()


def posted(system: System, path: str) -> list[Any]:
    """The bodies that have come to the model server's `path`."""
    return [r.json() for r in system.model.requests if r.path == path]


async def finished(system: System, count: int = 1, *, stop: bool = False) -> list[str]:
    """The statuses that the engine was told, once there are `count`.

    `stop` the worker first where time stands still: its last reports don't wait for any.
    """
    if stop:
        assert system.stop is not None
        system.stop.ask()
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [f.request.status for f in system.engine.finished]


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


# Terms as JSON text, and what is said of each that is wrong.
WRONG_TERMS: list[tuple[str, dict[str, str]]] = [
    *((f'{{"lifetime": {n}}}', {"lifetime": TOO_LONG}) for n in ("0", "-1", "-0.0", "86400.5", "1" * 400)),
    *((f'{{"lifetime": {n}}}', {"lifetime": TOO_LONG}) for n in ("NaN", "Infinity", "-Infinity", "1e999")),
    *((f'{{"lifetime": {n}}}', {"lifetime": "must be a number"}) for n in ('"60"', "true", "false", "[]")),
    *(
        (f'{{"on_close_route": {route}}}', {"on_close_route": "must be a path on the model server"})
        for route in ('"http://h/a"', '"//h/a"', '"/\\\\h/a"', '"a"', '""', "5", "false", '{"a": 1}')
    ),
    *(
        (f'{{"on_close_payload": {value}}}', {"on_close_payload": "must be an object"})
        for value in ("[]", '"{}"', "0", "false")
    ),
    (
        '{"on_close_payload": [], "on_close_route": "//h", "lifetime": 0}',
        {
            "lifetime": TOO_LONG,
            "on_close_route": "must be a path on the model server",
            "on_close_payload": "must be an object",
        },
    ),
]


async def test_every_term_that_is_wrong_is_named_and_opens_nothing(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 1})) as here:
        for terms, problems in WRONG_TERMS:
            body = f'{{"auth_data": {json.dumps(here.auth(50.0))}, "payload": {terms}}}'.encode()
            assert await post(here, "/session/create", body) == (422, {"payload": problems}), terms
        assert await finished(here, len(WRONG_TERMS)) == ["Error"] * len(WRONG_TERMS)
        session = await create(here)
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        assert (here.totals.new_load, here.totals.rej_load) == (50.0, 0.0)
        assert here.last_report.num_requests_received == 1


async def test_an_envelope_that_is_none_is_refused_like_any(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        missing = {"auth_data": "field missing", "payload": "field missing"}
        assert await post(here, "/session/create", {}) == (422, missing)
        wrong = {"auth_data": "must be an object", "payload": "must be an object"}
        assert await post(here, "/session/create", {"auth_data": 5, "payload": None}) == (422, wrong)
        status, answer = await post(here, "/session/create", {"auth_data": {"cost": -1}, "payload": {}})
        names = {"signature", "cost", "endpoint", "reqnum", "url"}
        assert (status, set(answer["auth_data"])) == (422, names)
        for body in (b"", b"[]", b"{", b"\xff"):
            assert (await post(here, "/session/create", body))[0] == 422
        for path in ("/session/create", *CALLS):
            async with here.http.get(here.url + path) as answer:
                assert answer.status == 405


async def test_what_is_wrong_with_a_session_is_named(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        id_problems = {"session_id": "must be a string"}
        auth_problems = {"session_auth": "must be an object"}
        not_texts: list[Any] = [5, None, True, ["x"], {}]
        not_objects: list[Any] = ["s", None, 0, False, []]
        table: list[tuple[dict[str, Any], dict[str, str]]] = [
            ({}, {"session_id": "missing parameter", "session_auth": "missing parameter"}),
            ({"session_id": "x"}, {"session_auth": "missing parameter"}),
            ({"session_auth": {}}, {"session_id": "missing parameter"}),
            ({"session_id": "x", "auth_data": {}}, {"session_auth": "missing parameter"}),
            *(({"session_id": value, "session_auth": {}}, id_problems) for value in not_texts),
            *(({"session_id": "x", "session_auth": value}, auth_problems) for value in not_objects),
            ({"session_id": 5, "session_auth": []}, {**id_problems, **auth_problems}),
        ]
        for path in CALLS:
            for body, problems in table:
                assert await post(here, path, body) == (422, problems), body
            for malformed in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
                status, answer = await post(here, path, malformed)
                assert (status, list(answer)) == (422, ["body"])
            status, answer = await post(here, path, b'{"a": "%s"}' % (b"x" * MIB))
            assert (status, list(answer)) == (413, ["error"])
        session = await create(here)
        status, answer = await post(here, "/echo", {**inside(session), "session_id": 5})
        assert (status, answer) == (422, {"session_id": "must be a string or null"})


async def test_another_auth_data_is_not_the_sessions(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        auth, session_id = session = await create(here, lifetime=10)
        stranger = (here.auth(), session_id)
        beside: list[dict[str, Any]] = [
            stranger[0],
            {**auth, "cost": auth["cost"] + 1},
            {**auth, "cost": str(auth["cost"])},
            {**auth, "more": None},
            {k: v for k, v in auth.items() if k != "request_idx"},
            {},
        ]
        for path in CALLS:
            for other in beside:
                status, answer = await call(here, path, (other, session_id))
                assert (status, list(answer)) == (401, ["error"])
        clock.advance(9.0)
        assert (await post(here, "/echo", inside(stranger)))[0] == 401
        as_written_elsewhere = {**dict(reversed(list(auth.items()))), "cost": int(auth["cost"])}
        assert (await call(here, "/session/get", (as_written_elsewhere, session_id)))[0] == 200
        clock.advance(1.0)  # the refused request did not put it off
        assert (await call(here, "/session/get", session))[0] == 410
        assert here.model.requests == []


async def test_nor_in_a_large_request(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        _, session_id = session = await create(here)
        stranger = (here.auth(), session_id)
        assert (await post(here, "/echo", inside(stranger, a="x" * 2 * MIB)))[0] == 401
        forged = ({**session[0], "signature": "AAAA"}, session_id)
        assert (await post(here, "/echo", inside(forged, a="x" * 2 * MIB)))[0] == 401
        assert here.model.requests == []


async def test_an_expired_one_is_gone_for_every_call(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10)
        clock.advance(10.0)
        gone = "the session is unknown, has ended or has expired"
        for path in ("/session/get", "/session/end"):
            assert await call(here, path, session) == (410, {"error": gone})
        assert await call(here, "/session/health", session) == (200, {"ok": False})
        assert await post(here, "/echo", inside(session)) == (410, {"error": gone})
        # An id that is gone is nobody's: there is nothing to compare with.
        assert await call(here, "/session/health", (here.auth(), session[1])) == (200, {"ok": False})
        assert here.model.requests == []


async def test_a_body_nested_past_every_walk_is_no_internal_error(tmp_path: Path) -> None:
    """Whatever the parser takes, the comparison takes too, from those not authenticated as well."""
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 2})) as here:
        auth, session_id = session = await create(here)
        for depth in (500, 900, 950, 985, 2000, 20_000):
            deep = "[" * depth + "]" * depth

            def with_deep(fields: dict[str, Any], deep: str = deep) -> str:
                return json.dumps(fields)[:-1] + f', "deep": {deep}}}'

            forged = with_deep({**here.auth(), "signature": "AAAA"})
            status, _ = await post(here, "/echo", f'{{"auth_data": {forged}, "payload": {{}}}}'.encode())
            assert status in (401, 422)
            body = f'{{"session_id": "{session_id}", "session_auth": {with_deep(auth)}}}'.encode()
            for path in CALLS:
                assert (await post(here, path, body))[0] in (401, 422)
        too_deep = with_deep(here.auth())
        status, _ = await post(
            here, "/session/create", f'{{"auth_data": {too_deep}, "payload": {{}}}}'.encode()
        )
        assert status == 422
        await create(here)  # and it took no slot
        assert (await call(here, "/session/get", session))[0] == 200


async def test_there_are_no_more_than_max_sessions(tmp_path: Path) -> None:
    async with clocked(tmp_path, max_sessions=2) as (here, clock):
        first = await create(here, lifetime=5)
        await create(here, lifetime=100)
        clock.advance(1.5)
        async with here.http.post(
            here.url + "/session/create", json={"auth_data": here.auth(5.0), "payload": {}}
        ) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "4")
            assert list(await refused.json()) == ["error"]
        assert (await call(here, "/session/end", first))[0] == 200
        second = await create(here, lifetime=2)
        clock.advance(2.0)
        assert (await call(here, "/session/get", second))[0] == 410
        await create(here)
        assert Counter(await finished(here, 5, stop=True)) == {"Success": 2, "Rejected": 1, "Cancelled": 2}
        await here.engine.wait_for(lambda: here.totals.rej_load == 5.0)


async def test_nor_where_many_come_at_once(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 3})) as here:
        bodies = [{"auth_data": here.auth(2.0), "payload": {}} for _ in range(12)]
        answers = await asyncio.gather(*(post(here, "/session/create", body) for body in bodies))
        assert Counter(status for status, _ in answers) == {201: 3, 429: 9}
        await here.engine.wait_for(lambda: (here.totals.new_load, here.totals.rej_load) == (6.0, 18.0))
        assert await finished(here, 9) == ["Rejected"] * 9


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("limit", "most"), [({}, 10), ({"max_sessions": None}, 25), ({"max_sessions": 0}, 25)]
)
async def test_the_limit_is_ten_and_there_may_be_none(
    tmp_path: Path, declared: bool, limit: dict[str, Any], most: int
) -> None:
    async with with_worker_task(tmp_path, Setup(declared=declared, health="/health", backend=limit)) as here:
        answers = [
            await post(here, "/session/create", {"auth_data": here.auth(), "payload": {}}) for _ in range(25)
        ]
        assert [status for status, _ in answers] == [201] * most + [429] * (25 - most)


async def test_none_is_opened_before_the_model_is_ready(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/held"), wait=False) as here:
        await here.model.until(lambda: bool(here.model.requests))
        async with here.http.post(
            here.url + "/session/create", json={"auth_data": here.auth(5.0), "payload": {}}
        ) as refused:
            assert (refused.status, (await refused.json())["state"]) == (503, "loading")
            assert int(refused.headers["Retry-After"]) >= 1
        assert await finished(here) == ["Rejected"]
        here.model.release()
        await here.engine.wait_for(lambda: here.totals.rej_load == 5.0)
        assert here.totals.new_load == 0.0


# What it counts as


async def test_a_session_is_one_request_to_the_engine(tmp_path: Path) -> None:
    """Lesson 12."""
    async with with_worker_task(tmp_path) as here:
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


async def test_its_entry_tells_when_it_began_and_ended(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session, began = await create(here), clock.wall()
        clock.advance(5.0)
        assert (await post(here, "/echo", inside(session)))[0] == 200
        clock.advance(3.0)
        await call(here, "/session/end", session)
        await finished(here, stop=True)
        entry = here.engine.finished[0].request
        assert (entry.entered_queue_at, entry.work_started_at) == (began, began)
        assert entry.work_completed_at == began + 8.0


async def test_two_sessions_and_a_request_are_three_requests(tmp_path: Path) -> None:
    """Lesson 12, and what is beside sessions is counted as ever."""
    async with with_worker_task(tmp_path) as here:
        first, second = await create(here, cost=10.0), await create(here, cost=20.5)
        beside = here.envelope(3.0)
        async with connected(here.url) as client, connected(here.url) as inner, connected(here.url) as other:
            await client.post("/held", {**beside, "session_id": None})
            await inner.post("/held", inside(first, workload=100.0))
            await other.post("/held", inside(second, workload=100.0))
            await here.model.until(lambda: here.model.working == 3)
            await here.engine.wait_for(lambda: here.last_report.cur_load == 33.5)
            assert here.last_report.num_requests_working == 3
            idxs = {auth["request_idx"] for auth in (first[0], second[0], beside["auth_data"])}
            assert set(here.last_report.working_request_idxs) == idxs
            here.model.release()
            assert {(await c.head()).status for c in (client, inner, other)} == {200}
        await here.engine.wait_for(lambda: here.totals.cur_perf == 3.0)
        await call(here, "/session/end", first)
        await call(here, "/session/end", second)
        await here.told(served=33.5)
        assert (here.totals.new_load, here.totals.cur_perf) == (33.5, 33.5)
        assert here.last_report.num_requests_received == 3
        assert await finished(here, 3) == ["Success"] * 3
        assert {f.request.request_idx for f in here.engine.finished} == idxs


async def test_one_without_a_request_idx_has_no_entry(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        auth = {**here.auth(4.0), "request_idx": 0}
        _, created = await post(here, "/session/create", {"auth_data": auth, "payload": {}})
        await here.engine.wait_for(lambda: here.last_report.cur_load == 4.0)
        assert here.last_report.working_request_idxs == ()
        assert (await call(here, "/session/end", (auth, created["session_id"])))[0] == 200
        await here.told(served=4.0)
        await call(here, "/session/end", await create(here, cost=1.0))
        assert await finished(here) == ["Success"]
        assert here.engine.finished[0].request.request_idx != 0


async def test_a_model_that_fails_inside_leaves_the_session_served(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        session = await create(here)
        for path, told in (("/error500", 500), ("/close", 502), ("/raising", 500)):
            async with here.http.post(
                here.url + path, json=inside(session, 7.0, **{"raise": "response"})
            ) as answer:
                assert answer.status == told
        async with connected(here.url) as client:
            await client.post("/cut_stream", inside(session))
            with pytest.raises(ConnectionError):
                await client.answer()
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        assert await finished(here) == ["Success"]
        assert (here.last_report.error_msg, here.totals.cur_perf) == ("", 50.0)


async def test_a_request_in_no_session_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
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
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 1})) as here:
        AUTHOR_CALLS.clear()
        terms = {"on_close_route": "/interrupt", "lifetime": 0.001}
        good = here.auth(10.0)
        elsewhere = here.engine.sign(url="http://127.0.0.1:1", cost=10.0)
        for bad in (
            *(
                {**good, "signature": signature}
                for signature in ("AAAA", "", "not base64", elsewhere["signature"])
            ),
            *({**good, "cost": 1e9}, {**good, "url": "http://x"}, elsewhere),
        ):
            for payload in (terms, {**terms, "lifetime": 0}, {**terms, "on_close_route": "http://h/"}):
                status, _ = await post(here, "/session/create", {"auth_data": bad, "payload": payload})
                assert status == 401
        assert (await post(here, "/session/create", {"auth_data": good, "payload": {}}))[0] == 201
        status, answer = await post(here, "/session/create", {"auth_data": good, "payload": {}})
        assert (status, "replay" in answer["error"]) == (401, True)
        await here.engine.wait_for(lambda: here.last_report.cur_load == 10.0)
        assert (here.totals.new_load, here.totals.rej_load) == (10.0, 0.0)
        assert here.last_report.num_requests_received == 1
        assert here.model.requests == []
        assert not AUTHOR_CALLS
        assert not here.engine.finished


async def test_a_session_is_no_ticket_to_another(tmp_path: Path) -> None:
    """Creation is authenticated like any request: its `auth_data` opens one session, not any number."""
    async with with_worker_task(tmp_path) as here:
        auth, session_id = session = await create(here)
        for inner in (session_id, "unknown"):
            body: dict[str, Any] = {"auth_data": auth, "payload": {}, "session_id": inner}
            assert (await post(here, "/session/create", body))[0] in (401, 410, 422)
        await call(here, "/session/end", session)
        body = {"auth_data": auth, "payload": {}, "session_id": session_id}
        assert (await post(here, "/session/create", body))[0] in (401, 410, 422)
        await here.told(served=50.0)
        assert here.totals.new_load == 50.0


# Requests inside


@pytest.mark.parametrize("scheme", ["full", "url"])
async def test_a_session_takes_requests_of_any_size(tmp_path: Path, scheme: str) -> None:
    async with with_worker_task(tmp_path, scheme=scheme) as here:
        session = await create(here)
        for size in (1, 3 * MIB, 1, 3 * MIB):
            status, seen = await post(here, "/echo", inside(session, a="x" * size))
            assert (status, len(json.loads(seen["body"])["data"]["a"])) == (200, size)
        at_once = await asyncio.gather(*(post(here, "/echo", inside(session, number=n)) for n in range(20)))
        assert [json.loads(seen["body"])["data"]["number"] for _, seen in at_once] == list(range(20))
        await call(here, "/session/end", session)
        await here.told(served=50.0)
        assert here.totals.new_load == 50.0
        for size in (1, 2 * MIB):
            assert (await post(here, "/echo", inside(session, a="x" * size)))[0] == 410


async def test_what_a_session_is_let_in_by_opens_no_door_beside_it(tmp_path: Path) -> None:
    """The replay guard does not apply inside, and only there."""
    async with with_worker_task(tmp_path) as here:
        session = await create(here)
        for size in (1, 2 * MIB):
            assert (await post(here, "/echo", inside(session, a="x" * size)))[0] == 200
            named = inside(session, a="x" * size)
            unnamed = {key: value for key, value in named.items() if key != "session_id"}
            for beside in ({**named, "session_id": None}, unnamed):
                status, answer = await post(here, "/echo", beside)
                assert (status, "replay" in answer["error"]) == (401, True)


async def test_an_unsecured_worker_has_sessions_too(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as here:
        auth = {**here.auth(5.0), "signature": ""}
        _, created = await post(here, "/session/create", {"auth_data": auth, "payload": {}})
        session = (auth, created["session_id"])
        for size in (1, 2 * MIB):
            assert (await post(here, "/echo", inside(session, a="x" * size)))[0] == 200
        stranger = (here.auth(), session[1])
        assert (await post(here, "/echo", inside(stranger)))[0] == 401
        assert (await call(here, "/session/end", stranger))[0] == 401
        assert (await call(here, "/session/end", session))[0] == 200
        await here.told(served=5.0)
        assert (here.totals.new_load, here.totals.cur_perf) == (5.0, 5.0)


async def test_each_authenticated_request_puts_the_expiration_off(tmp_path: Path) -> None:
    """By its lifetime from then on, whatever becomes of the request; looking at a session doesn't."""
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10)
        opened = clock.wall()
        for path, told in (("/echo", 200), ("/error500", 500), ("/close", 502)):
            clock.advance(9.0)
            async with here.http.post(here.url + path, json=inside(session)) as answer:
                assert answer.status == told
            assert (await told_of(here, session))["expiration"] == clock.wall() + 10.0
        clock.advance(9.0)
        unreadable = {**inside(session), "payload": {"workload": "much"}}
        assert (await post(here, "/echo", unreadable))[0] == 422
        told = await told_of(here, session)
        assert (told["expiration"], told["created_at"]) == (clock.wall() + 10.0, opened)
        clock.advance(9.0)
        assert await call(here, "/session/health", session) == (200, {"ok": True})
        assert (await told_of(here, session))["expiration"] == clock.wall() + 1.0
        clock.advance(0.5)
        assert (await call(here, "/session/health", session))[1] == {"ok": True}
        clock.advance(0.5)
        assert (await call(here, "/session/health", session))[1] == {"ok": False}


async def test_they_take_their_place_in_the_queue(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", handler=ONE_AT_A_TIME)) as here:
        session = await create(here)
        async with connected(here.url) as first, connected(here.url) as second, connected(here.url) as third:
            await first.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/echo", here.envelope(3.0))
            await waiting(here, 1)
            await third.post("/echo", inside(session))
            await waiting(here, 2)
            assert [r.path for r in here.model.requests] == ["/held"]
            assert here.last_report.num_requests_working <= 2
            here.model.release()
            assert [(await c.head()).status for c in (first, second, third)] == [200, 200, 200]
        assert here.model.most_working == 1
        assert [r.path for r in here.model.requests] == ["/held", "/echo", "/echo"]
        assert [r.json()["workload"] for r in here.model.requests] == [7.0, 3.0, 7.0]


async def test_a_wait_that_is_too_long_is_refused_inside_too(tmp_path: Path) -> None:
    limits = {**ONE_AT_A_TIME, "max_queue_time": 30.0}
    async with clocked(tmp_path, limits, max_perf=1000.0) as (here, clock):
        session = await create(here, lifetime=1000)
        async with connected(here.url) as first, connected(here.url) as second:
            await first.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/echo", inside(session))
            await waiting(here, 1)
            clock.advance(30.0)
            head = await second.head()
            assert (head.status, int(head.headers["retry-after"]) >= 1) == (429, True)
            here.model.release()
            assert (await first.head()).status == 200
        await call(here, "/session/end", session)
        assert await finished(here, stop=True) == ["Success"]
        await here.told(served=50.0)
        assert (here.totals.new_load, here.totals.rej_load, here.totals.cur_perf) == (50.0, 0.0, 50.0)


async def test_a_sessions_own_cost_keeps_none_of_its_requests_out(tmp_path: Path) -> None:
    """It is in flight as long as the session lives: no request inside waits for it."""
    setup = Setup(health="/health", handler={"max_queue_time": 5.0}, backend={"max_perf": 10.0})
    async with with_worker_task(tmp_path, setup) as here:
        session = await create(here, cost=100.0)
        assert (await post(here, "/echo", inside(session)))[0] == 200


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


async def test_and_for_one_that_waits_its_turn(tmp_path: Path) -> None:
    """Lesson 34: time in the queue is time in flight."""
    async with clocked(tmp_path, ONE_AT_A_TIME) as (here, clock):
        session = await create(here, lifetime=10, on_close_route="/close")
        async with connected(here.url) as first, connected(here.url) as second:
            await first.post("/held", here.envelope(3.0))
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/echo", inside(session))
            await waiting(here, 1)
            clock.advance(1000.0)
            assert await call(here, "/session/health", session) == (200, {"ok": True})
            assert not posted(here, "/close")
            here.model.release()
            assert [(await first.head()).status, (await second.head()).status] == [200, 200]
        await here.model.until(lambda: posted(here, "/close") == [{"session_id": session[1]}])
        assert await call(here, "/session/health", session) == (200, {"ok": False})


async def test_and_for_one_whose_client_has_left_it_to_finish(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10, on_close_route="/echo")
        async with connected(here.url) as client:
            await client.post("/finish/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            client.leave()
        clock.advance(1000.0)
        assert await call(here, "/session/health", session) == (200, {"ok": True})
        assert not posted(here, "/echo")
        here.model.release()
        assert await closing(here) == {"session_id": session[1]}
        assert await call(here, "/session/health", session) == (200, {"ok": False})
        assert here.model.cancelled == 0
        assert await finished(here, stop=True) == ["Success"]


async def test_a_client_that_leaves_lets_the_session_expire(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10, on_close_route="/echo")
        async with connected(here.url) as client:
            await client.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            clock.advance(1000.0)
            client.leave()
        assert await closing(here) == {"session_id": session[1]}
        assert here.model.cancelled == 1
        assert await finished(here, stop=True) == ["Success"]


async def test_an_end_cuts_no_request_in_flight_either(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here, connected(here.url) as client:
        session = await create(here, on_close_route="/echo")
        await client.post("/held", inside(session))
        await here.model.until(lambda: here.model.working == 1)
        assert (await call(here, "/session/end", session))[0] == 200
        assert await call(here, "/session/health", session) == (200, {"ok": False})
        await here.told(served=50.0)
        here.model.release()
        head, body = await client.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        await quiet(here)
        assert posted(here, "/echo") == [{"session_id": session[1]}]
        assert await finished(here) == ["Success"]
        assert (here.totals.new_load, here.totals.cur_perf) == (50.0, 50.0)


async def test_a_client_that_leaves_inside_a_session_leaves_only_its_request(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
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


async def closing(system: System) -> Any:
    """What the model server was told of a session's end."""
    await system.model.until(lambda: any(r.path == "/echo" for r in system.model.requests))
    return next(r.json() for r in system.model.requests if r.path == "/echo")


@pytest.mark.parametrize("port", ["public", "loopback"])
async def test_the_model_server_is_told_of_the_end(tmp_path: Path, port: str) -> None:
    async with with_worker_task(tmp_path) as here:
        session = await create(here, on_close_route="/echo", on_close_payload={"job": 5})
        base = here.loopback_url if port == "loopback" else here.url
        assert (await call(here, "/session/end", session, base=base))[0] == 200
        assert await closing(here) == {"job": 5, "session_id": session[1]}


async def test_ended_twice_at_once_it_ends_once(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        session = await create(here, on_close_route="/echo", on_close_payload={"session_id": "forged"})
        bases = (here.url, here.loopback_url) * 5
        answers = await asyncio.gather(*(call(here, "/session/end", session, base=base) for base in bases))
        assert Counter(status for status, _ in answers) == {200: 1, 410: 9}
        await quiet(here)
        assert posted(here, "/echo") == [{"session_id": session[1]}]
        await here.told(served=50.0)
        assert await finished(here) == ["Success"]
        assert here.totals.cur_perf == 50.0


async def test_nothing_is_told_where_no_route_is_given(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        await call(here, "/session/end", await create(here, on_close_payload={"a": 1}))
        await quiet(here)
        assert here.model.requests == []


async def test_only_the_model_server_is_told_whatever_the_path(tmp_path: Path) -> None:
    """Below its URL, where that has a path."""
    routes = ["/echo", "/@127.0.0.1:1/echo", "/\t//127.0.0.1:1/echo", "/http://127.0.0.1:1/echo", "/a b?c=d"]
    async with with_worker_task(tmp_path, Setup(health="/health", model_path="/base")) as here:
        opened: list[str] = []
        for route in routes:
            session = await create(here, on_close_route=route)
            opened.append(session[1])
            await call(here, "/session/end", session)
            await quiet(here)
        told = [r for r in here.model.requests if r.method == "POST"]
        assert [r.json() for r in told] == [{"session_id": session_id} for session_id in opened]
        assert all(r.path.startswith("/base/") for r in told)
        assert told[0].path == "/base/echo"


async def test_time_ends_it_on_the_systems_clock_too(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here:
        session = await create(here, lifetime=0.02, on_close_route="/echo")
        assert await closing(here) == {"session_id": session[1]}
        assert await finished(here) == ["Success"]
        assert await call(here, "/session/health", session) == (200, {"ok": False})


async def test_and_where_the_event_loop_is_an_authors(tmp_path: Path) -> None:
    """`Worker.run_async` serves on a loop that anyio has not made."""
    async with with_worker_task(tmp_path) as here:
        session = await create(here, lifetime=0.02, on_close_route="/echo")
        assert await finished(here) == ["Success"]
        await here.model.until(lambda: posted(here, "/echo") == [{"session_id": session[1]}], 2.0)


async def test_and_of_an_expiry(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, lifetime=10, on_close_route="/echo")
        clock.advance(10.0)
        assert await closing(here) == {"session_id": session[1]}
        assert await finished(here, stop=True) == ["Success"]


async def test_a_drain_cancels_sessions_and_tells_the_model_server(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here:
        session = await create(here, on_close_route="/echo")
        assert here.worker is not None
        here.worker.terminate()
        assert await here.worker.exit_status() == 0
        assert await closing(here) == {"session_id": session[1]}
        assert await finished(here) == ["Cancelled"]
        assert here.last_report.cur_load == 0.0


async def test_a_drain_lets_requests_inside_finish_and_releases_those_that_wait(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, Setup(health="/health", handler=ONE_AT_A_TIME)) as here:
        session = await create(here, on_close_route="/close")
        assert here.worker is not None
        async with connected(here.url) as first, connected(here.url) as second:
            await first.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            await second.post("/echo", inside(session))
            await waiting(here, 1)
            here.worker.terminate()
            head = await second.head()
            assert (head.status, "retry-after" in head.headers) == (503, True)
            here.model.release()
            assert (await first.head()).status == 200
        assert await here.worker.exit_status() == 0
        assert posted(here, "/close")[0] == {"session_id": session[1]}
        assert posted(here, "/echo") == []
        assert await finished(here) == ["Cancelled"]
        assert (here.last_report.cur_load, here.totals.cur_perf) == (0.0, 0.0)


async def test_stopping_at_once_lets_nothing_inside_finish(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        session = await create(here)
        assert here.stop is not None
        async with connected(here.url) as client:
            await client.post("/held", inside(session))
            await here.model.until(lambda: here.model.working == 1)
            here.stop.ask()
            here.stop.ask()
            await anyio.wait_all_tasks_blocked()
            here.model.release()
            assert await client.rest() == b""
    assert here.exit_status == EXIT_FAILED


async def test_a_drain_waits_for_a_silent_model_server_no_longer_than_that(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        session = await create(here, on_close_route="/held")
        assert here.stop is not None
        here.stop.ask()
        await here.model.until(lambda: here.model.working == 1)
        clock.advance(9.9)
        assert (await call(here, "/session/health", session))[1] == {"ok": False}
        assert here.model.cancelled == 0
        clock.advance(0.1)
        await here.model.until(lambda: here.model.cancelled == 1)
        assert await finished(here) == ["Cancelled"]
    assert here.exit_status == 0


async def test_a_model_server_that_is_dead_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path) as here:
        session = await create(here, on_close_route="/echo")
        await here.model.stop()
        assert (await call(here, "/session/end", session))[0] == 200
        await quiet(here)
        assert f"session {session[1][:6]}…: POST /echo at its end failed" in caplog.text
        await here.told(served=50.0)
        assert await finished(here) == ["Success"]
        assert "Traceback" not in caplog.text
        assert session[1] not in caplog.text


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
        assert here.running is not None
        gate = asyncio.Semaphore(50)

        async def live(number: int) -> None:
            async with gate:
                on_close_route = None if number % 10 else "/echo"
                session = await create(here, cost=float(number), lifetime=10, on_close_route=on_close_route)
                assert here.running is not None
                opened = here.running.sessions.find(session[1], session[0])
                assert opened is not None
                alive.add(opened)
                assert (await post(here, "/echo", inside(session)))[0] == 200

        timers, alive = clock.pending, weakref.WeakSet[Session]()
        await asyncio.gather(*(live(number) for number in range(1000)))
        assert len(here.running.sessions) == len(alive) == 1000
        assert here.backend.metrics.cur_load == sum(range(1000))
        clock.advance(10.0)
        assert len(here.running.sessions) == 0
        assert here.backend.metrics.cur_load == 0.0
        await quiet(here)
        told = [body for body in posted(here, "/echo") if "session_id" in body]
        assert len({body["session_id"] for body in told}) == len(told) == 100
        assert clock.pending <= timers + 1
        gc.collect()
        assert not alive
        assert await finished(here, 1000, stop=True) == ["Success"] * 1000
        assert len({f.request.request_idx for f in here.engine.finished}) == 1000
        await here.told(served=sum(range(1000)))
        assert (here.totals.new_load, here.totals.cur_perf) == (sum(range(1000)), sum(range(1000)))
