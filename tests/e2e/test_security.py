"""Authentication, and the effects of requests that fail it (docs/protocol.md, "Signature")."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.raw_client import connected, request_bytes
from tests.fakes.worker import AUTHOR_CALLS, Setup
from tests.keys import new_key
from tests.manual_clock import ManualClock
from tests.system import MASTER_TOKEN, System, engine_key, with_worker_process, with_worker_task

MIB = 1024 * 1024
# The memory that a request of the largest size may take: its body once, and a third of that for reading it.
LARGE_BODY_KIB = 80 * 1024
OTHER_KEYS = [new_key() for _ in range(3)]


async def post(system: System, body: object, path: str = "/echo", **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with system.http.post(system.url + path, data=io.BytesIO(data), headers=headers) as answer:
        return answer.status, await answer.json()


async def status_of(system: System, body: object, path: str = "/echo", **headers: str) -> int:
    return (await post(system, body, path, **headers))[0]


async def ledger_numbers(system: System) -> Any:
    """Every number of the ledger that a report could contain."""
    async with system.http.get(system.loopback_url + "/status") as answer:
        status = await answer.json()
    return status["requests"], status["load"], status["queue"]


def unsigned(workload: float = 1.0, **auth: Any) -> dict[str, Any]:
    raw = {"signature": "AAAA", "cost": workload, "endpoint": "e", "reqnum": 1, "url": "http://u", **auth}
    return {"auth_data": raw, "payload": {"workload": workload, "data": {}}}


# Refused requests change nothing


async def test_refused_requests_do_not_change_the_reports(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        used = system.envelope(request_idx=77)
        assert await status_of(system, used) == 200
        await system.reported(served=1.0)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 1)
        before = await ledger_numbers(system)

        elsewhere = system.envelope(50.0, url="http://127.0.0.1:1", request_idx=78)
        bodies: list[object] = [used, elsewhere, unsigned(50.0, request_idx=79), {"auth_data": {}}, b"{"]
        for body in bodies:
            assert await status_of(system, body) in (401, 422)
        assert await status_of(system, system.envelope(3.0, request_idx=80)) == 200
        await system.reported(served=4.0)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)

        assert [f.request.request_idx for f in system.engine.finished] == [77, 80]
        assert (system.totals.new_load, system.totals.rej_load, system.totals.cur_perf) == (4.0, 0.0, 4.0)
        assert system.last_report.num_requests_received == 2
        assert (before[0]["received"], (await ledger_numbers(system))[0]["received"]) == (1, 2)
        assert len(system.model.requests) == 2


# The management token


async def test_an_empty_management_token_admits_nobody(tmp_path: Path) -> None:
    update = tmp_path / "force_update"
    async with with_worker_task(tmp_path, force_update_file=update, master_token="") as system:
        for given in (None, "", "Bearer ", "Bearer", MASTER_TOKEN):
            headers = {} if given is None else {"Authorization": given}
            status, body = await post(system, b"", "/pyworker/update", **headers)
            assert (status, list(body)) == (401, ["error"])
    assert not update.exists()


@pytest.mark.parametrize("given", [MASTER_TOKEN, f"Bearer {MASTER_TOKEN}"])
async def test_the_management_token_requests_an_update(tmp_path: Path, given: str) -> None:
    update = tmp_path / "force_update"
    async with with_worker_task(tmp_path, force_update_file=update) as system:
        for wrong in ("", "Bearer wrong", MASTER_TOKEN[:-1], MASTER_TOKEN + "x", "Bearer \u00fc"):
            assert await status_of(system, b"", "/pyworker/update", Authorization=wrong) == 401
        assert not update.exists()
        assert await status_of(system, b"", "/pyworker/update", Authorization=given) == 200
    assert update.exists()


# The loopback port, and web pages


@pytest.mark.parametrize(
    "path", ["/status", "/examples", "/openapi.json", "/docs", "/metrics", "/ping", "/healthz", "/readyz"]
)
async def test_the_loopback_port_is_for_this_machine(tmp_path: Path, path: str) -> None:
    async with with_worker_task(tmp_path) as system:
        own = system.loopback_url
        for headers, status in (
            ({}, 200),
            ({"Host": "localhost:3001"}, 200),
            ({"Origin": own}, 200),
            ({"Host": "evil.example"}, 421),
            ({"Host": "worker.internal:3001"}, 421),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
        ):
            async with system.http.get(own + path, headers=headers) as answer:
                assert answer.status == status, headers
                if status != 200:
                    assert list(await answer.json()) == ["error"]
        if path in ("/ping", "/healthz"):  # clients have any name for the public port
            async with system.http.get(system.url + path, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 200


async def test_a_loopback_port_on_all_addresses_is_asked_for_by_address_or_private_name(
    tmp_path: Path,
) -> None:
    async with with_worker_task(tmp_path, worker_http_host="0.0.0.0") as system:
        for host, status in (
            ("10.1.2.3:3001", 200),
            ("[fd00::1]:3001", 200),
            ("worker.default.svc.cluster.local:3001", 200),
            ("worker:3001", 200),
            ("evil.example", 421),
        ):
            async with system.http.get(system.loopback_url + "/metrics", headers={"Host": host}) as answer:
                assert answer.status == status, host


@pytest.mark.parametrize("path", ["/pyworker/update", "/session/end"])
async def test_no_page_can_post_to_the_loopback_port(tmp_path: Path, path: str) -> None:
    async with with_worker_task(tmp_path) as system:
        for headers, status in (
            ({"Host": "evil.example"}, 421),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null", "Content-Type": "text/plain"}, 403),
        ):
            async with system.http.post(system.loopback_url + path, data=b"{}", headers=headers) as answer:
                assert (answer.status, list(await answer.json())) == (status, ["error"]), headers
        async with system.http.post(system.loopback_url + path, data=b"{}") as answer:
            assert answer.status == {"/session/end": 422, "/pyworker/update": 401}[path]


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
async def test_a_loopback_port_is_asked_for_by_further_names(tmp_path: Path, bound: str) -> None:
    names = ("worker.example", "metrics.example")
    async with with_worker_task(tmp_path, worker_http_host=bound, worker_http_names=names) as system:
        for headers, status in (
            ({}, 200),
            ({"Host": "worker.example"}, 200),
            ({"Host": "METRICS.example.:3001"}, 200),
            ({"Host": "evil.example"}, 421),
            ({"Host": "a.worker.example"}, 421),
            ({"Host": "worker.example.evil.example"}, 421),
            ({"Origin": "https://worker.example"}, 200),
            ({"Origin": "https://evil.example"}, 403),
            ({"Host": "worker.example", "Origin": "https://evil.example"}, 403),
        ):
            async with system.http.get(system.loopback_url + "/metrics", headers=headers) as answer:
                assert answer.status == status, headers


# Bodies


async def test_a_large_unsigned_body_needs_little_more_memory_than_its_size(tmp_path: Path) -> None:
    nothings = b"[" + b"{}," * (20 * MIB) + b"{}]"
    auth = json.dumps(unsigned()["auth_data"]).encode()
    async with with_worker_process(tmp_path) as system:
        assert system.worker is not None
        before = system.worker.peak_memory_kib()
        last = b'{"payload": {"data": %b}, "auth_data": %b}' % (nothings, auth)
        status, body = await post(system, last)
        assert (status, "values" in body["error"]) == (413, True)
        first = b'{"auth_data": %b, "payload": {"data": %b}}' % (auth, nothings)
        assert await status_of(system, first) == 401
        within = b'{"auth_data": {"x": %b}, "payload": {}}' % nothings
        assert await status_of(system, within) == 422
        assert system.worker.peak_memory_kib() - before < LARGE_BODY_KIB
        over = request_bytes("/echo", b"", {"Content-Length": str(65 * MIB)})
        async with connected(system.url) as client:
            await client.send(over)
            head, refusal = await client.answer()
        assert (head.status, str(64 * MIB).encode() in refusal) == (413, True)
        assert (await ledger_numbers(system))[0]["received"] == 0


async def test_a_large_signed_body_is_passed_on(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert await status_of(system, system.envelope(data={"image": "x" * (5 * MIB)})) == 200
        assert len(system.model.requests[0].json()["data"]["image"]) == 5 * MIB


@pytest.mark.parametrize("cost", ["NaN", "1e999", "-Infinity", '"inf"', "1" + "0" * 400])
async def test_an_infinite_cost_is_refused_even_if_signed(tmp_path: Path, cost: str) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as system:
        body = json.dumps(unsigned()).replace('"cost": 1.0', f'"cost": {cost}')
        status, answer = await post(system, body.encode())
        assert (status, answer) == (422, {"auth_data": {"cost": "must be finite"}})
        body = json.dumps({**unsigned(), "payload": {"workload": 2.0}}).replace("2.0", cost)
        if await status_of(system, body.encode()) == 200:  # replaces the author's count
            await system.reported(served=100.0)


# No author code runs before authentication


async def test_author_code_runs_only_after_the_signature_was_verified(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        before = dict(AUTHOR_CALLS)
        used = system.envelope()
        assert await status_of(system, used, "/raising") == 200
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
            {**system.envelope(url="http://127.0.0.1:1"), "payload": payload},
        ):
            for path in ("/raising", "/echo"):
                assert await status_of(system, envelope, path) == 401
        assert await status_of(system, {"auth_data": {}, "payload": payload}, "/raising") == 422
        assert before == AUTHOR_CALLS


# Signatures: the forms, the URL, replay


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
async def test_the_setting_decides_which_signature_forms_are_accepted(
    tmp_path: Path, accepted: str, form: Any, status: int
) -> None:
    async with with_worker_task(tmp_path, scheme=form, auth_scheme=accepted) as system:
        assert await status_of(system, system.envelope()) == status


async def test_signed_values_are_verified_as_they_were_sent(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for cost in (256, 256.0, "256"):
            auth = system.engine.sign(url=system.url + "/", cost=cost)  # type: ignore[arg-type]  # a client's text
            assert await status_of(system, {"auth_data": auth, "payload": {}}) == 200
            assert await status_of(system, {"auth_data": {**auth, "cost": 1}, "payload": {}}) == 401


async def test_a_full_message_is_accepted_once_and_only_while_recent(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        newest = system.envelope(reqnum=1000)
        assert await status_of(system, newest) == 200
        assert await status_of(system, newest) == 401
        assert await status_of(system, system.envelope(reqnum=900)) == 200
        assert await status_of(system, system.envelope(reqnum=899)) == 401


async def test_the_url_form_never_moves_the_window(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert await status_of(system, system.envelope(reqnum=1000)) == 200
        for _ in range(2):
            assert await status_of(system, system.envelope(reqnum=10**12, scheme="url")) == 200
        assert await status_of(system, system.envelope(reqnum=1, scheme="url")) == 200
        assert await status_of(system, system.envelope(reqnum=901)) == 200


async def test_the_url_check_can_be_turned_off(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, auth_check_url=False) as system:
        assert await status_of(system, system.envelope(url="http://behind.a.proxy")) == 200
        assert await status_of(system, unsigned(url="http://behind.a.proxy")) == 401


async def test_an_unsecured_worker_accepts_any_signature_and_still_validates_the_envelope(
    tmp_path: Path,
) -> None:
    async with with_worker_task(tmp_path, unsecured=True) as system:
        assert system.engine.requests_seen["pubkey"] == 0
        for _ in range(2):
            assert await status_of(system, unsigned()) == 200
        assert await post(system, unsigned(reqnum="1")) == (
            422,
            {"auth_data": {"reqnum": "must be an integer"}},
        )
        assert await post(system, {"payload": {}}) == (422, {"auth_data": "field missing"})


# Key rotation


@asynccontextmanager
async def with_manual_clock(tmp_path: Path) -> AsyncGenerator[tuple[System, ManualClock], None]:
    """A system whose worker has a manual clock."""
    clock = ManualClock()
    setup = Setup(health="/health", backend={"clock": clock})
    async with with_worker_task(tmp_path, setup) as system:
        yield system, clock


async def test_a_rotated_key_is_fetched_at_most_once_a_minute(tmp_path: Path) -> None:
    async with with_manual_clock(tmp_path) as (system, clock):
        assert await status_of(system, system.envelope()) == 200
        assert system.engine.requests_seen["pubkey"] == 1

        await system.engine.rotate_key(OTHER_KEYS[0])
        answers = await asyncio.gather(*(status_of(system, system.envelope()) for _ in range(10)))
        assert (answers, system.engine.requests_seen["pubkey"]) == ([200] * 10, 2)

        await system.engine.rotate_key(OTHER_KEYS[1])
        clock.advance(59.0)
        for body in (system.envelope(), unsigned(), unsigned()):
            assert await status_of(system, body) == 401
        assert system.engine.requests_seen["pubkey"] == 2
        clock.advance(1.0)
        assert await status_of(system, system.envelope()) == 200
        assert system.engine.requests_seen["pubkey"] == 3

        await system.engine.rotate_key(engine_key())
        assert await status_of(system, system.envelope()) == 401


# Counting of authenticated requests


async def test_a_failed_model_server_does_not_count_as_success(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert await system.call("/error500", 5.0) == (500, b"<h1>CUDA out of memory</h1>")
        assert await system.call("/error422", 2.0) == (422, b'{"detail": "no such parameter"}')
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2)
        await system.reported()
        assert [(f.request.success, f.request.status) for f in system.engine.finished] == [
            (False, "Error"),
            (True, "Success"),
        ]
        assert system.totals.cur_perf == 0.0


async def test_ten_requests_with_one_reqnum_count_as_ten(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, scheme="url") as system:
        bodies = [system.envelope(2.0, reqnum=5) for _ in range(10)]
        calls = [asyncio.create_task(status_of(system, body, "/held")) for body in bodies]
        await system.model.until(lambda: system.model.working == 10)
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 10)
        assert system.last_report.cur_load == 20.0
        assert len(system.last_report.working_request_idxs) == 10
        system.model.release()
        assert await asyncio.gather(*calls) == [200] * 10
        await system.reported(served=20.0)
        assert system.last_report.num_requests_received == 10


async def test_a_parser_that_raises_leaves_a_traceback_in_the_log(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        envelope = system.envelope(9.0, {"raise": "parser"}, request_idx=13)
        assert await status_of(system, envelope, "/raising") == 500
        finished = await system.engine.wait_for(lambda: system.engine.finished)
        assert [(f.request.request_idx, f.request.status) for f in finished] == [(13, "Error")]
        assert (system.totals.new_load, system.totals.cur_perf, system.last_report.cur_load) == (
            0.0,
            0.0,
            0.0,
        )


async def test_each_attempt_at_one_request_idx_is_reported(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path, status in (("/error500", 500), ("/echo", 200), ("/echo", 200)):
            envelope = system.envelope(request_idx=14)
            async with system.http.post(system.url + path, json=envelope) as answer:
                assert answer.status == status
        await system.engine.wait_for(lambda: len(system.engine.finished) == 3)
        reported = [(f.request.request_idx, f.request.status) for f in system.engine.finished]
        assert reported == [(14, "Error"), (14, "Success"), (14, "Success")]


# Secrets reach neither the log nor the model server


async def test_keys_tokens_and_payloads_are_neither_logged_nor_passed_on(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, env={"LOG_LEVEL": "DEBUG"}) as system:
        assert system.worker is not None
        envelope = system.envelope(data={"prompt": "secret-payload"})
        secrets = {
            "Authorization": "Bearer secret-bearer",
            "Cookie": "a=secret-cookie",
            "X-Vast-Auth-Other": "secret-header",
        }
        for path in ("/echo", "/raising", "/nowhere"):
            await status_of(system, {**system.envelope(), "auth_data": system.auth()}, path)
            body = json.dumps({**envelope, "auth_data": system.auth()}).encode()
            await post(system, body, f"{path}?api_key=secret-query&a=1", **secrets)
        await post(
            system, system.envelope(data={"raise": "parser"}), "/raising?api_key=secret-query", **secrets
        )
        await post(system, unsigned(signature="secret-signature"))
        output = await system.worker.final_output()
        assert "secret" not in output
        assert system.auth()["signature"][:20] not in output
        assert MASTER_TOKEN not in output
        passed = [(r.path, r.headers) for r in system.model.requests]
        assert "secret" not in str(passed)
