"""Lanes: shared queues, limits on waiting, and reading payloads. No HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from lib.data_types import ApiPayload, JsonDataException
from lib.errors import Draining, Invalid, TooBusy
from lib.request.lanes import Lane, Lanes, direct_routes, route_obstacle
from lib.uploads import Upload
from tests.fakes.plain_handler import PlainHandler
from tests.manual_clock import ManualClock
from tests.slots import holding


class UploadSizeHandler(PlainHandler):
    def read_upload(self, upload: Upload) -> Any:
        return f"{upload.size_bytes} bytes"


class StrictHandler(PlainHandler):
    def read_payload(self, req_data: dict[str, Any]) -> Any:
        if "x" not in req_data["payload"]:
            raise JsonDataException({"payload": {"x": "missing parameter"}})
        return req_data


class AnsweringHandler(PlainHandler):
    async def generate_client_response(
        self, client_request: web.Request, model_response: Any
    ) -> web.StreamResponse:
        return web.Response()


class ScanningHandler(PlainHandler):
    def scan_answer(self) -> Any:
        return None


class FormPayload(ApiPayload):
    def generate_payload_multipart(self) -> Any:
        return None


class FormHandler(PlainHandler):
    @classmethod
    def payload_cls(cls) -> type[Any]:
        return FormPayload


async def one(_request: web.Request) -> web.StreamResponse:
    return web.Response()


async def other(_request: web.Request) -> web.StreamResponse:
    return web.Response()


def lanes(is_parallel: bool = False, max_wait_s: float | None = None, drain_s: float = 7.2) -> Lanes:
    return Lanes(ManualClock(), lambda: drain_s, is_parallel, max_wait_s)


@pytest.mark.parametrize(
    ("is_parallel", "fields", "expected"),
    [
        (False, {}, 1),
        (True, {}, None),
        (False, {"allow_parallel_requests": True}, None),
        (True, {"allow_parallel_requests": False}, 1),
        (True, {"max_concurrency": 3}, 3),
        (False, {"max_concurrency": 3}, 3),
        (True, {"max_concurrency": 0}, 1),  # reported at the start
    ],
)
def test_the_concurrency_of_a_handler(
    is_parallel: bool, fields: dict[str, Any], expected: int | None
) -> None:
    made = lanes(is_parallel)
    handler = PlainHandler(**fields)
    assert made.concurrency_of(handler) == made.add(handler).queue.limit == expected


def test_by_default_requests_are_sent_one_at_a_time_without_a_limit_on_waiting() -> None:
    lane = Lanes(ManualClock(), lambda: 0.0).add(PlainHandler())
    assert (lane.queue.limit, lane.max_wait_s) == (1, None)


def test_handlers_that_are_not_parallel_share_a_queue() -> None:
    made = lanes()
    one, other = made.add(PlainHandler()), made.add(PlainHandler())
    parallel = made.add(PlainHandler(allow_parallel_requests=True))
    assert one.queue is other.queue is not parallel.queue


def test_the_handlers_that_share_a_queue_can_have_several_slots() -> None:
    made = lanes()
    made.share_slots(3)
    one, other = made.add(PlainHandler()), made.add(PlainHandler())
    assert one.queue is other.queue
    assert one.queue.limit == made.concurrency_of(one.handler) == 3
    assert made.add(PlainHandler(max_concurrency=1)).queue.limit == 1


@pytest.mark.parametrize("fields", [{}, {"max_concurrency": 1}, {"max_concurrency": 5}])
def test_a_parallel_handler_has_one_queue_on_all_of_its_routes(fields: dict[str, Any]) -> None:
    made = lanes(is_parallel=True)
    handler = PlainHandler(**fields)
    first, second, another = made.add(handler), made.add(handler), made.add(PlainHandler(**fields))
    assert first.queue is second.queue is not another.queue


@pytest.mark.parametrize(
    ("default_s", "own_s", "expected"), [(None, None, None), (5.0, None, 5.0), (5.0, 0.0, 0.0)]
)
def test_a_handlers_own_limit_on_waiting_replaces_the_default(
    default_s: float | None, own_s: float | None, expected: float | None
) -> None:
    assert lanes(max_wait_s=default_s).add(PlainHandler(max_queue_time=own_s)).max_wait_s == expected


@pytest.mark.parametrize(
    ("load", "max_perf", "is_refused"),
    [(100.0, 10.0, False), (101.0, 10.0, True), (5.0, 0.5, False), (5.05, 0.5, True), (1e9, 0.0, False)],
)
def test_the_wait_is_estimated_on_arrival(load: float, max_perf: float, is_refused: bool) -> None:
    lane = lanes(max_wait_s=10.0).add(PlainHandler())
    if not is_refused:
        lane.check_wait(load, max_perf)
        return
    with pytest.raises(TooBusy) as refused:
        lane.check_wait(load, max_perf)
    assert "10.1 s, more than 10 s" in refused.value.message
    assert refused.value.retry_after_s == 1


@pytest.mark.parametrize(
    ("limits", "cost", "counted"),
    [
        ([None], 50.0, 50.0),
        ([None], 1e300, 3600.0),
        ([None, 20.0], 1e300, 3600.0),
        ([None, 5000.0], 1e300, 5000.0),
        ([20.0, 30.0], 30.0, 30.0),
        ([20.0, 30.0], 31.0, None),
        ([], 1e300, 3600.0),
    ],
)
def test_a_session_counts_at_most_as_the_largest_request(
    limits: list[float | None], cost: float, counted: float | None
) -> None:
    made = lanes()
    made.cap.note_sample(1.0)
    made.cap.note_max_perf(1.0)
    for limit in limits:
        made.add(PlainHandler(max_workload=limit))
    if counted is not None:
        assert made.count_session(cost) == counted
        return
    with pytest.raises(Invalid) as raised:
        made.count_session(cost)
    assert raised.value.fields == {"auth_data": {"cost": "it is 31, more than 30, the most that is accepted"}}


def test_a_session_counts_nothing_where_no_request_does() -> None:
    made = lanes()
    made.add(PlainHandler())
    made.cap.note_sample(0.0)
    assert made.count_session(50.0) == 0.0


def test_a_lane_without_a_limit_takes_any_load() -> None:
    lanes().add(PlainHandler()).check_wait(1e12, 1.0)


async def test_waiting_and_working_are_counted_once_for_a_shared_queue() -> None:
    made = lanes()
    one, other = made.add(PlainHandler()), made.add(PlainHandler())

    async def wait() -> None:
        async with holding(other.queue, other.max_wait_s):
            pass

    async with holding(one.queue, one.max_wait_s):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert (made.waiting, made.working) == (1, 1)
    await waiting
    assert (made.waiting, made.working) == (0, 0)


async def test_a_request_waits_where_a_queue_is_full() -> None:
    made = lanes()
    made.add(PlainHandler(allow_parallel_requests=True))
    one = made.add(PlainHandler()).queue
    assert not one.is_full
    assert one.try_acquire()
    assert one.is_full
    assert not made.is_waiting()
    waiting = asyncio.ensure_future(one.wait(None))
    await asyncio.sleep(0)
    assert made.is_waiting()
    one.release()
    await waiting
    assert one.is_full
    assert not made.is_waiting()


async def test_refuse_all_refuses_present_and_later_waits() -> None:
    made = lanes()
    lane = made.add(PlainHandler())

    async def wait() -> None:
        async with holding(lane.queue, lane.max_wait_s):
            pass

    async with holding(lane.queue, lane.max_wait_s):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        made.refuse_all(Draining)
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await wait()


async def test_a_wait_above_the_limit_is_refused_with_retry_after() -> None:
    lane = lanes(max_wait_s=0.0).add(PlainHandler())
    async with holding(lane.queue, lane.max_wait_s):
        with pytest.raises(TooBusy) as refused:
            async with holding(lane.queue, lane.max_wait_s):
                pass
    assert refused.value.retry_after_s == 8


def test_a_payload_is_read_from_its_envelope() -> None:
    lane = lanes().add(StrictHandler())
    assert lane.read_payload({"x": 1}, {"cost": 1}, None) == {"auth_data": {"cost": 1}, "payload": {"x": 1}}
    in_session = lane.read_payload({"x": 1}, {}, "id")
    assert in_session["session_id"] == "id"
    with pytest.raises(Invalid) as refused:
        lane.read_payload({}, {}, None)
    assert refused.value.fields == {"payload": {"x": "missing parameter"}}


def test_an_upload_is_read_as_one() -> None:
    upload = Upload(Path("/tmp/x"), "image/png", 5, {})
    assert lanes().add(UploadSizeHandler()).read_payload(upload, {}, None) == "5 bytes"


def test_a_lane_counts_the_workload_of_its_payloads() -> None:
    lane = lanes().add(PlainHandler())
    assert lane.count_workload(SimpleNamespace(count_workload=lambda: 7)) == 7.0


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (PlainHandler(), True),
        (ScanningHandler(), False),
        (PlainHandler(keepalive_s=1.0), False),
        (ScanningHandler(keepalive_s=1.0), False),
    ],
)
def test_answers_may_be_compressed_if_nothing_reads_or_precedes_them(
    handler: PlainHandler, expected: bool
) -> None:
    assert lanes().add(handler).accepts_compressed_answers is expected


# Which routes are served without aiohttp

SLOWER: list[tuple[PlainHandler, str]] = [
    (AnsweringHandler(), "the handler calls the model or makes the answer itself"),
    (FormHandler(), "the payload may be sent as a form or an upload"),
    (PlainHandler(keepalive_s=1.0), "keepalive_s is set"),
    (PlainHandler(on_disconnect="finish"), "on_disconnect is 'finish'"),
]


@pytest.mark.parametrize(
    ("handler", "obstacle"), [(PlainHandler(), None), (ScanningHandler(), None), *SLOWER]
)
def test_a_handler_that_author_code_takes_part_in_is_served_by_aiohttp(
    handler: PlainHandler, obstacle: str | None
) -> None:
    lane = lanes().add(handler)
    assert lane.obstacle == obstacle
    assert route_obstacle(web.post("/a", one), lane) == obstacle
    assert direct_routes({one: lane}, [web.post("/a", one)]) == ({} if obstacle else {"/a": one})


@pytest.mark.parametrize(
    ("route", "obstacle"),
    [
        (web.post("/a", one), None),
        (web.route("*", "/a", one), None),
        (web.get("/a", one), "the method is not POST"),
        (web.put("/a", one), "the method is not POST"),
        (web.post("/a/{id}", one), "the path has parameters"),
        (web.post("/a", other), "the function is a plain aiohttp handler"),
    ],
)
def test_a_route_is_served_without_aiohttp_if_it_is_a_handlers_post(
    route: web.RouteDef, obstacle: str | None
) -> None:
    served: dict[Any, Lane] = {one: lanes().add(PlainHandler())}
    assert route_obstacle(route, served.get(route.handler)) == obstacle
    assert direct_routes(served, [route]) == ({} if obstacle else {"/a": one})


def test_of_two_routes_with_one_path_the_first_counts() -> None:
    made = lanes()
    served: dict[Any, Lane] = {one: made.add(PlainHandler()), other: made.add(PlainHandler())}
    routes = [web.static("/files", "."), web.get("/a", other), web.post("/a", one), web.post("/a", other)]
    assert direct_routes(served, [*routes, web.route("*", "/b", other), web.post("/b", one)]) == {
        "/a": one,
        "/b": other,
    }
