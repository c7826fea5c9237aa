"""The messages to the engine and the signed texts, each against one written out or made by json."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from lib.wire import DeleteRequests, FinishedRequest, RouteRequest, full_signed_text, url_signed_text
from tests.fakes.reports import READY

STATUS = {
    "id": 7,
    "mtoken": "secret",
    "version": "1.1.0",
    "loadtime": 4.0,
    "new_load": 1.5,
    "cur_load": 2.5,
    "rej_load": 3.5,
    "max_perf": 10.0,
    "cur_perf": 4.5,
    "error_msg": "größe",
    "num_requests_working": 2,
    "num_requests_recieved": 3,
    "additional_disk_usage": 0.5,
    "working_request_idxs": [5, 6],
    "cur_capacity": 0.0,
    "max_capacity": 0.0,
    "disk_usage": 1.0,
    "url": "http://127.0.0.1:3000",
}
REPORT = replace(
    READY,
    mtoken="secret",
    new_load=1.5,
    cur_load=2.5,
    rej_load=3.5,
    cur_perf=4.5,
    error_msg="größe",
    num_requests_working=2,
    num_requests_received=3,
    working_request_idxs=(5, 6),
    additional_disk_usage=0.5,
)
SERVED = FinishedRequest(5, True, "Success", 1.0, 2.0, 3.5)
LOST = FinishedRequest(6, False, "Error", 1.0, 0.0, 0.0)


def test_a_status_report_has_the_protocol_s_names() -> None:
    assert REPORT.to_json() == json.loads(REPORT.encoded()) == STATUS


def test_finished_requests_have_the_protocol_s_names() -> None:
    assert json.loads(DeleteRequests(7, "secret", (SERVED, LOST)).encoded()) == {
        "worker_id": 7,
        "mtoken": "secret",
        "requests": [
            {
                "request_idx": 5,
                "success": True,
                "status": "Success",
                "entered_queue_at": 1.0,
                "work_started_at": 2.0,
                "work_completed_at": 3.5,
            },
            {
                "request_idx": 6,
                "success": False,
                "status": "Error",
                "entered_queue_at": 1.0,
                "work_started_at": 0.0,
                "work_completed_at": 0.0,
            },
        ],
    }


def test_summaries_have_no_token() -> None:
    assert REPORT.summary() == {name: value for name, value in STATUS.items() if name != "mtoken"}
    assert DeleteRequests(7, "secret", (SERVED, LOST)).summary() == {"worker_id": 7, "requests": 2}


def test_a_route_request_is_for_a_new_request_unless_it_says_otherwise() -> None:
    new = {"endpoint": "e", "api_key": "k", "cost": 2.5, "request_idx": 0}
    assert RouteRequest("e", "k", 2.5).to_json() == new
    assert RouteRequest("e", "k", 2.5, 9).to_json() == {**new, "request_idx": 9}


# The signed texts: as Python's json writes them, of whatever values a client sends

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.text(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e16, 1e-7, True, None, 'é"\\\n\x7f\u2028😀']),
    st.lists(st.integers() | st.text(), max_size=2),
)


@given(cost=VALUES, endpoint=VALUES, reqnum=VALUES, url=VALUES)
@example(cost=1.0, endpoint="e", reqnum=True, url=None)
def test_the_full_text_is_as_json_writes_it(cost: Any, endpoint: Any, reqnum: Any, url: Any) -> None:
    raw = {"cost": cost, "endpoint": endpoint, "reqnum": reqnum, "url": url}
    received = {"url": url, "signature": "s", "reqnum": reqnum, "endpoint": endpoint, "cost": cost}
    assert full_signed_text(received) == json.dumps(raw, indent=4, sort_keys=True)


@given(cost=st.floats(allow_nan=False, allow_infinity=False) | st.integers(), reqnum=st.integers())
def test_the_full_text_of_ordinary_values_is_as_json_writes_it(cost: float, reqnum: int) -> None:
    raw = {"cost": cost, "endpoint": "ü", "reqnum": reqnum, "url": "http://w:1"}
    assert full_signed_text(raw) == json.dumps(raw, indent=4, sort_keys=True)


@given(st.text())
def test_the_url_text_is_as_json_writes_it(url: str) -> None:
    assert url_signed_text(url) == json.dumps({"url": url}, indent=4)
