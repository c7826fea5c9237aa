"""The data of the engine's page, and the page's files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from lib.local.engine import LocalEngine
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
        "now": clock.wall(),
        "plans": [plan],
        "window_s": WINDOW_S,
        "open_requests": 0,
        "workers": [],
        "finished": [],
    }


def test_a_worker_and_the_history_of_its_states() -> None:
    engine, clock = new_engine()
    engine.take_report("local", STATUS)
    clock.advance(5.0)
    ready = replace(STATUS, loadtime=5.0, max_perf=50.0, cur_load=20.0, cur_perf=10.0, num_requests_working=2)
    engine.take_report("local", ready)
    clock.advance(5.0)
    engine.take_report("local", replace(ready, error_msg="CUDA error"))
    (worker,) = overview(engine)["workers"]
    assert [sample["state"] for sample in worker["samples"]] == ["loading", "ready", "error"]
    assert worker["samples"][1] == {
        "at": clock.wall() - 5.0,
        "state": "ready",
        "cur_load": 20.0,
        "max_perf": 50.0,
        "cur_perf": 10.0,
        "working": 2,
    }
    assert (worker["status"], worker["error_msg"], worker["endpoint"]) == ("error", "CUDA error", "local")
    assert "secret-token" not in str(overview(engine))


def test_only_samples_that_are_new_and_not_too_old() -> None:
    engine, clock = new_engine()
    engine.take_report("local", STATUS)
    clock.advance(WINDOW_S + 1)
    engine.take_report("local", STATUS)
    assert len(overview(engine)["workers"][0]["samples"]) == 1
    assert overview(engine, clock.wall())["workers"][0]["samples"] == []


def test_finished_requests_with_their_times() -> None:
    engine, clock = new_engine()
    now = clock.wall()
    finished = FinishedRequest(3, True, "Success", now - 9.0, now - 6.0, now - 1.0)
    rejected = FinishedRequest(4, False, "Rejected", now - 2.0, 0.0, 0.0)
    engine.take_finished(DeleteRequests(7, "", (finished, rejected)))
    assert [(f["request_idx"], f["queue_s"], f["total_s"]) for f in overview(engine)["finished"]] == [
        (3, 3.0, 8.0),
        (4, 0.0, 0.0),
    ]


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


@pytest.mark.parametrize("name", ["page.js", "page.css", "uplot.min.js", "uplot.min.css"])
async def test_the_page_loads_only_its_own_files(name: str) -> None:
    engine, _ = new_engine()
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        async with http.get(url + "/") as answer:
            page = await answer.text()
        assert f"/page/{name}" in page
        assert "//" not in page.replace("<!doctype html>", "")
        async with http.get(f"{url}/page/{name}") as answer:
            assert answer.status == 200
