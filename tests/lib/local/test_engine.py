"""The local engine's messages over real sockets: accepted, refused and signed ones."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
from Crypto.Hash import SHA256
from Crypto.PublicKey import RSA
from Crypto.Signature import pkcs1_15

from lib.local.engine import LocalEngine, Scheme
from lib.local.serving import serve_engine
from lib.wire import full_signed_text, url_signed_text
from tests.fakes.reports import READY
from tests.keys import new_key
from tests.manual_clock import ManualClock
from tests.system import engine_key

KEY = {"api_key": "any"}


@dataclass
class ServedEngine:
    """An engine on a socket, its manual clock, and a client."""

    engine: LocalEngine
    clock: ManualClock
    url: str
    http: aiohttp.ClientSession

    async def post(self, path: str, body: object, **kwargs: Any) -> tuple[int, Any]:
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
        async with self.http.post(self.url + path, data=data, headers=headers, **kwargs) as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    async def ok(self, path: str, body: object) -> Any:
        status, answer = await self.post(path, body)
        assert status == 200, answer
        return answer

    async def refused(self, path: str, body: object, status: int = 400) -> str:
        """Post a message that is refused with `status`; return the error's text."""
        got, answer = await self.post(path, body)
        assert got == status, answer
        assert list(answer) == ["error"]
        return answer["error"]


@pytest.fixture(scope="module")
def key() -> RSA.RsaKey:
    return new_key(2048)


@pytest.fixture
async def served(key: RSA.RsaKey) -> AsyncGenerator[ServedEngine, None]:
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=key, report_limit=3)
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        yield ServedEngine(engine, clock, url, http)


def report(**changes: object) -> dict[str, object]:
    """The JSON of a report: worker 7, ready, with a performance of 10/s."""
    message: dict[str, object] = {
        "id": 7,
        "mtoken": "",
        "version": "1.1.0",
        "loadtime": 12.5,
        "new_load": 0.0,
        "cur_load": 0.0,
        "rej_load": 0.0,
        "cur_perf": 0.0,
        "max_perf": 10.0,
        "error_msg": "",
        "num_requests_working": 0,
        "num_requests_recieved": 0,
        "working_request_idxs": [],
        "additional_disk_usage": -0.5,
        "disk_usage": 33.0,
        "cur_capacity": 0.0,
        "max_capacity": 0.0,
        "url": "http://127.0.0.1:3000",
    }
    return {**message, **changes}


def finished(**changes: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "request_idx": 1,
        "success": True,
        "status": "Success",
        "entered_queue_at": 1.0,
        "work_started_at": 2.0,
        "work_completed_at": 3.5,
    }
    return {**entry, **changes}


def verifies(public_key: str, text: str, signature: str) -> bool:
    try:
        pkcs1_15.new(RSA.import_key(public_key)).verify(
            SHA256.new(text.encode()), base64.b64decode(signature, validate=True)
        )
    except ValueError:
        return False
    return True


# The key and signatures


async def test_pubkey_is_pem_text(served: ServedEngine) -> None:
    async with served.http.get(served.url + "/pubkey/") as response:
        text = await response.text()
    assert response.status == 200
    assert response.content_type == "text/plain"
    assert text.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert text == served.engine.public_key
    assert RSA.import_key(text).size_in_bits() == 2048


@pytest.mark.parametrize("cost", [256, 256.0, 0, 1e22, 0.1])
async def test_route_signs_the_full_form_with_the_cost_as_sent(served: ServedEngine, cost: float) -> None:
    await served.ok("/worker_status/", report())
    answer = await served.ok("/route/", {"endpoint": "local", **KEY, "cost": cost, "replay_timeout": 60})
    assert sorted(answer) == sorted(
        ["__request_id", "cost", "endpoint", "reqnum", "request_idx", "signature", "url"]
    )
    assert json.dumps(answer["cost"]) == json.dumps(cost)
    assert answer["url"] == "http://127.0.0.1:3000"
    assert answer["endpoint"] == "local"
    assert verifies(served.engine.public_key, full_signed_text(answer), answer["signature"])


async def test_route_signs_the_url_form(key: RSA.RsaKey) -> None:
    engine = LocalEngine(scheme="url", key=key)
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        served = ServedEngine(engine, ManualClock(), url, http)
        await served.ok("/worker_status/", report())
        answer = await served.ok("/route/", {"endpoint": "local", **KEY, "cost": 5.0})
    assert verifies(engine.public_key, url_signed_text(answer["url"]), answer["signature"])
    assert not verifies(engine.public_key, full_signed_text(answer), answer["signature"])


@pytest.mark.parametrize("scheme", ["full", "url"])
def test_sign_returns_the_same_as_route(key: RSA.RsaKey, scheme: Scheme) -> None:
    engine = LocalEngine(key=key)
    auth = engine.sign(url="http://h:1", cost=2, reqnum=40, endpoint="other", scheme=scheme)
    text = full_signed_text(auth) if scheme == "full" else url_signed_text("http://h:1")
    assert verifies(engine.public_key, text, auth["signature"])
    assert (auth["cost"], auth["reqnum"], auth["endpoint"], auth["request_idx"]) == (2, 40, "other", 1)
    assert engine.sign(url="http://h:1")["reqnum"] == 1
    assert engine.sign(url="http://h:1")["reqnum"] == 2
    assert engine.sign(url="http://h:2")["reqnum"] == 1


async def test_a_key_is_made_if_none_is_given() -> None:
    engine = LocalEngine()
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/pubkey/") as response:
            public_key = await response.text()
        auth = engine.sign(url="http://h")
        assert verifies(public_key, full_signed_text(auth), auth["signature"])


def test_an_engine_that_is_not_served_can_sign() -> None:
    engine = LocalEngine()
    auth = engine.sign(url="http://h")
    assert verifies(engine.public_key, full_signed_text(auth), auth["signature"])


async def test_a_rotated_key_replaces_the_old_one(served: ServedEngine, key: RSA.RsaKey) -> None:
    before = served.engine.public_key
    status, answer = await served.post("/local/rotate_key", b"")
    assert (status, answer) == (200, {"public_key": served.engine.public_key})
    assert served.engine.public_key != before
    auth = served.engine.sign(url="http://h")
    assert verifies(served.engine.public_key, full_signed_text(auth), auth["signature"])
    assert not verifies(before, full_signed_text(auth), auth["signature"])
    await served.engine.rotate_key(key)
    assert served.engine.public_key == before


# Routing


async def route(served: ServedEngine, cost: float = 1.0, **more: object) -> Any:
    return await served.ok("/route/", {"endpoint": "local", **KEY, "cost": cost, **more})


async def test_no_ready_worker_is_200_without_url(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(loadtime=0.0))
    await served.ok("/worker_status/", report(id=8, error_msg="no VRAM"))
    answer = await route(served)
    assert answer == {
        "endpoint": "local",
        "status": {"loading": 1, "ready": 0, "error": 1, "stopped": 0},
        "request_idx": 1,
    }
    await served.ok("/worker_status/", report())
    again = await route(served, request_idx=1)
    assert again["request_idx"] == 1
    assert again["url"] == "http://127.0.0.1:3000"


async def test_an_endpoint_that_nobody_joined_has_no_ready_worker(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    answer = await served.ok("/route/", {"endpoint": "other", **KEY, "cost": 1.0})
    assert "url" not in answer
    assert sum(answer["status"].values()) == 0


async def test_a_silent_worker_is_stopped_after_30_s(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    served.clock.advance(30.0)
    assert "url" in await route(served)
    served.clock.advance(0.1)
    answer = await route(served)
    assert answer["status"]["stopped"] == 1
    assert "url" not in answer


async def test_reqnum_and_request_idx_count_up(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    await served.ok("/worker_status/", report(id=8, url="http://127.0.0.1:3001"))
    answers = [await route(served) for _ in range(10)]
    by_url: dict[str, list[int]] = {}
    for answer in answers:
        by_url.setdefault(answer["url"], []).append(answer["reqnum"])
    assert list(by_url.values()) == [[1, 2, 3, 4, 5]] * 2
    assert [a["request_idx"] for a in answers] == list(range(1, 11))
    assert len({a["__request_id"] for a in answers}) == 10


async def test_the_shortest_queue_in_time_is_picked(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(cur_load=30.0, max_perf=10.0))
    await served.ok("/worker_status/", report(id=8, url="http://b", cur_load=40.0, max_perf=20.0))
    assert (await route(served))["url"] == "http://b"


async def test_a_burst_spreads_by_speed_until_the_next_report(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(url="http://a", max_perf=10.0))
    await served.ok("/worker_status/", report(id=8, url="http://b", max_perf=30.0))
    urls = [(await route(served, 10.0))["url"] for _ in range(40)]
    assert 9 <= urls.count("http://a") <= 11
    assert served.engine.worker(8).estimated_load == 10.0 * urls.count("http://b")
    await served.ok("/worker_status/", report(id=8, url="http://b", max_perf=30.0, cur_load=5.0))
    assert served.engine.worker(8).estimated_load == 5.0


async def test_a_retry_adds_no_load(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(url="http://a"))
    first = await route(served, 10.0)
    await served.ok("/worker_status/", report(id=8, url="http://b"))
    second = await route(served, 10.0, request_idx=first["request_idx"])
    loads = [served.engine.worker(i).estimated_load for i in (7, 8)]
    assert sum(loads) == 10.0
    assert second["request_idx"] == first["request_idx"]
    assert len(served.engine.open_requests) == 1


async def test_a_retry_goes_to_another_worker_if_there_is_one(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(url="http://a", max_perf=100.0))
    first = await route(served, 10.0)
    assert (await route(served, 10.0, request_idx=first["request_idx"]))["url"] == "http://a"
    await served.ok("/worker_status/", report(url="http://a", max_perf=100.0))
    await served.ok("/worker_status/", report(id=8, url="http://b", max_perf=1.0, cur_load=50.0))
    assert (await route(served, 10.0, request_idx=first["request_idx"]))["url"] == "http://b"
    assert (await route(served, 10.0, request_idx=first["request_idx"]))["url"] == "http://a"


async def test_idle_workers_share_by_their_speed(served: ServedEngine) -> None:
    urls: list[str] = []
    for _ in range(40):
        await served.ok("/worker_status/", report(url="http://a", max_perf=10.0))
        await served.ok("/worker_status/", report(id=8, url="http://b", max_perf=30.0))
        urls.append((await route(served))["url"])
    assert urls.count("http://a") == 10


async def test_a_request_idx_from_before_a_restart_is_kept_and_not_reused(served: ServedEngine) -> None:
    assert (await route(served, request_idx=2))["request_idx"] == 2
    assert [(await route(served))["request_idx"] for _ in range(3)] == [1, 3, 4]
    assert (await route(served, request_idx=2**63 - 1))["request_idx"] == 2**63 - 1
    assert (await route(served, request_idx=0))["request_idx"] == 5
    assert (await route(served, request_idx=None))["request_idx"] == 6


async def test_a_worker_without_a_measured_performance_is_the_last_choice(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(url="http://a", max_perf=0.0))
    assert (await route(served))["url"] == "http://a"
    await served.ok("/worker_status/", report(id=8, url="http://b", cur_load=1e6))
    assert (await route(served))["url"] == "http://b"


@pytest.mark.parametrize(
    ("changes", "message_part"),
    [
        ({"cost": None}, "cost must be a number"),
        ({"cost": True}, "cost must be a number"),
        ({"cost": "5"}, "cost must be a number"),
        ({"cost": -1}, "cost must be 0 or more"),
        ({"cost": 10**350}, "cost must be finite"),
        ({"endpoint": 5}, "endpoint must be a string"),
        ({"endpoint": ""}, "endpoint must be a name"),
        ({"endpoint": "a\nb"}, "endpoint must be a name"),
        ({"request_idx": -1}, "request_idx must be 0 or more"),
        ({"request_idx": 1.0}, "request_idx must be an integer"),
        ({"request_idx": 2**63}, "request_idx must fit into 64 bits"),
        ({"api_key": 5}, "api_key must be a string"),
    ],
)
async def test_a_bad_route_request_names_the_field(
    served: ServedEngine, changes: dict[str, object], message_part: str
) -> None:
    error = await served.refused("/route/", {"endpoint": "local", **KEY, "cost": 1.0, **changes})
    assert message_part in error
    assert len(served.engine.open_requests) == 0


async def test_a_missing_cost_and_endpoint_are_named_together(served: ServedEngine) -> None:
    assert await served.refused("/route/", KEY) == "endpoint is missing; cost is missing"


# API keys


@pytest.mark.parametrize("path", ["/route/", "/get_endpoint_workers/", "/e/x/route/"])
async def test_no_key_is_401(served: ServedEngine, path: str) -> None:
    body = {"endpoint": "local", "cost": 1.0, "id": 1}
    for more in ({}, {"api_key": ""}, {"api_key": None}):
        assert "no API key" in await served.refused(path, {**body, **more}, 401)
    for header in ("Basic abc", "Bearer", "Bearer  ", ""):
        status, _ = await served.post(path, body, headers={"Authorization": header})
        assert status == 401


async def test_a_wrong_key_is_401_if_the_engine_has_one_key(key: RSA.RsaKey) -> None:
    engine = LocalEngine(api_key="sécret", key=key)
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        served = ServedEngine(engine, ManualClock(), url, http)
        body = {"endpoint": "local", "cost": 1.0}
        for wrong in ("secret", "\ud800", "sécre"):
            assert await served.refused("/route/", {**body, "api_key": wrong}, 401) == "wrong API key"
        assert len(engine.open_requests) == 0
        assert (await served.ok("/route/", {**body, "api_key": "sécret"}))["request_idx"] == 1


async def test_a_bearer_token_is_a_key() -> None:
    engine = LocalEngine(api_key="s", key=new_key(2048))
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        served = ServedEngine(engine, ManualClock(), url, http)
        for header, status in (("Bearer s", 200), ("bearer s", 200), ("Bearer t", 401)):
            got = await served.post(
                "/route/", {"endpoint": "local", "cost": 1}, headers={"Authorization": header}
            )
            assert got[0] == status


@pytest.mark.parametrize(
    ("api_key", "endpoint", "message_part"),
    [("", "local", "api_key"), (None, "", "endpoint"), (None, "a" * 129, "endp")],
)
def test_invalid_arguments_of_an_engine(api_key: str | None, endpoint: str, message_part: str) -> None:
    with pytest.raises(ValueError, match=message_part):
        LocalEngine(api_key=api_key, endpoint=endpoint)


# Reports


async def test_reports_are_kept_with_their_times_and_totals_are_exact(served: ServedEngine) -> None:
    for i in range(10):
        await served.ok("/worker_status/", report(new_load=0.1, rej_load=0.2, cur_perf=1e15 + i))
        served.clock.advance(1.0)
    worker = served.engine.worker(7)
    assert worker.totals.reports == 10
    assert worker.totals.new_load == 1.0
    assert worker.totals.rej_load == 2.0
    assert worker.totals.cur_perf == 1e16 + 45
    assert [r.message.cur_perf for r in worker.reports] == [1e15 + 7, 1e15 + 8, 1e15 + 9]
    assert [r.received_at for r in worker.reports] == [1_700_000_007.0, 1_700_000_008.0, 1_700_000_009.0]
    assert worker.reports[-1].received_s == served.clock.monotonic() - 1.0
    assert worker.last is not None
    assert worker.last.to_json() == report(new_load=0.1, rej_load=0.2, cur_perf=1e15 + 9)


async def test_a_worker_that_never_reported_has_no_reports(served: ServedEngine) -> None:
    worker = served.engine.worker(99)
    assert (len(worker.reports), worker.last, worker.state, worker.endpoint) == (0, None, "stopped", "")
    assert served.engine.workers == {}


@pytest.mark.parametrize("field", list(report()))
async def test_every_field_is_required(served: ServedEngine, field: str) -> None:
    message = report()
    del message[field]
    assert f"{field} is missing" in await served.refused("/worker_status/", message)
    assert served.engine.workers == {}


@pytest.mark.parametrize("wrong", [None, True, [1.5], {}])
@pytest.mark.parametrize("field", list(report()))
async def test_every_field_has_a_type(served: ServedEngine, field: str, wrong: object) -> None:
    assert field in await served.refused("/worker_status/", report(**{field: wrong}))
    assert served.engine.workers == {}


@pytest.mark.parametrize(
    ("field", "wrong", "what"),
    [
        ("id", 1.0, "must be an integer"),
        ("id", 2**63, "must fit into 64 bits"),
        ("mtoken", 5, "must be a string"),
        ("loadtime", "1", "must be a number"),
        ("loadtime", -1.0, "must be 0 or more"),
        ("new_load", -0.1, "must be 0 or more"),
        ("cur_load", -0.1, "must be 0 or more"),
        ("rej_load", -0.1, "must be 0 or more"),
        ("cur_perf", -0.1, "must be 0 or more"),
        ("max_perf", -0.1, "must be 0 or more"),
        ("disk_usage", -0.1, "must be 0 or more"),
        ("max_perf", 1e301, "must be finite"),
        ("num_requests_working", -1, "must be 0 or more"),
        ("num_requests_recieved", 0.0, "must be an integer"),
        ("url", "127.0.0.1:3000", "must be an http or https URL"),
        ("url", "http://", "must be an http or https URL"),
        ("url", "http://h:99999", "must be an http or https URL"),
        ("url", "", "must be an http or https URL"),
    ],
)
async def test_every_field_has_a_range(served: ServedEngine, field: str, wrong: object, what: str) -> None:
    error = await served.refused("/worker_status/", report(**{field: wrong}))
    assert error == f"{field} {what}" + (" and not beyond 1e300" if "finite" in what else "")
    assert served.engine.workers == {}


@pytest.mark.parametrize(
    ("idxs", "message_part"),
    [([1, 0], "[1] must be 1 or more"), ([1, "2"], "[1] must be an integer"), ([True], "[0] must be an int")],
)
async def test_working_request_idxs_must_be_integers(
    served: ServedEngine, idxs: list[object], message_part: str
) -> None:
    error = await served.refused("/worker_status/", report(working_request_idxs=idxs))
    assert f"working_request_idxs{message_part}" in error


async def test_rounding_drift_extra_keys_and_a_failed_start_without_url_are_accepted(
    served: ServedEngine,
) -> None:
    await served.ok("/worker_status/", report(cur_load=-1e-9, later="unknown"))
    assert served.engine.worker(7).estimated_load == 0.0
    await served.ok("/worker_status/", report(url="", error_msg="BACKEND is not set"))
    assert served.engine.worker(7).state == "error"


# Finished requests


async def test_finished_requests_are_kept_and_closed(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    for _ in range(3):
        await route(served, 4.0)
    entries = [
        finished(request_idx=1),
        finished(request_idx=2, status="Rejected", success=False, work_started_at=0.0),
        finished(request_idx=99, status="Cancelled"),
    ]
    await served.ok("/delete_requests/", {"worker_id": 7, "mtoken": "t", "requests": entries})
    got = served.engine.finished
    assert [f.request.request_idx for f in got] == [1, 2, 99]
    assert [f.request.status for f in got] == ["Success", "Rejected", "Cancelled"]
    assert {(f.worker_id, f.mtoken, f.received_at) for f in got} == {(7, "t", 1_700_000_000.0)}
    assert [i in served.engine.open_requests for i in (1, 2, 3)] == [False, False, True]
    assert served.engine.worker(7).estimated_load == 4.0


async def test_requests_of_a_gone_worker_are_closed(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    await route(served)
    await served.ok("/worker_status/", report(loadtime=0.0))
    assert len(served.engine.open_requests) == 0
    await served.ok("/worker_status/", report())
    await route(served)
    served.clock.advance(30.1)
    assert len(served.engine.open_requests) == 0
    late = {"worker_id": 7, "mtoken": "", "requests": [finished(request_idx=2)]}
    await served.ok("/delete_requests/", late)
    assert len(served.engine.finished) == 1


async def test_a_request_that_is_worked_on_stays_open(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    for _ in range(2):
        await route(served)
    for _ in range(40):
        served.clock.advance(20.0)
        await served.ok("/worker_status/", report(working_request_idxs=[2]))
    assert [idx in served.engine.open_requests for idx in (1, 2)] == [False, True]


async def test_each_attempt_is_a_separate_entry(served: ServedEngine) -> None:
    for _ in range(2):
        await served.ok("/delete_requests/", {"worker_id": 7, "mtoken": "", "requests": [finished()]})
    assert len(served.engine.finished) == 2


@pytest.mark.parametrize(
    ("change", "message_part"),
    [
        ({"request_idx": 0}, "request_idx must be 1 or more"),
        ({"request_idx": None}, "request_idx must be an integer"),
        ({"success": 1}, "success must be true or false"),
        ({"success": False}, "success must be true where status is Success"),
        ({"status": "Error"}, "success must be false where status is Error"),
        ({"status": "Done"}, "status must be one of Success, Error, Cancelled, Rejected"),
        ({"entered_queue_at": -1.0}, "entered_queue_at must be 0 or more"),
        ({"work_started_at": "1"}, "work_started_at must be a number"),
        ({"work_completed_at": None}, "work_completed_at must be a number"),
    ],
)
async def test_one_bad_entry_refuses_the_message(
    served: ServedEngine, change: dict[str, object], message_part: str
) -> None:
    message = {"worker_id": 7, "mtoken": "", "requests": [finished(), finished(**change)]}
    error = await served.refused("/delete_requests/", message)
    assert error.startswith(f"requests[1].{message_part}")
    assert served.engine.finished == []


@pytest.mark.parametrize(
    ("message", "message_part"),
    [
        ({"mtoken": "", "requests": []}, "worker_id is missing"),
        ({"worker_id": 7, "requests": []}, "mtoken is missing"),
        ({"worker_id": 7, "mtoken": ""}, "requests is missing"),
        ({"worker_id": 7, "mtoken": "", "requests": {}}, "requests must be a list"),
        ({"worker_id": 7, "mtoken": "", "requests": [1]}, "requests[0] must be an object"),
    ],
)
async def test_the_fields_around_finished_requests(
    served: ServedEngine, message: object, message_part: str
) -> None:
    assert message_part in await served.refused("/delete_requests/", message)


async def test_a_thousand_bad_entries_get_a_short_answer(served: ServedEngine) -> None:
    entries: list[dict[str, object]] = [{}] * 1000
    message = {"worker_id": 7, "mtoken": "", "requests": entries}
    assert len(await served.refused("/delete_requests/", message)) < 1000


# Lists of workers


async def test_get_endpoint_workers(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(loadtime=0.0, max_perf=0.0, url="http://a"))
    served.clock.advance(20.0)
    await served.ok(
        "/worker_status/",
        report(url="http://a", cur_load=60.0, new_load=70.0, cur_perf=10.0, num_requests_working=2),
    )
    (item,) = await served.ok("/get_endpoint_workers/", {"id": 1, **KEY})
    rolling = item.pop("cur_load_rolling_avg")
    assert 0.0 < rolling < 60.0
    assert item == {
        "id": 7,
        "status": "ready",
        "cur_load": 60.0,
        "new_load": 70.0,
        "cur_perf": 10.0,
        "perf": 10.0,
        "measured_perf": 10.0,
        "dlperf": 0.0,
        "reliability": 1.0,
        "reqs_working": 2,
        "disk_usage": 33.0,
        "loaded_at": 1_700_000_020.0,
        "started_at": 1_700_000_000.0,
        "url": "http://a",
    }


async def test_get_endpoint_workers_needs_an_id_that_exists(served: ServedEngine) -> None:
    assert await served.ok("/get_endpoint_workers/", {"id": 1, **KEY}) == []
    assert "id is missing" in await served.refused("/get_endpoint_workers/", KEY)
    assert "id must be an integer" in await served.refused("/get_endpoint_workers/", {**KEY, "id": "1"})
    assert "no endpoint has the id 2" in await served.refused("/get_endpoint_workers/", {**KEY, "id": 2}, 404)


# Endpoints in the path


async def test_a_report_address_with_a_path_joins_that_endpoint(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report(url="http://a"))
    await served.ok("/e/chat/worker_status/", report(id=8, url="http://b"))
    assert served.engine.worker(8).endpoint == "chat"
    assert (await route(served))["url"] == "http://a"
    by_name = await served.ok("/route/", {"endpoint": "chat", **KEY, "cost": 1.0})
    by_path = await served.ok("/e/chat/route/", {**KEY, "cost": 1.0})
    assert [by_name["url"], by_path["url"]] == ["http://b", "http://b"]
    assert [by_name["endpoint"], by_path["endpoint"]] == ["chat", "chat"]
    assert [w["id"] for w in await served.ok("/e/chat/get_endpoint_workers/", KEY)] == [8]
    assert [w["id"] for w in await served.ok("/get_endpoint_workers/", {**KEY, "id": 2})] == [8]
    assert "has the id 2, not 1" in await served.refused(
        "/e/chat/get_endpoint_workers/", {**KEY, "id": 1}, 404
    )
    assert "no worker" in await served.refused("/e/none/get_endpoint_workers/", {**KEY, "id": 1}, 404)


async def test_other_routes_under_an_endpoints_path(served: ServedEngine) -> None:
    async with served.http.get(served.url + "/e/chat/pubkey/") as response:
        assert await response.text() == served.engine.public_key
    await served.ok("/e/chat/delete_requests/", {"worker_id": 7, "mtoken": "", "requests": [finished()]})
    assert len(served.engine.finished) == 1


async def test_path_and_body_that_disagree_are_refused(served: ServedEngine) -> None:
    body = {"endpoint": "local", **KEY, "cost": 1.0}
    assert "endpoint must be 'chat'" in await served.refused("/e/chat/route/", body)
    assert "path's endpoint" in await served.refused(f"/e/{'a' * 129}/worker_status/", report())


async def test_a_worker_that_moves_leaves_its_endpoint(served: ServedEngine) -> None:
    await served.ok("/worker_status/", report())
    await served.ok("/e/chat/worker_status/", report())
    assert "url" not in await route(served)
    assert await served.ok("/get_endpoint_workers/", {"id": 1, **KEY}) == []


# Invalid bodies


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"cur_load": NaN}', "NaN is not a JSON number"),
        (b'{"cur_load": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"other": 1e999}', "1e999 is too large"),
        (b'{"other": ' + b"9" * 5000 + b"}", "too large a number"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/worker_status/", "/delete_requests/", "/route/", "/get_endpoint_workers/", "/local/faults"]
)
async def test_an_invalid_body_is_refused(served: ServedEngine, path: str, body: bytes, what: str) -> None:
    assert what in await served.refused(path, body)


async def test_a_body_that_is_too_large_is_413(served: ServedEngine) -> None:
    error = await served.refused("/worker_status/", b" " * (8 * 1024 * 1024 + 1), 413)
    assert "8388608" in error


async def test_ten_thousand_finished_requests_fit(served: ServedEngine) -> None:
    entries = [finished(request_idx=2**62 + i) for i in range(10_000)]
    await served.ok("/delete_requests/", {"worker_id": 7, "mtoken": "", "requests": entries})
    assert len(served.engine.finished) == 10_000


async def test_a_compressed_body_is_read_and_a_broken_one_refused(served: ServedEngine) -> None:
    packed = gzip.compress(json.dumps(report()).encode())
    headers = {"Content-Encoding": "gzip"}
    assert (await served.post("/worker_status/", packed, headers=headers))[0] == 200
    status, answer = await served.post("/worker_status/", b"no gzip at all", headers=headers)
    assert status == 400
    assert "body" in answer["error"]
    assert served.engine.worker(7).totals.reports == 1


async def test_a_client_that_disconnects_within_its_body_changes_nothing(served: ServedEngine) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /worker_status/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 500\r\n\r\n{"
    )
    await served.engine.wait_for(lambda: served.engine.requests_seen["reports"])
    writer.close()
    await writer.wait_closed()
    await served.ok("/worker_status/", report())
    assert served.engine.worker(7).totals.reports == 1


async def test_an_unknown_route_and_a_wrong_method(served: ServedEngine) -> None:
    assert await served.refused("/nothing", {}, 404) == "no route at /nothing"
    async with served.http.get(served.url + "/route/") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert "accepts POST, not GET" in (await response.json())["error"]


# wait_for


async def test_wait_for_checks_again_after_each_message(served: ServedEngine) -> None:
    waiting = asyncio.ensure_future(
        served.engine.wait_for(lambda: served.engine.worker(7).totals.new_load >= 3.0)
    )
    for _ in range(2):
        await served.ok("/worker_status/", report(new_load=1.0))
    assert not waiting.done()
    await served.ok("/worker_status/", report(new_load=1.0))
    assert await waiting is True


async def test_wait_for_times_out(served: ServedEngine) -> None:
    with pytest.raises(TimeoutError):
        await served.engine.wait_for(lambda: False, limit_s=0.0)


async def test_wait_for_returns_the_value_of_the_predicate(served: ServedEngine) -> None:
    await served.ok("/delete_requests/", {"worker_id": 7, "mtoken": "", "requests": [finished()]})
    assert (await served.engine.wait_for(lambda: served.engine.finished))[0].worker_id == 7


def test_the_state_of_a_worker_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lib.local.engine")
    engine = LocalEngine(key=engine_key())
    engine.take_report("local", replace(READY, id=77, error_msg="CUDA error:\nout of memory"))
    engine.take_report("local", replace(READY, id=77))
    assert caplog.messages == [
        "worker 77 of local: error: CUDA error: out of memory",
        "worker 77 of local: ready",
    ]
