"""The data of the engine's page, and the page's files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from lib.local.engine import LocalEngine
from lib.local.messages import RouteQuery
from lib.local.open_requests import ABANDONED_S
from lib.local.overview import WINDOW_S, Overview
from lib.local.serving import serve_engine
from lib.wire import DeleteRequests, FinishedRequest
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import engine_key

STATUS = replace(READY, mtoken="secret-token", loadtime=0.0, max_perf=0.0)


def new_engine() -> tuple[LocalEngine, ManualClock]:
    clock = ManualClock()
    return LocalEngine(clock=clock, key=engine_key()), clock


def overview(engine: LocalEngine, since: float = 0.0) -> dict[str, Any]:
    return Overview(engine, since).to_json()


def test_without_workers() -> None:
    engine, clock = new_engine()
    (plan,) = overview(engine)["plans"]
    assert (plan["endpoint"], plan["exploring"], plan["workers_ready_wanted"]) == ("local", True, 3)
    assert overview(engine) == {
        "engine_id": engine.id,
        "now": clock.wall(),
        "plans": [plan],
        "window_s": WINDOW_S,
        "open_requests": 0,
        "waiting_requests": 0,
        "faults": [],
        "workers": [],
        "ended": [],
        "events": [],
    }


def test_a_worker_and_the_history_of_its_states() -> None:
    engine, clock = new_engine()
    engine.take_report("local", STATUS)
    clock.advance(5.0)
    ready = replace(
        STATUS,
        loadtime=5.0,
        max_perf=50.0,
        new_load=30.0,
        rej_load=15.0,
        cur_load=20.0,
        cur_perf=10.0,
        num_requests_working=2,
    )
    engine.take_report("local", ready)
    clock.advance(5.0)
    engine.take_report("local", replace(ready, error_msg="CUDA error"))
    (worker,) = overview(engine)["workers"]
    assert [sample["state"] for sample in worker["samples"]] == ["loading", "ready", "error"]
    assert worker["samples"][1] == {
        "at": clock.wall() - 5.0,
        "state": "ready",
        "new_load": 30.0,
        "rej_load": 15.0,
        "cur_load": 20.0,
        "max_perf": 50.0,
        "cur_perf": 10.0,
        "working": 2,
    }
    assert (worker["status"], worker["error_msg"], worker["endpoint"]) == ("error", "CUDA error", "local")
    assert (worker["why"], worker["since"]) == ("CUDA error", clock.wall())
    assert worker["arrival_rate"] == 6.0  # twice 45 within 15 s
    assert "secret-token" not in str(overview(engine))


def test_only_samples_that_are_new_and_not_too_old() -> None:
    engine, clock = new_engine()
    engine.take_report("local", STATUS)
    clock.advance(WINDOW_S + 1)
    engine.take_report("local", STATUS)
    assert len(overview(engine)["workers"][0]["samples"]) == 1
    assert overview(engine, clock.wall())["workers"][0]["samples"] == []


def finish(engine: LocalEngine, *requests: FinishedRequest) -> None:
    engine.take_finished(DeleteRequests(7, "", requests))


def test_ended_requests_with_the_times_of_their_parts() -> None:
    engine, clock = new_engine()
    engine.take_report("local", READY)
    asked = engine.route(RouteQuery("nowhere", 5.0, 0))["request_idx"]
    engine.take_report("nowhere", replace(READY, id=7))
    clock.advance(2.0)
    engine.route(RouteQuery("nowhere", 5.0, asked))
    now = clock.wall()
    finish(
        engine,
        FinishedRequest(asked, True, "Success", now - 9.0, now - 6.0, now - 1.0),
        FinishedRequest(44, False, "Rejected", now - 2.0, 0.0, 0.0),
        FinishedRequest(45, False, "Error", now - 1.0, 0.0, 0.0),
    )
    routed, foreign, errored = overview(engine)["ended"]
    assert (routed["endpoint"], routed["cost"], routed["times_routed"]) == ("nowhere", 5.0, 1)
    assert [routed[f"{part}_s"] for part in ("waited", "queue", "work", "total")] == [2.0, 3.0, 5.0, 10.0]
    assert (routed["status"], routed["why"]) == ("Success", "")
    assert (foreign["endpoint"], foreign["cost"]) == ("nowhere", None)
    assert [foreign[f"{part}_s"] for part in ("waited", "queue", "work", "total")] == [None] * 4
    assert "429 or 503" in foreign["why"]
    causes = "the client's payload was refused, or the model server failed"
    assert errored["why"] == f"{causes}: the worker's log says which"


def test_a_request_that_no_worker_lists_is_given_up() -> None:
    """As after a 404, which the worker does not report, or a client that was killed."""
    engine, clock = new_engine()
    engine.take_report("local", READY)
    engine.route(RouteQuery("local", 5.0, 0))
    engine.route(RouteQuery("nowhere", 5.0, 0))
    assert (overview(engine)["open_requests"], overview(engine)["waiting_requests"]) == (2, 1)
    clock.advance(ABANDONED_S)
    engine.take_report("local", READY)
    shown = overview(engine)
    assert (shown["open_requests"], shown["waiting_requests"]) == (0, 0)
    assert [(e["request_idx"], e["worker_id"], e["status"], e["why"]) for e in shown["ended"]] == [
        (1, 7, "Given up", "worker 7 never reported it: it was not sent, or refused with 401 or 404"),
        (2, None, "Given up", "its client has not asked for a worker for 120 s"),
    ]


def test_a_request_given_up_too_early_is_listed_once_when_its_worker_reports_it() -> None:
    engine, clock = new_engine()
    engine.take_report("local", READY)
    uploaded = engine.route(RouteQuery("local", 5.0, 0))["request_idx"]
    other = engine.route(RouteQuery("local", 5.0, 0))["request_idx"]
    clock.advance(ABANDONED_S)
    engine.take_report("local", READY)
    assert [e["status"] for e in overview(engine)["ended"]] == ["Given up", "Given up"]
    now = clock.wall()
    finish(engine, FinishedRequest(uploaded, True, "Success", now - 3.0, now - 2.0, now - 1.0))
    shown = {(e["request_idx"], e["status"]) for e in overview(engine)["ended"]}
    assert shown == {(uploaded, "Success"), (other, "Given up")}


def test_a_request_of_a_dead_worker_is_given_up_at_once() -> None:
    engine, _ = new_engine()
    worker = engine.fleet.take_report("local", READY)
    engine.route(RouteQuery("local", 5.0, 0))
    engine.see(worker, unreachable="connection refused")
    shown = overview(engine)
    assert shown["open_requests"] == 0
    assert [e["why"] for e in shown["ended"]] == ["worker 7 can't be reached"]
    assert (shown["workers"][0]["status"], shown["plans"][0]["ready_capacity"]) == ("stopped", 0.0)


def test_events_are_those_of_all_endpoints_in_order() -> None:
    engine, clock = new_engine()
    for endpoint, worker_id in (("a", 1), ("b", 2), ("a", 3)):
        clock.advance(1.0)
        engine.take_report(endpoint, replace(STATUS, id=worker_id))
    assert [(e["endpoint"], e["text"]) for e in overview(engine)["events"]] == [
        ("a", "worker 1 is loading"),
        ("b", "worker 2 is loading"),
        ("a", "worker 3 is loading"),
    ]
    assert [e["endpoint"] for e in overview(engine, clock.wall() - 1.5)["events"]] == ["b", "a"]


def test_active_faults_are_named() -> None:
    engine, _ = new_engine()
    engine.faults.update({"reports": {"lose": True}, "route": {"delay_s": 1.0}})
    assert overview(engine)["faults"] == ["reports", "route"]


async def test_over_http() -> None:
    engine, _ = new_engine()
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/local/overview?since=yesterday") as answer:
            assert answer.status == 400
            assert "yesterday" in (await answer.json())["error"]
        async with http.get(url + "/local/overview") as answer:
            assert (await answer.json())["workers"] == []
        async with http.get(url + "/") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            assert "default-src 'none'; script-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["page.js", "series.js", "page.css", "uplot.min.js", "uplot.min.css"])
async def test_the_page_loads_only_its_own_files(name: str) -> None:
    engine, _ = new_engine()
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/") as answer:
            page = await answer.text()
        assert f"/page/{name}" in page
        assert "//" not in page.replace("<!doctype html>", "")
        async with http.get(f"{url}/page/{name}") as answer:
            assert answer.status == 200
