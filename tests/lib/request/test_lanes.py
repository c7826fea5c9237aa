"""Lanes: shared queues, limits on waiting, and reading payloads. No HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lib.data_types import JsonDataException
from lib.errors import Draining, Invalid, TooBusy
from lib.request.lanes import Lanes
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


def test_handlers_that_are_not_parallel_share_a_queue() -> None:
    made = lanes()
    one, other = made.add(PlainHandler()), made.add(PlainHandler())
    parallel = made.add(PlainHandler(allow_parallel_requests=True))
    assert one.queue is other.queue is not parallel.queue


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
    ("load", "max_perf", "is_refused"), [(100.0, 10.0, False), (101.0, 10.0, True), (1e9, 0.0, False)]
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
