"""Sessions over real sockets: answers to clients and reports to the engine (docs/protocol.md, "Sessions")."""

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

from lib.request.sessions import MAX_CLOSE_PAYLOAD_BYTES, Session
from lib.server import EXIT_FAILED
from tests.fakes.raw_client import connected
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.guard import GUARD_S
from tests.manual_clock import ManualClock
from tests.system import System, with_worker_process, with_worker_task

MIB = 2**20
CALLS = ("/session/get", "/session/health", "/session/end")
TOO_LONG = "must be more than 0 and at most 86400 seconds"
ONE_AT_A_TIME: dict[str, Any] = {"allow_parallel_requests": False}


async def post(system: System, path: str, body: Any, base: str = "") -> tuple[int, Any]:
    """POST `body`, which may contain NaN; return status and JSON of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with system.http.post((base or system.url) + path, data=io.BytesIO(data)) as answer:
        return answer.status, await answer.json()


async def create(system: System, cost: float = 50.0, **terms: Any) -> tuple[dict[str, Any], str]:
    """Create a session; return its `auth_data` and its id."""
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


async def session_info(system: System, session: tuple[dict[str, Any], str]) -> Any:
    """The answer of `/session/get` for a session that exists."""
    status, answer = await call(system, "/session/get", session)
    assert status == 200, answer
    return answer


@asynccontextmanager
async def with_manual_clock(
    tmp_path: Path, handler: dict[str, Any] | None = None, **backend: Any
) -> AsyncGenerator[tuple[System, ManualClock], None]:
    """A system whose worker has a manual clock."""
    clock = ManualClock()
    setup = Setup(health="/health", handler=handler or {}, backend={"clock": clock, **backend})
    async with with_worker_task(tmp_path, setup) as system:
        yield system, clock


async def wait_for_waiting(system: System, count: int) -> None:
    """Return once `count` requests wait for a slot, by the worker's `/status`."""
    status: Any = None
    with anyio.fail_after(GUARD_S):
        while status is None or status["queue"]["waiting"] != count:
            async with system.http.get(system.loopback_url + "/status") as answer:
                status = await answer.json()


async def wait_for_deliveries(system: System) -> None:
    """Return once no report is on its way: a manual clock that moves meanwhile would end its delivery."""
    delivered = -1
    with anyio.fail_after(GUARD_S):
        while delivered != system.totals.reports:
            async with system.http.get(system.loopback_url + "/status") as answer:
                reports = (await answer.json())["reports"]
            delivered = sum(r["path"] == "/worker_status/" and r["delivered"] for r in reports)


async def wait_until_idle(system: System) -> None:
    """Return once nothing is in flight, notices of ended sessions included."""
    assert system.backend is not None
    with anyio.fail_after(GUARD_S):
        await system.backend.metrics.emptied()


def bodies_posted(system: System, path: str) -> list[Any]:
    """The bodies that the model server got at `path`."""
    return [r.json() for r in system.model.requests if r.path == path]


async def finished_statuses(system: System, count: int = 1, *, stop: bool = False) -> list[str]:
    """Return the reported statuses once there are `count`.

    With a manual clock, `stop` the worker first: its last reports don't wait for time.
    """
    if stop:
        assert system.stop is not None
        system.stop.ask()
    await system.engine.wait_for(lambda: len(system.engine.finished) >= count)
    return [f.request.status for f in system.engine.finished]


# The table of calls


async def test_each_session_call_has_its_answer(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        auth = system.auth(50.0)
        terms = {"lifetime": 30, "on_close_route": "/echo", "on_close_payload": {"a": 1}}
        status, created = await post(system, "/session/create", {"auth_data": auth, "payload": terms})
        now = clock.wall()
        assert (status, created) == (201, {"session_id": created["session_id"], "expiration": now + 30})
        session = (auth, created["session_id"])
        assert await call(system, "/session/get", session) == (
            200,
            {"session_id": session[1], "auth_data": auth, "expiration": now + 30, "created_at": now, **terms},
        )
        assert await call(system, "/session/health", session) == (200, {"ok": True})
        assert await call(system, "/session/end", session) == (
            200,
            {"ended": True, "removed_session": session[1]},
        )
        assert await call(system, "/session/health", session) == (200, {"ok": False})
        for path in ("/session/get", "/session/end"):
            status, answer = await call(system, path, session)
            assert (status, list(answer)) == (410, ["error"])
            assert (await call(system, path, (auth, "unknown")))[0] == 410


async def test_null_terms_count_as_absent_and_the_default_lifetime_is_a_minute(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, _):
        session = await create(system, lifetime=None, on_close_route=None, on_close_payload=None)
        _, info = await call(system, "/session/get", session)
        assert (info["lifetime"], info["on_close_route"], info["on_close_payload"]) == (60.0, None, None)


# Terms as JSON text, and the message for each wrong one.
WRONG_TERMS: list[tuple[str, dict[str, str]]] = [
    *((f'{{"lifetime": {n}}}', {"lifetime": TOO_LONG}) for n in ("0", "-1", "-0.0", "86400.5", "1" * 400)),
    *((f'{{"lifetime": {n}}}', {"lifetime": TOO_LONG}) for n in ("NaN", "Infinity", "-Infinity", "1e999")),
    *((f'{{"lifetime": {n}}}', {"lifetime": "must be a number"}) for n in ('"60"', "true", "false", "[]")),
    *(
        (f'{{"on_close_route": {route}}}', {"on_close_route": "must be a path on the model server"})
        for route in ('"http://h/a"', '"//h/a"', '"/\\\\h/a"', '"a"', '""', "5", "false", '{"a": 1}')
    ),
    *(
        (f'{{"on_close_route": "{route}"}}', {"on_close_route": "must be a path on the model server"})
        for route in ("/../../x", "/a/../../x", "/%2e%2e/x", "/..")
    ),
    (
        json.dumps({"on_close_payload": {"x": "y" * MAX_CLOSE_PAYLOAD_BYTES}}),
        {"on_close_payload": f"must be at most {MAX_CLOSE_PAYLOAD_BYTES} bytes of JSON"},
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


async def test_a_wrong_term_is_named_and_opens_no_session(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 1})) as system:
        for terms, problems in WRONG_TERMS:
            body = f'{{"auth_data": {json.dumps(system.auth(50.0))}, "payload": {terms}}}'.encode()
            assert await post(system, "/session/create", body) == (422, {"payload": problems}), terms
        assert await finished_statuses(system, len(WRONG_TERMS)) == ["Error"] * len(WRONG_TERMS)
        session = await create(system)
        await call(system, "/session/end", session)
        await system.reported(served=50.0)
        assert (system.totals.new_load, system.totals.rej_load) == (50.0, 0.0)
        assert system.last_report.num_requests_received == 1


async def test_an_invalid_envelope_is_refused(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        missing = {"auth_data": "field missing", "payload": "field missing"}
        assert await post(system, "/session/create", {}) == (422, missing)
        wrong = {"auth_data": "must be an object", "payload": "must be an object"}
        assert await post(system, "/session/create", {"auth_data": 5, "payload": None}) == (422, wrong)
        status, answer = await post(system, "/session/create", {"auth_data": {"cost": -1}, "payload": {}})
        names = {"signature", "cost", "endpoint", "reqnum", "url"}
        assert (status, set(answer["auth_data"])) == (422, names)
        for body in (b"", b"[]", b"{", b"\xff"):
            assert (await post(system, "/session/create", body))[0] == 422
        for path in ("/session/create", *CALLS):
            async with system.http.get(system.url + path) as answer:
                assert answer.status == 405


async def test_a_wrong_session_reference_is_named(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
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
                assert await post(system, path, body) == (422, problems), body
            for malformed in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
                status, answer = await post(system, path, malformed)
                assert (status, list(answer)) == (422, ["body"])
            status, answer = await post(system, path, b'{"a": "%s"}' % (b"x" * MIB))
            assert (status, list(answer)) == (413, ["error"])
        session = await create(system)
        status, answer = await post(system, "/echo", {**inside(session), "session_id": 5})
        assert (status, answer) == (422, {"session_id": "must be a string or null"})


async def test_a_session_is_only_found_with_its_own_auth_data(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        auth, session_id = session = await create(system, lifetime=10)
        stranger = (system.auth(), session_id)
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
                status, answer = await call(system, path, (other, session_id))
                assert (status, list(answer)) == (401, ["error"])
        clock.advance(9.0)
        assert (await post(system, "/echo", inside(stranger)))[0] == 401
        as_written_elsewhere = {**dict(reversed(list(auth.items()))), "cost": int(auth["cost"])}
        assert (await call(system, "/session/get", (as_written_elsewhere, session_id)))[0] == 200
        clock.advance(1.0)  # the refused request did not extend the session
        assert (await call(system, "/session/get", session))[0] == 410
        assert system.model.requests == []


async def test_a_large_request_is_only_in_a_session_with_its_own_auth_data(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        _, session_id = session = await create(system)
        stranger = (system.auth(), session_id)
        assert (await post(system, "/echo", inside(stranger, a="x" * 2 * MIB)))[0] == 401
        forged = ({**session[0], "signature": "AAAA"}, session_id)
        assert (await post(system, "/echo", inside(forged, a="x" * 2 * MIB)))[0] == 401
        assert system.model.requests == []


async def test_an_expired_session_is_gone_for_every_call(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, lifetime=10)
        clock.advance(10.0)
        gone = "the session is unknown, has ended or has expired"
        for path in ("/session/get", "/session/end"):
            assert await call(system, path, session) == (410, {"error": gone})
        assert await call(system, "/session/health", session) == (200, {"ok": False})
        assert await post(system, "/echo", inside(session)) == (410, {"error": gone})
        # An ended session has no auth_data to compare with.
        assert await call(system, "/session/health", (system.auth(), session[1])) == (200, {"ok": False})
        assert system.model.requests == []


async def test_a_deeply_nested_body_is_not_an_internal_error(tmp_path: Path) -> None:
    """The comparison accepts any nesting that the parser accepts, also from unauthenticated clients."""
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 2})) as system:
        auth, session_id = session = await create(system)
        for depth in (500, 900, 950, 985, 2000, 20_000):
            deep = "[" * depth + "]" * depth

            def with_deep(fields: dict[str, Any], deep: str = deep) -> str:
                return json.dumps(fields)[:-1] + f', "deep": {deep}}}'

            forged = with_deep({**system.auth(), "signature": "AAAA"})
            status, _ = await post(system, "/echo", f'{{"auth_data": {forged}, "payload": {{}}}}'.encode())
            assert status in (401, 422)
            body = f'{{"session_id": "{session_id}", "session_auth": {with_deep(auth)}}}'.encode()
            for path in CALLS:
                assert (await post(system, path, body))[0] in (401, 422)
        too_deep = with_deep(system.auth())
        status, _ = await post(
            system, "/session/create", f'{{"auth_data": {too_deep}, "payload": {{}}}}'.encode()
        )
        assert status == 422
        await create(system)  # it took no slot
        assert (await call(system, "/session/get", session))[0] == 200


async def test_sessions_are_limited_by_max_sessions(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path, max_sessions=2) as (system, clock):
        first = await create(system, lifetime=5)
        await create(system, lifetime=100)
        clock.advance(1.5)
        async with system.http.post(
            system.url + "/session/create", json={"auth_data": system.auth(5.0), "payload": {}}
        ) as refused:
            assert (refused.status, refused.headers["Retry-After"]) == (429, "4")
            assert list(await refused.json()) == ["error"]
        assert (await call(system, "/session/end", first))[0] == 200
        second = await create(system, lifetime=2)
        clock.advance(2.0)
        assert (await call(system, "/session/get", second))[0] == 410
        await create(system)
        assert Counter(await finished_statuses(system, 5, stop=True)) == {
            "Success": 2,
            "Rejected": 1,
            "Cancelled": 2,
        }
        await system.engine.wait_for(lambda: system.totals.rej_load == 5.0)


async def test_sessions_are_limited_when_many_are_created_concurrently(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 3})) as system:
        bodies = [{"auth_data": system.auth(2.0), "payload": {}} for _ in range(12)]
        answers = await asyncio.gather(*(post(system, "/session/create", body) for body in bodies))
        assert Counter(status for status, _ in answers) == {201: 3, 429: 9}
        await system.engine.wait_for(lambda: (system.totals.new_load, system.totals.rej_load) == (6.0, 18.0))
        assert await finished_statuses(system, 9) == ["Rejected"] * 9


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("limit", "most"), [({}, 10), ({"max_sessions": None}, 25), ({"max_sessions": 0}, 25)]
)
async def test_the_default_limit_is_ten_and_none_means_no_limit(
    tmp_path: Path, declared: bool, limit: dict[str, Any], most: int
) -> None:
    async with with_worker_task(
        tmp_path, Setup(declared=declared, health="/health", backend=limit)
    ) as system:
        answers = [
            await post(system, "/session/create", {"auth_data": system.auth(), "payload": {}})
            for _ in range(25)
        ]
        assert [status for status, _ in answers] == [201] * most + [429] * (25 - most)


async def test_no_session_is_opened_before_the_model_is_ready(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/held"), wait=False) as system:
        await system.model.until(lambda: bool(system.model.requests))
        async with system.http.post(
            system.url + "/session/create", json={"auth_data": system.auth(5.0), "payload": {}}
        ) as refused:
            assert (refused.status, (await refused.json())["state"]) == (503, "loading")
            assert int(refused.headers["Retry-After"]) >= 1
        assert await finished_statuses(system) == ["Rejected"]
        system.model.release()
        await system.engine.wait_for(lambda: system.totals.rej_load == 5.0)
        assert system.totals.new_load == 0.0


# Counting


async def test_a_session_is_one_request_to_the_engine(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        for path in ("/echo", "/error500", "/error422", "/close"):
            async with system.http.post(system.url + path, json=inside(session)) as answer:
                assert answer.status in (200, 422, 500, 502)
        await system.engine.wait_for(lambda: system.last_report.cur_load == 50.0)
        assert system.last_report.num_requests_working == 1
        assert system.last_report.working_request_idxs == (session[0]["request_idx"],)
        assert not system.engine.finished
        assert (await call(system, "/session/end", session))[0] == 200
        await system.reported(served=50.0)
        assert (system.totals.new_load, system.totals.cur_perf, system.totals.rej_load) == (50.0, 50.0, 0.0)
        assert system.last_report.num_requests_received == 1
        assert await finished_statuses(system) == ["Success"]
        entry = system.engine.finished[0].request
        assert (entry.request_idx, entry.success) == (session[0]["request_idx"], True)


async def test_a_sessions_ledger_entry_has_its_start_and_end(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session, began = await create(system), clock.wall()
        clock.advance(5.0)
        assert (await post(system, "/echo", inside(session)))[0] == 200
        clock.advance(3.0)
        await call(system, "/session/end", session)
        await finished_statuses(system, stop=True)
        entry = system.engine.finished[0].request
        assert (entry.entered_queue_at, entry.work_started_at) == (began, began)
        assert entry.work_completed_at == began + 8.0


async def test_two_sessions_and_a_request_count_as_three_requests(tmp_path: Path) -> None:
    """Requests outside sessions are counted as usual."""
    async with with_worker_task(tmp_path) as system:
        first, second = await create(system, cost=10.0), await create(system, cost=20.5)
        beside = system.envelope(3.0)
        async with (
            connected(system.url) as client,
            connected(system.url) as inner,
            connected(system.url) as other,
        ):
            await client.post("/held", {**beside, "session_id": None})
            await inner.post("/held", inside(first, workload=100.0))
            await other.post("/held", inside(second, workload=100.0))
            await system.model.until(lambda: system.model.working == 3)
            await system.engine.wait_for(lambda: system.last_report.cur_load == 33.5)
            assert system.last_report.num_requests_working == 3
            idxs = {auth["request_idx"] for auth in (first[0], second[0], beside["auth_data"])}
            assert set(system.last_report.working_request_idxs) == idxs
            system.model.release()
            assert {(await c.head()).status for c in (client, inner, other)} == {200}
        await system.engine.wait_for(lambda: system.totals.cur_perf == 3.0)
        await call(system, "/session/end", first)
        await call(system, "/session/end", second)
        await system.reported(served=33.5)
        assert (system.totals.new_load, system.totals.cur_perf) == (33.5, 33.5)
        assert system.last_report.num_requests_received == 3
        assert await finished_statuses(system, 3) == ["Success"] * 3
        assert {f.request.request_idx for f in system.engine.finished} == idxs


async def test_a_session_without_a_request_idx_is_not_reported_as_finished(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        auth = {**system.auth(4.0), "request_idx": 0}
        _, created = await post(system, "/session/create", {"auth_data": auth, "payload": {}})
        await system.engine.wait_for(lambda: system.last_report.cur_load == 4.0)
        assert system.last_report.working_request_idxs == ()
        assert (await call(system, "/session/end", (auth, created["session_id"])))[0] == 200
        await system.reported(served=4.0)
        await call(system, "/session/end", await create(system, cost=1.0))
        assert await finished_statuses(system) == ["Success"]
        assert system.engine.finished[0].request.request_idx != 0


async def test_a_model_failure_inside_leaves_the_session_served(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        for path, expected in (("/error500", 500), ("/close", 502), ("/raising", 500)):
            async with system.http.post(
                system.url + path, json=inside(session, 7.0, **{"raise": "response"})
            ) as answer:
                assert answer.status == expected
        async with connected(system.url) as client:
            await client.post("/cut_stream", inside(session))
            with pytest.raises(ConnectionError):
                await client.answer()
        await call(system, "/session/end", session)
        await system.reported(served=50.0)
        assert await finished_statuses(system) == ["Success"]
        assert (system.last_report.error_msg, system.totals.cur_perf) == ("", 50.0)


async def test_a_request_in_an_unknown_session_counts_as_errored(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        await call(system, "/session/end", session)
        await system.reported(served=50.0)
        status, _ = await post(system, "/echo", inside(session))
        assert status == 410
        assert (await post(system, "/echo", inside((system.auth(), "unknown"))))[0] == 410
        forged = {**system.auth(), "signature": "AAAA"}
        assert (await post(system, "/echo", inside((forged, "unknown"))))[0] == 401
        assert system.backend is not None
        outcomes = {outcome.name: count for outcome, count in system.backend.metrics.outcomes.items()}
        assert outcomes == {"SERVED": 1, "ERRORED": 2}
        assert system.model.requests == []


async def test_creating_one_needs_a_signature(tmp_path: Path) -> None:
    """Without one there is no slot, no load and no POST to a URL of the caller's choice."""
    async with with_worker_task(tmp_path, Setup(health="/health", backend={"max_sessions": 1})) as system:
        AUTHOR_CALLS.clear()
        terms = {"on_close_route": "/interrupt", "lifetime": 0.001}
        good = system.auth(10.0)
        elsewhere = system.engine.sign(url="http://127.0.0.1:1", cost=10.0)
        for bad in (
            *(
                {**good, "signature": signature}
                for signature in ("AAAA", "", "not base64", elsewhere["signature"])
            ),
            *({**good, "cost": 1e9}, {**good, "url": "http://x"}, elsewhere),
        ):
            for payload in (terms, {**terms, "lifetime": 0}, {**terms, "on_close_route": "http://h/"}):
                status, _ = await post(system, "/session/create", {"auth_data": bad, "payload": payload})
                assert status == 401
        assert (await post(system, "/session/create", {"auth_data": good, "payload": {}}))[0] == 201
        status, answer = await post(system, "/session/create", {"auth_data": good, "payload": {}})
        assert (status, "replay" in answer["error"]) == (401, True)
        await system.engine.wait_for(lambda: system.last_report.cur_load == 10.0)
        assert (system.totals.new_load, system.totals.rej_load) == (10.0, 0.0)
        assert system.last_report.num_requests_received == 1
        assert system.model.requests == []
        assert not AUTHOR_CALLS
        assert not system.engine.finished


async def test_one_auth_data_opens_one_session(tmp_path: Path) -> None:
    """Creation is authenticated like any request, so its `auth_data` is accepted once."""
    async with with_worker_task(tmp_path) as system:
        auth, session_id = session = await create(system)
        for inner in (session_id, "unknown"):
            body: dict[str, Any] = {"auth_data": auth, "payload": {}, "session_id": inner}
            assert (await post(system, "/session/create", body))[0] in (401, 410, 422)
        await call(system, "/session/end", session)
        body = {"auth_data": auth, "payload": {}, "session_id": session_id}
        assert (await post(system, "/session/create", body))[0] in (401, 410, 422)
        await system.reported(served=50.0)
        assert system.totals.new_load == 50.0


# Requests inside


@pytest.mark.parametrize("scheme", ["full", "url"])
async def test_a_session_takes_requests_of_any_size(tmp_path: Path, scheme: str) -> None:
    async with with_worker_task(tmp_path, scheme=scheme) as system:
        session = await create(system)
        for size in (1, 3 * MIB, 1, 3 * MIB):
            status, seen = await post(system, "/echo", inside(session, a="x" * size))
            assert (status, len(json.loads(seen["body"])["data"]["a"])) == (200, size)
        at_once = await asyncio.gather(*(post(system, "/echo", inside(session, number=n)) for n in range(20)))
        assert [json.loads(seen["body"])["data"]["number"] for _, seen in at_once] == list(range(20))
        await call(system, "/session/end", session)
        await system.reported(served=50.0)
        assert system.totals.new_load == 50.0
        for size in (1, 2 * MIB):
            assert (await post(system, "/echo", inside(session, a="x" * size)))[0] == 410


async def test_a_sessions_auth_data_is_not_accepted_outside_the_session(tmp_path: Path) -> None:
    """The replay guard does not apply inside, and only there."""
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        for size in (1, 2 * MIB):
            assert (await post(system, "/echo", inside(session, a="x" * size)))[0] == 200
            named = inside(session, a="x" * size)
            unnamed = {key: value for key, value in named.items() if key != "session_id"}
            for beside in ({**named, "session_id": None}, unnamed):
                status, answer = await post(system, "/echo", beside)
                assert (status, "replay" in answer["error"]) == (401, True)


async def test_an_unsecured_worker_has_sessions(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as system:
        auth = {**system.auth(5.0), "signature": ""}
        _, created = await post(system, "/session/create", {"auth_data": auth, "payload": {}})
        session = (auth, created["session_id"])
        for size in (1, 2 * MIB):
            assert (await post(system, "/echo", inside(session, a="x" * size)))[0] == 200
        stranger = (system.auth(), session[1])
        assert (await post(system, "/echo", inside(stranger)))[0] == 401
        assert (await call(system, "/session/end", stranger))[0] == 401
        assert (await call(system, "/session/end", session))[0] == 200
        await system.reported(served=5.0)
        assert (system.totals.new_load, system.totals.cur_perf) == (5.0, 5.0)


async def test_each_authenticated_request_extends_the_session(tmp_path: Path) -> None:
    """It lasts its lifetime from then on, whatever the request's outcome. `/session/get` doesn't do so."""
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, lifetime=10)
        opened = clock.wall()
        for path, expected in (("/echo", 200), ("/error500", 500), ("/close", 502)):
            clock.advance(9.0)
            async with system.http.post(system.url + path, json=inside(session)) as answer:
                assert answer.status == expected
            assert (await session_info(system, session))["expiration"] == clock.wall() + 10.0
        clock.advance(9.0)
        unreadable = {**inside(session), "payload": {"workload": "much"}}
        assert (await post(system, "/echo", unreadable))[0] == 422
        info = await session_info(system, session)
        assert (info["expiration"], info["created_at"]) == (clock.wall() + 10.0, opened)
        clock.advance(9.0)
        assert await call(system, "/session/health", session) == (200, {"ok": True})
        assert (await session_info(system, session))["expiration"] == clock.wall() + 1.0
        clock.advance(0.5)
        assert (await call(system, "/session/health", session))[1] == {"ok": True}
        clock.advance(0.5)
        assert (await call(system, "/session/health", session))[1] == {"ok": False}


async def test_requests_of_a_session_wait_in_the_queue(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, Setup(health="/health", handler=ONE_AT_A_TIME)) as system:
        session = await create(system)
        async with (
            connected(system.url) as first,
            connected(system.url) as second,
            connected(system.url) as third,
        ):
            await first.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            await second.post("/echo", system.envelope(3.0))
            await wait_for_waiting(system, 1)
            await third.post("/echo", inside(session))
            await wait_for_waiting(system, 2)
            assert [r.path for r in system.model.requests] == ["/held"]
            assert system.last_report.num_requests_working <= 2
            system.model.release()
            assert [(await c.head()).status for c in (first, second, third)] == [200, 200, 200]
        assert system.model.most_working == 1
        assert [r.path for r in system.model.requests] == ["/held", "/echo", "/echo"]
        assert [r.json()["workload"] for r in system.model.requests] == [7.0, 3.0, 7.0]


async def test_a_request_inside_a_session_that_would_wait_too_long_is_refused(tmp_path: Path) -> None:
    limits = {**ONE_AT_A_TIME, "max_queue_time": 30.0}
    async with with_manual_clock(tmp_path, limits, max_perf=1000.0) as (system, clock):
        session = await create(system, lifetime=1000)
        async with connected(system.url) as first, connected(system.url) as second:
            await first.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            await second.post("/echo", inside(session))
            await wait_for_waiting(system, 1)
            await wait_for_deliveries(system)
            clock.advance(30.0)
            head = await second.head()
            assert (head.status, int(head.headers["retry-after"]) >= 1) == (429, True)
            system.model.release()
            assert (await first.head()).status == 200
        await call(system, "/session/end", session)
        assert await finished_statuses(system, stop=True) == ["Success"]
        await system.reported(served=50.0)
        assert (system.totals.new_load, system.totals.rej_load, system.totals.cur_perf) == (50.0, 0.0, 50.0)


async def test_a_sessions_own_cost_does_not_delay_its_requests(tmp_path: Path) -> None:
    """The session is in flight as long as it lives, but no request inside waits for it."""
    setup = Setup(health="/health", handler={"max_queue_time": 5.0}, backend={"max_perf": 10.0})
    async with with_worker_task(tmp_path, setup) as system:
        session = await create(system, cost=100.0)
        assert (await post(system, "/echo", inside(session)))[0] == 200


async def test_expiry_waits_for_a_request_in_flight(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock), connected(system.url) as client:
        session = await create(system, lifetime=10)
        await client.post("/held", inside(session))
        await system.model.until(lambda: system.model.working == 1)
        clock.advance(1000.0)
        system.model.release()
        head, body = await client.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        assert (await call(system, "/session/get", session))[0] == 410
        assert await finished_statuses(system, stop=True) == ["Success"]


async def test_expiry_waits_for_a_request_in_the_queue(tmp_path: Path) -> None:
    """Time in the queue counts as time in flight."""
    async with with_manual_clock(tmp_path, ONE_AT_A_TIME) as (system, clock):
        session = await create(system, lifetime=10, on_close_route="/close")
        async with connected(system.url) as first, connected(system.url) as second:
            await first.post("/held", system.envelope(3.0))
            await system.model.until(lambda: system.model.working == 1)
            await second.post("/echo", inside(session))
            await wait_for_waiting(system, 1)
            clock.advance(1000.0)
            assert await call(system, "/session/health", session) == (200, {"ok": True})
            assert not bodies_posted(system, "/close")
            system.model.release()
            assert [(await first.head()).status, (await second.head()).status] == [200, 200]
        await system.model.until(lambda: bodies_posted(system, "/close") == [{"session_id": session[1]}])
        assert await call(system, "/session/health", session) == (200, {"ok": False})


async def test_expiry_waits_for_a_request_that_finishes_without_its_client(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, lifetime=10, on_close_route="/echo")
        async with connected(system.url) as client:
            await client.post("/finish/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
        clock.advance(1000.0)
        assert await call(system, "/session/health", session) == (200, {"ok": True})
        assert not bodies_posted(system, "/echo")
        system.model.release()
        assert await wait_for_end_notice(system) == {"session_id": session[1]}
        assert await call(system, "/session/health", session) == (200, {"ok": False})
        assert system.model.cancelled == 0
        assert await finished_statuses(system, stop=True) == ["Success"]


async def test_a_client_that_leaves_lets_the_session_expire(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, lifetime=10, on_close_route="/echo")
        async with connected(system.url) as client:
            await client.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            clock.advance(1000.0)
            client.leave()
        assert await wait_for_end_notice(system) == {"session_id": session[1]}
        assert system.model.cancelled == 1
        assert await finished_statuses(system, stop=True) == ["Success"]


async def test_ending_a_session_does_not_cut_requests_in_flight(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        session = await create(system, on_close_route="/echo")
        await client.post("/held", inside(session))
        await system.model.until(lambda: system.model.working == 1)
        assert (await call(system, "/session/end", session))[0] == 200
        assert await call(system, "/session/health", session) == (200, {"ok": False})
        await system.reported(served=50.0)
        system.model.release()
        head, body = await client.answer()
        assert (head.status, body) == (200, b'{"done": true}')
        await wait_until_idle(system)
        assert bodies_posted(system, "/echo") == [{"session_id": session[1]}]
        assert await finished_statuses(system) == ["Success"]
        assert (system.totals.new_load, system.totals.cur_perf) == (50.0, 50.0)


async def test_a_client_that_leaves_inside_a_session_cancels_only_its_request(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        async with connected(system.url) as client:
            await client.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
            await system.model.until(lambda: system.model.cancelled == 1)
        async with connected(system.url) as client:
            await client.post("/finish/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            client.leave()
        system.model.release()
        assert await call(system, "/session/health", session) == (200, {"ok": True})
        await call(system, "/session/end", session)
        await system.reported(served=50.0)
        assert system.model.cancelled == 1


# The end of a session


async def wait_for_end_notice(system: System) -> Any:
    """Return the notice of a session's end that the model server got."""
    await system.model.until(lambda: any(r.path == "/echo" for r in system.model.requests))
    return next(r.json() for r in system.model.requests if r.path == "/echo")


@pytest.mark.parametrize("port", ["public", "loopback"])
async def test_the_model_server_is_notified_of_the_end(tmp_path: Path, port: str) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system, on_close_route="/echo", on_close_payload={"job": 5})
        base = system.loopback_url if port == "loopback" else system.url
        assert (await call(system, "/session/end", session, base=base))[0] == 200
        assert await wait_for_end_notice(system) == {"job": 5, "session_id": session[1]}


async def test_two_concurrent_calls_end_a_session_once(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system, on_close_route="/echo", on_close_payload={"session_id": "forged"})
        bases = (system.url, system.loopback_url) * 5
        answers = await asyncio.gather(*(call(system, "/session/end", session, base=base) for base in bases))
        assert Counter(status for status, _ in answers) == {200: 1, 410: 9}
        await wait_until_idle(system)
        assert bodies_posted(system, "/echo") == [{"session_id": session[1]}]
        await system.reported(served=50.0)
        assert await finished_statuses(system) == ["Success"]
        assert system.totals.cur_perf == 50.0


async def test_without_an_on_close_route_there_is_no_notice(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await call(system, "/session/end", await create(system, on_close_payload={"a": 1}))
        await wait_until_idle(system)
        assert system.model.requests == []


async def test_the_end_notice_goes_to_the_model_server_whatever_the_path(tmp_path: Path) -> None:
    """If the model server's URL has a path, the notice goes below it."""
    routes = ["/echo", "/@127.0.0.1:1/echo", "/\t//127.0.0.1:1/echo", "/http://127.0.0.1:1/echo", "/a b?c=d"]
    async with with_worker_task(tmp_path, Setup(health="/health", model_path="/base")) as system:
        opened: list[str] = []
        for route in routes:
            session = await create(system, on_close_route=route)
            opened.append(session[1])
            await call(system, "/session/end", session)
            await wait_until_idle(system)
        posts = [r for r in system.model.requests if r.method == "POST"]
        assert [r.json() for r in posts] == [{"session_id": session_id} for session_id in opened]
        assert all(r.path.startswith("/base/") for r in posts)
        assert posts[0].path == "/base/echo"


async def test_a_session_expires_on_the_systems_clock(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        session = await create(system, lifetime=0.02, on_close_route="/echo")
        assert await wait_for_end_notice(system) == {"session_id": session[1]}
        assert await finished_statuses(system) == ["Success"]
        assert await call(system, "/session/health", session) == (200, {"ok": False})


async def test_a_session_expires_on_an_authors_event_loop(tmp_path: Path) -> None:
    """`Worker.run_async` serves on an event loop that anyio did not create."""
    async with with_worker_task(tmp_path) as system:
        session = await create(system, lifetime=0.02, on_close_route="/echo")
        assert await finished_statuses(system) == ["Success"]
        await system.model.until(lambda: bodies_posted(system, "/echo") == [{"session_id": session[1]}], 2.0)


async def test_the_model_server_is_notified_of_an_expiry(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, lifetime=10, on_close_route="/echo")
        clock.advance(10.0)
        assert await wait_for_end_notice(system) == {"session_id": session[1]}
        assert await finished_statuses(system, stop=True) == ["Success"]


async def test_a_drain_cancels_sessions_and_notifies_the_model_server(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        session = await create(system, on_close_route="/echo")
        assert system.worker is not None
        system.worker.terminate()
        assert await system.worker.exit_status() == 0
        assert await wait_for_end_notice(system) == {"session_id": session[1]}
        assert await finished_statuses(system) == ["Cancelled"]
        assert system.last_report.cur_load == 0.0


async def test_a_drain_lets_running_requests_finish_and_refuses_waiting_ones(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, Setup(health="/health", handler=ONE_AT_A_TIME)) as system:
        session = await create(system, on_close_route="/close")
        assert system.worker is not None
        async with connected(system.url) as first, connected(system.url) as second:
            await first.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            await second.post("/echo", inside(session))
            await wait_for_waiting(system, 1)
            system.worker.terminate()
            head = await second.head()
            assert (head.status, "retry-after" in head.headers) == (503, True)
            system.model.release()
            assert (await first.head()).status == 200
        assert await system.worker.exit_status() == 0
        assert bodies_posted(system, "/close")[0] == {"session_id": session[1]}
        assert bodies_posted(system, "/echo") == []
        assert await finished_statuses(system) == ["Cancelled"]
        assert (system.last_report.cur_load, system.totals.cur_perf) == (0.0, 0.0)


async def test_an_immediate_stop_cuts_requests_inside_sessions(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system)
        assert system.stop is not None
        async with connected(system.url) as client:
            await client.post("/held", inside(session))
            await system.model.until(lambda: system.model.working == 1)
            system.stop.ask()
            system.stop.ask()
            await anyio.wait_all_tasks_blocked()
            system.model.release()
            assert await client.rest() == b""
    assert system.exit_status == EXIT_FAILED


async def test_a_drain_waits_for_a_silent_model_server_only_until_its_limit(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, on_close_route="/held")
        assert system.stop is not None
        system.stop.ask()
        await system.model.until(lambda: system.model.working == 1)
        clock.advance(9.9)
        assert (await call(system, "/session/health", session))[1] == {"ok": False}
        assert system.model.cancelled == 0
        clock.advance(0.1)
        await system.model.until(lambda: system.model.cancelled == 1)
        assert await finished_statuses(system) == ["Cancelled"]
    assert system.exit_status == 0


async def test_a_dead_model_server_does_not_prevent_a_sessions_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path) as system:
        session = await create(system, on_close_route="/echo")
        await system.model.stop()
        assert (await call(system, "/session/end", session))[0] == 200
        await wait_until_idle(system)
        assert f"session {session[1][:6]}…: POST /echo at its end failed" in caplog.text
        await system.reported(served=50.0)
        assert await finished_statuses(system) == ["Success"]
        assert "Traceback" not in caplog.text
        assert session[1] not in caplog.text


@pytest.mark.parametrize("route", ["/error500", "/close", "/missing", "/held"])
async def test_a_model_server_that_refuses_the_notice_does_not_prevent_a_sessions_end(
    tmp_path: Path, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        session = await create(system, on_close_route=route)
        assert (await call(system, "/session/end", session))[0] == 200
        await system.model.until(lambda: any(r.path == route for r in system.model.requests))
        if route == "/held":
            await clock.wait_for_timer(10.0)
            clock.advance(10.0)
            await system.model.until(lambda: system.model.cancelled == 1)
        assert (await post(system, "/echo", system.envelope()))[0] == 200
        assert "Traceback" not in caplog.text


# Memory


async def test_a_thousand_sessions_leave_nothing_behind(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path, max_sessions=None) as (system, clock):
        assert system.backend is not None
        assert system.running is not None
        gate = asyncio.Semaphore(50)

        async def live(number: int) -> None:
            async with gate:
                on_close_route = None if number % 10 else "/echo"
                session = await create(system, cost=float(number), lifetime=10, on_close_route=on_close_route)
                assert system.running is not None
                opened = system.running.sessions.find(session[1], session[0])
                assert opened is not None
                alive.add(opened)
                assert (await post(system, "/echo", inside(session)))[0] == 200

        timers, alive = clock.pending, weakref.WeakSet[Session]()
        await asyncio.gather(*(live(number) for number in range(1000)))
        assert len(system.running.sessions) == len(alive) == 1000
        assert system.backend.metrics.cur_load == sum(range(1000))
        clock.advance(10.0)
        assert len(system.running.sessions) == 0
        assert system.backend.metrics.cur_load == 0.0
        await wait_until_idle(system)
        notices = [body for body in bodies_posted(system, "/echo") if "session_id" in body]
        assert len({body["session_id"] for body in notices}) == len(notices) == 100
        assert clock.pending <= timers + 1
        gc.collect()
        assert not alive
        assert await finished_statuses(system, 1000, stop=True) == ["Success"] * 1000
        assert len({f.request.request_idx for f in system.engine.finished}) == 1000
        await system.reported(served=sum(range(1000)))
        assert (system.totals.new_load, system.totals.cur_perf) == (sum(range(1000)), sum(range(1000)))
