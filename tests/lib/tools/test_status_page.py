from __future__ import annotations

import io
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from rich.console import Console

from lib.local.screen import Screen
from lib.routes.headline import duration, headline
from lib.tools.status_page import NoStatus, fetch, show

LOG = {
    "file": "/var/log/model.log",
    "trouble": None,
    "awaiting_connection": False,
    "lines": 1204,
    "last_line": "loading shard 3 of 8",
    "override_problem": "",
    "rules": [
        {"action": "ModelLoaded", "text": "server is up", "matches": 0, "last_line": ""},
        {"action": "Info", "text": "loading", "matches": 3, "last_line": "loading shard 3 of 8"},
    ],
}


GPUS: dict[str, Any] = {
    "at": 1090.0,
    "gpus": [
        {
            "index": 0,
            "name": "NVIDIA H100 80GB HBM3",
            "utilization": 0.98,
            "memory_used_bytes": 1429012480,
            "memory_total_bytes": 85520809984,
            "slowdowns": ["hardware thermal slowdown"],
        },
        {"index": 1, "name": "a slice", "utilization": None, "memory_used_bytes": None, "slowdowns": []},
    ],
    "findings": [
        {"severity": "error", "at": 1000.0, "count": 1, "is_over": False, "text": "GPU 0 (H100): XID 79"},
        {"severity": "warning", "at": 1050.0, "count": 3, "is_over": True, "text": "GPU 1 (slice): XID 31"},
    ],
}


def status(**changed: Any) -> dict[str, Any]:
    """The `/status` of a worker that is loading, 94 s after its start, with `changed` fields."""
    return {
        "now": 1094.0,
        "state": "loading",
        "error_msg": "",
        "waiting_for": ["log", "benchmark", "key"],
        "url": "http://10.0.0.1:3000",
        "loadtime_s": 0.0,
        "max_perf": 0.0,
        "observed": None,
        "timeline": [{"at": 1000.0, "state": "loading", "reason": "started"}],
        "log": LOG,
        "health": None,
        "model_server": {"url": "http://127.0.0.1:5001", "reachable": True},
        "routes": ["POST /generate"],
        "requests": {
            "received": 0,
            "arriving": 0,
            "in_flight": 0,
            "served": 0,
            "errored": 0,
            "cancelled": 0,
            "rejected": 0,
        },
        "load": {"current": 0.0, "served": 0.0, "rejected": 0.0},
        "queue": {"waiting": 0, "working": 0},
        "slowest": [],
        "reports": [],
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {},
            "loading for 94 s; last log line “loading shard 3 of 8”; "
            "no load rule has matched 1,204 lines yet",
        ),
        (
            {"model_server": {"url": "http://127.0.0.1:5001", "reachable": False}, "waiting_for": ["health"]},
            "loading for 94 s; nothing listens at http://127.0.0.1:5001: is the model server running?",
        ),
        (
            {"log": {**LOG, "trouble": "does not exist"}},
            "loading for 94 s; its log /var/log/model.log does not exist",
        ),
        ({"log": {**LOG, "lines": 0}}, "loading for 94 s; its log /var/log/model.log is empty"),
        (
            {"log": {**LOG, "awaiting_connection": True}},
            "loading for 94 s; its log says that the model is loaded, "
            "but the model server accepts no connection",
        ),
        (
            {"log": {**LOG, "override_problem": "the health check is well, but a request failed"}},
            "loading for 94 s; last log line “loading shard 3 of 8”; no load rule has matched 1,204 lines "
            "yet; the health check is well, but a request failed",
        ),
        (
            {
                "waiting_for": ["health"],
                "health": {
                    "url": "http://h/health",
                    "checks": 3,
                    "last_problem": "health check answered 503",
                },
            },
            "loading for 94 s; http://h/health: health check answered 503",
        ),
        ({"waiting_for": ["lifecycle"]}, "loading for 94 s; its lifecycle has not been entered yet"),
        (
            {"waiting_for": ["handlers"]},
            "loading for 94 s; what its handlers run has not started yet (EndpointHandler.running)",
        ),
        (
            {"waiting_for": ["key"], "reports": [{"addr": "http://e", "answer": "502 Bad Gateway"}]},
            "loading for 94 s; the engine has not sent its public key: http://e answered '502 Bad Gateway'",
        ),
        (
            {"waiting_for": ["key"]},
            "loading for 94 s; the engine has not sent its public key: no answer yet",
        ),
        (
            {"state": "benchmarking", "waiting_for": ["benchmark"]},
            "benchmarking for 94 s; the benchmark is running",
        ),
        ({"state": "errored", "error_msg": "CUDA error"}, "errored for 94 s: CUDA error"),
        ({"state": "ready", "max_perf": 12.5, "waiting_for": []}, "ready for 94 s: 12.5 workload/s"),
        ({"state": "draining", "waiting_for": []}, "draining for 94 s"),
    ],
)
def test_the_headline_has_the_state_and_its_reason(changed: dict[str, Any], expected: str) -> None:
    assert headline(status(**changed)) == expected


def test_the_page_shows_every_part_of_the_status() -> None:
    changes = [{"at": 1000.0 + i, "state": "errored", "reason": f"reason {i}"} for i in range(20)]
    message = {"new_load": 7, "cur_load": 1, "cur_perf": 6, "max_perf": 12, "error_msg": "CUDA error"}
    report = {
        "at": 1090.0,
        "path": "/worker_status/",
        "addr": "http://e",
        "message": message,
        "answer": "503 Busy",
    }
    finished = {**report, "path": "/delete_requests/", "message": {"requests": 4}}
    slow = {"id": "r-1", "route": "POST /generate", "status": 200, "outcome": "served", "workload": 20.0}
    times = {"queue_s": 0.25, "first_byte_s": 0.5, "total_s": 12.125, "ended_at": 1080.0}
    cut = {**slow, **times, "id": "r-2", "first_byte_s": None, "outcome": "cancelled", "status": 499}
    output = io.StringIO()
    show(
        status(
            timeline=changes,
            max_perf=10.0,
            load={"current": 25.0, "served": 0.0, "rejected": 0.0},
            observed={"workload_per_second": 4.01234, "at": 1050.0, "saturated_s": 61.2, "is_enough": True},
            error_msg="CUDA error",
            reports=[report, finished],
            slowest=[{**slow, **times}, cut],
            health={"url": "http://h/health", "checks": 1, "last_problem": "health check answered 503"},
            gpu=GPUS,
        ),
        Screen(Console(file=output, highlight=False, width=200)),
    )
    page = output.getvalue()
    for text in (
        "http://10.0.0.1:3000: loading for 75 s",
        "POST /generate",
        "10 workload/s; 25 in flight, 2.5 s of work",
        "requests show 4.012 workload/s, over 61 s of saturation, until 44 s ago",
        "States (the last 12 of 20)",
        "reason 19",
        "/var/log/model.log, 1,204 lines",
        "“server is up”: no match yet",
        "“loading”: 3 matches, last “loading shard 3 of 8”",
        "NVIDIA H100 80GB HBM3, 98% busy, 1.3 of 79.6 GiB, hardware thermal slowdown\n",
        "a slice\n",
        "error 94 s ago: GPU 0 (H100): XID 79\n",
        "warning 44 s ago, 3 times, over now: GPU 1 (slice): XID 31\n",
        "0.250       0.500   12.125  200 served",
        "0.250           -   12.125  499 cancelled",
        "new_load=7 cur_load=1 cur_perf=6 max_perf=12 “CUDA error”",
        "4 finished",
        "http://e: 503 Busy",
    ):
        assert text in page
    assert "reason 7\n" not in page


async def other_status(_request: web.Request) -> web.Response:
    return web.json_response([1])


async def test_without_a_worker_the_error_says_what_to_do() -> None:
    with pytest.raises(
        NoStatus, match=r"there is no worker at .*: nothing listens there(.|\n)*pyworker run WORKER --local"
    ):
        await fetch("http://127.0.0.1:1")
    async with TestServer(web.Application()) as public:
        with pytest.raises(NoStatus, match="it may be the worker's public port"):
            await fetch(str(public.make_url("")))
    app = web.Application()
    app.router.add_get("/status", other_status)
    async with TestServer(app) as other:
        with pytest.raises(NoStatus, match="another program has that port"):
            await fetch(str(other.make_url("")))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (3.21, "3.2 s"), (94, "94 s"), (600, "10 min"), (12000, "3 h 20 min")],
)
def test_durations_have_a_readable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
