"""Who is let in, and what those who are not can bring about (protocol.md §2).

Lessons 2 to 6, and 8, 10, 13 and 14 as far as they are HTTP's.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from Crypto.PublicKey import RSA

from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.manual_clock import ManualClock
from tests.system import MASTER_TOKEN, System, engine_key, with_worker_process, with_worker_task

MIB = 1024 * 1024
# What a request of the largest size may cost: its body once, and a third of that for what reading takes.
LARGE_BODY_KIB = 80 * 1024
OTHER_KEYS = [RSA.generate(1024) for _ in range(3)]


async def post(system: System, body: object, path: str = "/echo", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with system.http.post(system.url + path, data=io.BytesIO(data), headers=headers) as answer:
        return answer.status, await answer.json()


async def status_of(system: System, body: object, path: str = "/echo", **headers: str) -> int:
    return (await post(system, body, path, **headers))[0]


async def counted(system: System) -> Any:
    """Every number of the ledger that a report could tell."""
    async with system.http.get(system.loopback_url + "/status") as answer:
        told = await answer.json()
    return told["requests"], told["load"], told["queue"]


def unsigned(workload: float = 1.0, **auth: Any) -> dict[str, Any]:
    raw = {"signature": "AAAA", "cost": workload, "endpoint": "e", "reqnum": 1, "url": "http://u", **auth}
    return {"auth_data": raw, "payload": {"workload": workload, "data": {}}}


# Lessons 2 and 3: what is refused changes nothing


async def test_what_is_refused_leaves_no_trace_in_the_reports(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as here:
        used = here.envelope(request_idx=77)
        assert await status_of(here, used) == 200
        await here.told(served=1.0)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 1)
        before = await counted(here)

        elsewhere = here.envelope(50.0, url="http://127.0.0.1:1", request_idx=78)
        bodies: list[object] = [used, elsewhere, unsigned(50.0, request_idx=79), {"auth_data": {}}, b"{"]
        for body in bodies:
            assert await status_of(here, body) in (401, 422)
        assert await status_of(here, here.envelope(3.0, request_idx=80)) == 200
        await here.told(served=4.0)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 2)

        assert [f.request.request_idx for f in here.engine.finished] == [77, 80]
        assert (here.totals.new_load, here.totals.rej_load, here.totals.cur_perf) == (4.0, 0.0, 4.0)
        assert here.last_report.num_requests_received == 2
        assert (before[0]["received"], (await counted(here))[0]["received"]) == (1, 2)
        assert len(here.model.requests) == 2


# Lesson 4: the management token


async def test_an_empty_management_token_lets_nobody_in(tmp_path: Path) -> None:
    update = tmp_path / "force_update"
    async with with_worker_task(tmp_path, force_update_file=update, master_token="") as here:
        for given in (None, "", "Bearer ", "Bearer", MASTER_TOKEN):
            headers = {} if given is None else {"Authorization": given}
            status, body = await post(here, b"", "/pyworker/update", **headers)
            assert (status, list(body)) == (401, ["error"])
    assert not update.exists()


@pytest.mark.parametrize("given", [MASTER_TOKEN, f"Bearer {MASTER_TOKEN}"])
async def test_the_management_token_asks_for_an_update(tmp_path: Path, given: str) -> None:
    update = tmp_path / "force_update"
    async with with_worker_task(tmp_path, force_update_file=update) as here:
        for wrong in ("", "Bearer wrong", MASTER_TOKEN[:-1], MASTER_TOKEN + "x", "Bearer \u00fc"):
            assert await status_of(here, b"", "/pyworker/update", Authorization=wrong) == 401
        assert not update.exists()
        assert await status_of(here, b"", "/pyworker/update", Authorization=given) == 200
    assert update.exists()


# Lessons 5 and 5a: bodies


async def test_a_large_unsigned_body_costs_no_more_than_itself(tmp_path: Path) -> None:
    nothings = b"[" + b"{}," * (20 * MIB) + b"{}]"
    auth = json.dumps(unsigned()["auth_data"]).encode()
    async with with_worker_process(tmp_path) as here:
        assert here.worker is not None
        before = here.worker.peak_memory_kib()
        last = b'{"payload": {"data": %b}, "auth_data": %b}' % (nothings, auth)
        status, body = await post(here, last)
        assert (status, "the first key" in body["auth_data"]) == (422, True)
        first = b'{"auth_data": %b, "payload": {"data": %b}}' % (auth, nothings)
        assert await status_of(here, first) == 401
        within = b'{"auth_data": {"x": %b}, "payload": {}}' % nothings
        assert await status_of(here, within) == 422
        assert here.worker.peak_memory_kib() - before < LARGE_BODY_KIB
        over = request_bytes("/echo", b"", {"Content-Length": str(65 * MIB)})
        async with connected(here.url) as client:
            await client.send(over)
            head, refusal = await client.answer()
        assert (head.status, str(64 * MIB).encode() in refusal) == (413, True)
        assert (await counted(here))[0]["received"] == 0


async def test_a_large_signed_body_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        assert await status_of(here, here.envelope(data={"image": "x" * (5 * MIB)})) == 200
        assert len(here.model.requests[0].json()["data"]["image"]) == 5 * MIB


@pytest.mark.parametrize("cost", ["NaN", "1e999", "-Infinity", '"inf"', "1" + "0" * 400])
async def test_no_infinite_cost_comes_in_whoever_signed_it(tmp_path: Path, cost: str) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as here:
        body = json.dumps(unsigned()).replace('"cost": 1.0', f'"cost": {cost}')
        status, answer = await post(here, body.encode())
        assert (status, answer) == (422, {"auth_data": {"cost": "must be finite"}})
        body = json.dumps({**unsigned(), "payload": {"workload": 2.0}}).replace("2.0", cost)
        if await status_of(here, body.encode()) == 200:  # the author's count is replaced
            await here.told(served=100.0)


# Lesson 6: nothing of the author's runs for those who are not let in


async def test_author_code_runs_only_once_the_signature_holds(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        before = dict(AUTHOR_CALLS)
        used = here.envelope()
        assert await status_of(here, used, "/raising") == 200
        assert {name for name, n in AUTHOR_CALLS.items() if n > before.get(name, 0)} == {
            "get_data_from_request",
            "from_json_msg",
            "count_workload",
        }
        before = dict(AUTHOR_CALLS)
        payload = {"workload": 1.0, "data": {"raise": "parser"}}
        for envelope in (
            {**used, "payload": payload},
            {**unsigned(), "payload": payload},
            {**here.envelope(url="http://127.0.0.1:1"), "payload": payload},
        ):
            for path in ("/raising", "/echo"):
                assert await status_of(here, envelope, path) == 401
        assert await status_of(here, {"auth_data": {}, "payload": payload}, "/raising") == 422
        assert before == AUTHOR_CALLS


# Signatures at the worker: the forms, the URL, replay


@pytest.mark.parametrize(
    ("accepted", "form", "status"),
    [
        ("auto", "full", 200),
        ("auto", "url", 200),
        ("full", "full", 200),
        ("full", "url", 401),
        ("url", "url", 200),
        ("url", "full", 401),
    ],
)
async def test_both_forms_as_the_setting_has_it(
    tmp_path: Path, accepted: str, form: Any, status: int
) -> None:
    async with with_worker_task(tmp_path, scheme=form, auth_scheme=accepted) as here:
        assert await status_of(here, here.envelope()) == status


async def test_the_values_count_as_they_were_sent(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for cost in (256, 256.0, "256"):
            auth = here.engine.sign(url=here.url + "/", cost=cost)  # type: ignore[arg-type]  # a client's text
            assert await status_of(here, {"auth_data": auth, "payload": {}}) == 200
            assert await status_of(here, {"auth_data": {**auth, "cost": 1}, "payload": {}}) == 401


async def test_a_full_message_is_accepted_once_and_not_when_it_is_old(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        newest = here.envelope(reqnum=1000)
        assert await status_of(here, newest) == 200
        assert await status_of(here, newest) == 401
        assert await status_of(here, here.envelope(reqnum=900)) == 200
        assert await status_of(here, here.envelope(reqnum=899)) == 401


async def test_the_url_form_never_moves_the_window(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        assert await status_of(here, here.envelope(reqnum=1000)) == 200
        for _ in range(2):
            assert await status_of(here, here.envelope(reqnum=10**12, scheme="url")) == 200
        assert await status_of(here, here.envelope(reqnum=1, scheme="url")) == 200
        assert await status_of(here, here.envelope(reqnum=901)) == 200


async def test_the_url_check_can_be_turned_off(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, auth_check_url=False) as here:
        assert await status_of(here, here.envelope(url="http://behind.a.proxy")) == 200
        assert await status_of(here, unsigned(url="http://behind.a.proxy")) == 401


async def test_unsecured_takes_any_signature_and_still_reads_the_envelope(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as here:
        assert here.engine.requests_seen["pubkey"] == 0
        for _ in range(2):
            assert await status_of(here, unsigned()) == 200
        assert await post(here, unsigned(reqnum="1")) == (
            422,
            {"auth_data": {"reqnum": "must be an integer"}},
        )
        assert await post(here, {"payload": {}}) == (422, {"auth_data": "field missing"})


# The key may be rotated


@asynccontextmanager
async def clocked(tmp_path: Path) -> AsyncGenerator[tuple[System, ManualClock], None]:
    """A system whose worker's clock stands still."""
    clock = ManualClock()
    setup = Setup(health="/health", backend={"clock": clock})
    async with with_worker_task(tmp_path, setup) as here:
        yield here, clock


async def test_a_rotated_key_is_fetched_at_most_once_a_minute(tmp_path: Path) -> None:
    async with clocked(tmp_path) as (here, clock):
        assert await status_of(here, here.envelope()) == 200
        assert here.engine.requests_seen["pubkey"] == 1

        await here.engine.rotate_key(OTHER_KEYS[0])
        answers = await asyncio.gather(*(status_of(here, here.envelope()) for _ in range(10)))
        assert (answers, here.engine.requests_seen["pubkey"]) == ([200] * 10, 2)

        await here.engine.rotate_key(OTHER_KEYS[1])
        clock.advance(59.0)
        for body in (here.envelope(), unsigned(), unsigned()):
            assert await status_of(here, body) == 401
        assert here.engine.requests_seen["pubkey"] == 2
        clock.advance(1.0)
        assert await status_of(here, here.envelope()) == 200
        assert here.engine.requests_seen["pubkey"] == 3

        await here.engine.rotate_key(engine_key())
        assert await status_of(here, here.envelope()) == 401


# Lessons 8, 10, 13, 14: what those who are let in count as


async def test_a_broken_model_is_no_success(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        assert await here.call("/error500", 5.0) == (500, b"<h1>CUDA out of memory</h1>")
        assert await here.call("/error422", 2.0) == (422, b'{"detail": "no such parameter"}')
        await here.told(served=2.0)
        await here.engine.wait_for(lambda: len(here.engine.finished) == 2)
        assert [(f.request.success, f.request.status) for f in here.engine.finished] == [
            (False, "Error"),
            (True, "Success"),
        ]
        assert here.totals.cur_perf == 2.0


async def test_ten_requests_of_one_reqnum_are_ten(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, scheme="url") as here:
        bodies = [here.envelope(2.0, reqnum=5) for _ in range(10)]
        calls = [asyncio.create_task(status_of(here, body, "/held")) for body in bodies]
        await here.model.until(lambda: here.model.working == 10)
        await here.engine.wait_for(lambda: here.last_report.num_requests_working == 10)
        assert here.last_report.cur_load == 20.0
        assert len(here.last_report.working_request_idxs) == 10
        here.model.release()
        assert await asyncio.gather(*calls) == [200] * 10
        await here.told(served=20.0)
        assert here.last_report.num_requests_received == 10


async def test_a_parser_that_raises_leaves_its_trace(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        envelope = here.envelope(9.0, {"raise": "parser"}, request_idx=13)
        assert await status_of(here, envelope, "/raising") == 500
        finished = await here.engine.wait_for(lambda: here.engine.finished)
        assert [(f.request.request_idx, f.request.status) for f in finished] == [(13, "Error")]
        assert (here.totals.new_load, here.totals.cur_perf, here.last_report.cur_load) == (0.0, 0.0, 0.0)


async def test_each_attempt_at_one_request_idx_is_told(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as here:
        for path, status in (("/error500", 500), ("/echo", 200), ("/echo", 200)):
            envelope = here.envelope(request_idx=14)
            async with here.http.post(here.url + path, json=envelope) as answer:
                assert answer.status == status
        await here.engine.wait_for(lambda: len(here.engine.finished) == 3)
        told = [(f.request.request_idx, f.request.status) for f in here.engine.finished]
        assert told == [(14, "Error"), (14, "Success"), (14, "Success")]


# Secrets stay out of the log and away from the model server


async def test_no_key_token_or_payload_is_logged_or_passed_on(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, env={"LOG_LEVEL": "DEBUG"}) as here:
        assert here.worker is not None
        envelope = here.envelope(data={"prompt": "secret-payload"})
        secrets = {
            "Authorization": "Bearer secret-bearer",
            "Cookie": "a=secret-cookie",
            "X-Vast-Auth-Other": "secret-header",
        }
        for path in ("/echo", "/raising", "/nowhere"):
            await status_of(here, {**here.envelope(), "auth_data": here.auth()}, path)
            body = json.dumps({**envelope, "auth_data": here.auth()}).encode()
            await post(here, body, f"{path}?api_key=secret-query&a=1", **secrets)
        await post(here, here.envelope(data={"raise": "parser"}), "/raising?api_key=secret-query", **secrets)
        await post(here, unsigned(signature="secret-signature"))
        output = here.worker.output()
        assert "secret" not in output
        assert here.auth()["signature"][:20] not in output
        assert MASTER_TOKEN not in output
        passed = [(r.path, r.headers) for r in here.model.requests]
        assert "secret" not in str(passed)
