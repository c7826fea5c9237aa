"""Every status that the worker itself answers, over real sockets (docs/protocol.md, "Answers")."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.local.faults import Fault
from tests.fakes.raw_client import Head, connected, request_bytes
from tests.fakes.worker import Setup
from tests.system import (
    System,
    engine_and_model_server,
    with_worker_process,
    with_worker_task,
    worker_process,
)

MISSING = "missing parameter"
AUTH_FIELDS = ("signature", "cost", "endpoint", "reqnum", "url")


class Answer:
    """An answer of the worker: status, headers and JSON."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.json: Any = json.loads(body)

    @property
    def error(self) -> str:
        return self.json["error"]

    @property
    def retry_after_s(self) -> int:
        return int(self.headers["Retry-After"])


async def post(system: System, path: str, body: object, **headers: str) -> Answer:
    """POST `body`, bytes unchanged and other values as JSON; return the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with system.http.post(system.url + path, data=data, headers=headers) as answer:
        assert answer.content_type == "application/json"
        return Answer(answer.status, answer.headers, await answer.read())


async def signed(
    system: System, path: str, workload: float = 1.0, data: dict[str, Any] | None = None
) -> Answer:
    return await post(system, path, system.envelope(workload, data))


def outcomes(system: System) -> dict[str, int]:
    assert system.backend is not None
    return {o.name.lower(): count for o, count in system.backend.metrics.outcomes.items()}


# 422


async def test_422_has_the_documented_shapes(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        auth = system.auth()
        cases: list[tuple[object, object]] = [
            ({}, {"auth_data": "field missing", "payload": "field missing"}),
            ({"auth_data": auth}, {"payload": "field missing"}),
            ({"auth_data": {}, "payload": {}}, {"auth_data": dict.fromkeys(AUTH_FIELDS, MISSING)}),
            (
                {"auth_data": {**auth, "reqnum": "1", "cost": -1}, "payload": {}},
                {"auth_data": {"reqnum": "must be an integer", "cost": "must be 0 or more"}},
            ),
            (
                {"auth_data": auth, "payload": {"workload": "much", "data": 5}},
                {"payload": {"workload": "must be a number", "data": "must be an object"}},
            ),
        ]
        for body, expected in cases:
            answer = await post(system, "/echo", body)
            assert (answer.status, answer.json) == (422, expected)
        for body in (b"", b"\xff{}", b"{", b"[]", b"null", b'"x"', b"[" * 100_000):
            answer = await post(system, "/echo", body)
            assert answer.status == 422
            assert list(answer.json) == ["body"]
        assert outcomes(system) == {"errored": 1}  # the authenticated one
        assert system.model.requests == []


async def test_an_authors_own_refusal_is_a_422_with_the_authors_text(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        answer = await signed(system, "/raising", data={"raise": "json"})
        assert (answer.status, answer.json) == (422, {"payload": {"data": "not like this"}})
        answer = await signed(system, "/raising", data={"raise": "json-exception"})
        assert (answer.status, answer.json) == (422, {"payload": {"data": "an exception as a message"}})


# 401


async def test_401_gives_one_of_three_reasons_and_no_details(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        used = system.envelope()
        assert (await post(system, "/echo", used)).status == 200
        far_behind = {"auth_data": system.auth(reqnum=used["auth_data"]["reqnum"] - 101), "payload": {}}
        forged = {"auth_data": {**system.auth(), "cost": 0.0}, "payload": {}}
        elsewhere = {"auth_data": system.engine.sign(url="http://other:1"), "payload": {}}
        for body, what in (
            (used, "replay: this signature was used before, or is too old"),
            (far_behind, "replay: this signature was used before, or is too old"),
            (forged, "the signature is invalid"),
            (elsewhere, "the signature is for another worker's URL"),
        ):
            answer = await post(system, "/echo", body)
            assert (answer.status, answer.json) == (401, {"error": what})
        assert outcomes(system) == {"served": 1}


# 404, 405


async def test_404_and_405_are_json(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        answer = await post(system, "/nowhere?api_key=secret", {})
        assert (answer.status, answer.json) == (404, {"error": "POST /nowhere: not found"})
        async with system.http.get(system.url + "/echo") as got:
            assert got.status == 405
            assert got.headers["Allow"] == "POST"
            assert await got.json() == {"error": "GET /echo: method not allowed"}


# 408, 413, 415


async def test_408_for_a_body_that_stalls(tmp_path: Path) -> None:
    async with (
        with_worker_task(tmp_path, request_body_timeout_s=0.05) as system,
        connected(system.url) as client,
    ):
        await client.send(request_bytes("/echo", b"x" * 100)[:-1])
        head, body = await client.answer()
        assert (head.status, list(json.loads(body))) == (408, ["error"])
        assert outcomes(system) == {}


async def test_413_names_the_limit_and_415_the_accepted_encodings(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, max_json_bytes=1000) as system:
        packed = gzip.compress(b" " * 1001)
        for data, headers in ((b" " * 1001, {}), (packed, {"Content-Encoding": "gzip"})):
            answer = await post(system, "/echo", data, **headers)
            assert (answer.status, "1000 bytes" in answer.error) == (413, True)
        async with connected(system.url) as client:  # refused for its announced length
            await client.post("/echo", b"", {"Content-Length": "1001"})
            assert (await client.head()).status == 413
        answer = await post(system, "/echo", b"x", **{"Content-Encoding": "br"})
        assert (answer.status, "gzip" in answer.error) == (415, True)
        assert outcomes(system) == {}


async def test_a_gzipped_envelope_is_accepted(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        body = gzip.compress(json.dumps(system.envelope(data={"a": 1})).encode())
        answer = await post(system, "/echo", body, **{"Content-Encoding": "gzip"})
        assert answer.status == 200
        assert system.model.requests[0].json()["data"] == {"a": 1}
        assert system.model.requests[0].header("Content-Encoding") is None


async def test_expect_100_continue_is_answered(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        await client.send(request_bytes("/echo", b"{}", {"Expect": "100-continue"})[:-2])
        assert (await client.head()).status == 100
        await client.send(b"{}")
        head, _ = await client.answer()
        assert head.status == 422


async def test_invalid_http_leaves_no_traceback_in_the_log(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path) as system:
        for data in (b"\x16\x03\x01 hello\r\n\r\n", framed("bad chunks", b"secret", {})):
            async with connected(system.url) as client:
                await client.send(data)
                assert (await client.head()).status == 400
        assert (await system.call("/echo"))[0] == 200
        assert system.worker is not None
        output = await system.worker.final_output()
        assert "Traceback" not in output
        assert "secret" not in output


# 429


async def test_429_on_arrival_by_the_estimate(tmp_path: Path) -> None:
    setup = Setup(health="/health", handler={"max_queue_time": 5.0}, backend={"max_perf": 10.0})
    async with with_worker_task(tmp_path, setup) as system:
        works = asyncio.create_task(signed(system, "/held", 123.0))
        await system.model.until(lambda: system.model.working == 1)
        answer = await signed(system, "/echo")
        assert answer.status == 429
        assert answer.retry_after_s == 8  # 123 units at 10 a second, less the 5 s that it may wait: 7.3 s
        assert "12.3 s" in answer.error
        system.model.release()
        assert (await works).status == 200
        assert (await signed(system, "/echo")).status == 200
        assert outcomes(system) == {"served": 2, "rejected": 1}


async def test_429_after_waiting_by_the_clock(tmp_path: Path) -> None:
    handler = {"max_queue_time": 0.05, "allow_parallel_requests": False}
    async with with_worker_task(tmp_path, Setup(health="/health", handler=handler)) as system:
        works = asyncio.create_task(signed(system, "/held"))
        await system.model.until(lambda: system.model.working == 1)
        answer = await signed(system, "/held")
        assert (answer.status, list(answer.json)) == (429, ["error"])
        assert answer.retry_after_s >= 1
        assert system.model.most_working == 1
        system.model.release()
        assert (await works).status == 200
        await system.engine.wait_for(lambda: system.totals.rej_load)
        assert (system.totals.rej_load, outcomes(system)) == (1.0, {"served": 1, "rejected": 1})


# 500


async def test_500_carries_the_id_of_the_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_worker_task(tmp_path) as system:
        for where in ("parser", "response"):
            caplog.clear()
            answer = await signed(system, "/raising", data={"raise": where})
            assert (answer.status, list(answer.json)) == (500, ["error", "request"])
            assert answer.error == "internal error"
            logged = [r for r in caplog.records if r.levelno == logging.ERROR]
            assert [answer.json["request"] in r.getMessage() for r in logged] == [True]
            assert f"{where} bug" in caplog.text
            assert "Traceback" in caplog.text
        assert outcomes(system) == {"errored": 2}


async def test_the_clients_request_id_is_used(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        body = system.envelope(data={"raise": "parser"})
        assert (await post(system, "/raising", body, **{"X-Request-Id": "mine-1"})).json[
            "request"
        ] == "mine-1"
        body = system.envelope(data={"raise": "parser"})
        strange = await post(system, "/raising", body, **{"X-Request-Id": "no id; at all"})
        assert strange.json["request"] not in ("", "no id; at all")


# 502, 504


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "PROPFIND", "DELETE"])
async def test_a_method_that_a_route_does_not_have_is_a_405_in_json(tmp_path: Path, method: str) -> None:
    async with with_worker_task(tmp_path) as system:
        request = system.http.request(method, system.url + "/echo", headers={"X-A": "secret"}, data=b"secret")
        async with request as answer:
            assert (answer.status, answer.content_type) == (405, "application/json")
            assert answer.headers["Allow"] == "POST"
            body = await answer.read()
        assert b"secret" not in body
        if method != "HEAD":
            assert list(json.loads(body)) == ["error"]


async def test_502_without_a_status_line(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path in ("/close", "/half_head"):
            answer = await signed(system, path)
            assert (answer.status, list(answer.json)) == (502, ["error"])
            assert answer.error.startswith("the model server could not be reached: ")
        await system.model.stop()
        assert (await signed(system, "/echo")).status == 502
        assert outcomes(system) == {"errored": 3}


async def test_504_when_the_model_takes_too_long(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path, model_timeout_s=0.05) as system:
        answer = await signed(system, "/held")
        assert (answer.status, answer.json) == (504, {"error": "the model server took too long"})
        await system.model.until(lambda: system.model.cancelled == 1)
        assert outcomes(system) == {"errored": 1}


# 503, and the error state, in which requests are still tried


async def test_503_without_a_key_and_while_loading(tmp_path: Path) -> None:
    setup = Setup(log=str(tmp_path / "model.log"))
    async with engine_and_model_server(tmp_path) as system:
        system.engine.faults.pubkey = Fault(refuse=True)
        async with worker_process(system, tmp_path, setup):
            await system.engine.wait_for(lambda: system.last_report)
            answer = await signed(system, "/echo")
            assert (answer.status, answer.json["state"]) == (503, "no public key")
            assert answer.retry_after_s >= 1

            refused = system.engine.requests_seen["pubkey"]
            system.engine.faults.clear()
            await system.engine.wait_for(lambda: system.engine.requests_seen["pubkey"] > refused)
            while (answer := await signed(system, "/echo")).json["state"] == "no public key":
                pass  # the key can be fetched again
            assert (answer.status, answer.json["state"]) == (503, "loading")
            assert "loading" in answer.error
            assert answer.retry_after_s >= 1
            assert (await post(system, "/echo", {"auth_data": system.auth()})).status == 422  # in this order

            system.write_log()
            await system.ready()
            assert (await signed(system, "/echo")).status == 200


async def test_503_while_draining(tmp_path: Path) -> None:
    handler = {"allow_parallel_requests": False}
    async with with_worker_task(tmp_path, Setup(health="/health", handler=handler)) as system:
        assert system.backend is not None
        works = asyncio.create_task(signed(system, "/held"))
        await system.model.until(lambda: system.model.working == 1)
        waits = asyncio.create_task(signed(system, "/held"))
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 2)
        system.backend.running.drain()
        for answer in (await waits, await signed(system, "/echo")):
            assert (answer.status, answer.json["state"]) == (503, "draining")
            assert answer.retry_after_s >= 1
        system.model.release()
        assert (await works).status == 200


async def test_requests_are_still_tried_in_the_error_state(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.backend is not None
        system.backend.backend_errored("broken GPU")
        assert await system.errored() == "broken GPU"
        assert (await signed(system, "/echo")).status == 200


# Arbitrary input


@asynccontextmanager
async def system_in_own_task(tmp_path: Path, **options: Any) -> AsyncGenerator[System, None]:
    """Run a system in a task of its own, since a fixture may be entered in one task and left in another."""
    made: asyncio.Future[System] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def host() -> None:
        async with with_worker_task(tmp_path, **options) as system:
            made.set_result(system)
            await done.wait()

    task = asyncio.create_task(host())
    await asyncio.wait({task, made}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield made.result()
    finally:
        done.set()
        await task


@pytest.fixture
async def fuzzed_system(tmp_path: Path) -> AsyncGenerator[System, None]:
    async with system_in_own_task(tmp_path, request_body_timeout_s=0.05, max_json_bytes=2000) as system:
        yield system


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["auth_data", "payload", *AUTH_FIELDS, "request_idx", "session_id", "workload"])
ENVELOPES = st.fixed_dictionaries({"auth_data": st.dictionaries(KEYS, JSON), "payload": JSON})
BODIES = st.binary(max_size=2100) | (JSON | ENVELOPES).map(lambda value: json.dumps(value).encode())
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "br", "identity", "gzip, gzip", ""]),
        "Content-Type": st.sampled_from(["application/json", "text/plain", "multipart/form-data", "?"]),
        "Accept-Encoding": st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9),
    },
)
FRAMINGS = st.sampled_from(["length", "chunked", "bad chunks", "short", "cut chunks"])
OWN_REFUSALS = {401, 408, 413, 415, 422}
EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def framed(framing: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST of `body` whose length is given correctly or wrongly, as `framing` says."""
    if framing == "length":
        return request_bytes("/echo", body, headers)
    if framing == "short":
        return request_bytes("/echo", body, {**headers, "Content-Length": str(len(body) + 1)})
    chunks = {"chunked": b"%x\r\n%b\r\n0\r\n\r\n", "bad chunks": b"q%x\r\n%b\r\n", "cut chunks": b"%x\r\n%b"}
    data = chunks[framing] % (len(body), body)
    return request_bytes("/echo", data, {**headers, "Transfer-Encoding": "chunked"})


async def first_answer(system: System, data: bytes) -> Head:
    async with connected(system.url) as client:
        await client.send(data)
        return await client.head()


@EXAMPLES
@given(body=BODIES, headers=HEADERS, framing=FRAMINGS)
async def test_no_unauthenticated_bytes_give_another_status_or_change_the_ledger(
    fuzzed_system: System, body: bytes, headers: dict[str, str], framing: str
) -> None:
    head = await first_answer(fuzzed_system, framed(framing, body, headers))
    # Input that isn't HTTP/1.1 is a 400 (RFC 9112).
    assert head.status in OWN_REFUSALS | ({400} if "chunk" in framing else set())
    assert (outcomes(fuzzed_system), fuzzed_system.model.requests) == ({}, [])


@EXAMPLES
@given(data=st.data())
async def test_no_mutilated_envelope_gives_another_status(fuzzed_system: System, data: st.DataObject) -> None:
    envelope = fuzzed_system.envelope()
    part = data.draw(st.sampled_from(["auth_data", "payload"]))
    changes = data.draw(st.dictionaries(KEYS | st.just("data"), JSON, min_size=1, max_size=3))
    envelope[part] = {**envelope[part], **changes}
    body = json.dumps(envelope).encode()
    # The limits must not depend on the body, whose numbers grow by a digit now and then.
    start = data.draw(st.integers(0, 2**16)) % (len(body) + 1)
    end = min(len(body), start + data.draw(st.integers(0, 3)))
    before = outcomes(fuzzed_system)
    whole = body[:start] + data.draw(st.binary(max_size=3)) + body[end:]
    head = await first_answer(fuzzed_system, request_bytes("/echo", whole))
    assert head.status in OWN_REFUSALS | {200}
    if head.status == 401:
        assert outcomes(fuzzed_system) == before
    assert all(outcome in ("served", "errored") for outcome in outcomes(fuzzed_system))


# The model server's own statuses


# The outcome of a status of the model server, and whether its workload counts as done.
MODEL_STATUSES = [
    *((status, "served", True) for status in (200, 201, 307)),
    *((status, "served", False) for status in (400, 404, 413, 422)),
    *((status, "errored", False) for status in (401, 403, 408, 424, 500, 503)),
    (429, "rejected", False),
]


@pytest.mark.parametrize("carrier", ["direct", "aiohttp"])
@pytest.mark.parametrize(("status", "outcome", "has_work"), MODEL_STATUSES)
async def test_a_status_of_the_model_servers_counts_as_what_it_says_of_the_worker(
    tmp_path: Path, carrier: Any, status: int, outcome: str, has_work: bool
) -> None:
    async with with_worker_task(tmp_path, carrier=carrier) as system:
        system.model.fail_status = status
        assert (await signed(system, "/echo", workload=5.0)).status == status
        assert outcomes(system) == {outcome: 1}
        await system.engine.wait_for(lambda: system.last_report.num_requests_working == 0)
        await system.engine.wait_for(lambda: system.totals.cur_perf == (5.0 if has_work else 0.0))
        assert system.backend is not None
        ledger = system.backend.metrics
        is_withdrawn = outcome == "rejected" or (outcome == "served" and not has_work)
        assert ledger.withdrawn_load == (5.0 if is_withdrawn else 0.0)
        assert ledger.rejected_load == (5.0 if outcome == "rejected" else 0.0)
        system.model.fail_status = None
        assert (await signed(system, "/echo", workload=5.0)).status == 200  # nothing of it is left


async def test_the_numbers_in_status_add_up(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for status in (200, 404, 429, 500):
            system.model.fail_status = status
            assert (await signed(system, "/echo")).status == status
        refused = {"auth_data": system.auth(), "payload": {"workload": "much"}}
        assert (await post(system, "/echo", refused)).status == 422
        async with system.http.get(system.loopback_url + "/status") as answer:
            numbers = (await answer.json())["requests"]
        assert numbers == {
            "received": 5,
            "arriving": 0,
            "in_flight": 0,
            "served": 2,
            "errored": 2,
            "cancelled": 0,
            "rejected": 1,
        }
