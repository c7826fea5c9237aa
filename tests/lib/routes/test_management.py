"""The management routes of both ports (docs/protocol.md, "Management routes")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lib.routes.management import without
from tests.fakes.raw_client import connected
from tests.fakes.worker import ERROR_LINE, READY_LINE, Setup
from tests.system import MASTER_TOKEN, System, with_worker_task


async def get(system: System, url: str) -> tuple[int, str]:
    async with system.http.get(url) as answer:
        return answer.status, await answer.text()


async def update(system: System, authorization: str | None) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with system.http.post(system.url + "/pyworker/update", headers=headers) as answer:
        return answer.status


async def test_liveness_and_readiness(tmp_path: Path) -> None:
    setup = Setup(log=str(tmp_path / "model.log"))
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        for base in (system.url, system.loopback_url):
            assert await get(system, base + "/ping") == (200, "pong")
            assert (await get(system, base + "/healthz"))[0] == 200
            assert await get(system, base + "/readyz") == (503, "loading")
        system.write_log()
        await system.ready()
        assert await get(system, system.url + "/readyz") == (200, "ready")
        system.write_log(ERROR_LINE + "\n")
        await system.errored()
        assert await get(system, system.url + "/readyz") == (503, "errored")
        assert (await get(system, system.url + "/healthz"))[0] == 200


async def test_metrics_and_status_are_on_the_loopback_port_only(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        for path in ("/metrics", "/status"):
            assert (await get(system, system.url + path))[0] == 404
            assert (await get(system, system.loopback_url + path))[0] == 200


async def test_status_of_a_worker_that_serves(tmp_path: Path) -> None:
    setup = Setup(log=str(tmp_path / "model.log"))
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        system.write_log(f"first\n{READY_LINE} now\n")
        await system.ready()
        assert (await system.call("/echo", 3.0))[0] == 200
        await system.reported(served=3.0)
        await system.engine.wait_for(lambda: system.engine.finished)
        async with system.http.get(system.loopback_url + "/status") as answer:
            text = await answer.text()
            status: Any = await answer.json()
    assert (status["state"], status["error_msg"], status["url"]) == ("ready", "", system.url)
    assert status["loadtime_s"] > 0
    assert [c["state"] for c in status["timeline"]][-1] == "ready"
    assert status["log"]["lines"] == 2
    assert status["log"]["rules"][0] == {
        "action": "ModelLoaded",
        "text": READY_LINE,
        "matches": 1,
        "last_line": f"{READY_LINE} now",
    }
    assert (status["requests"]["received"], status["requests"]["served"]) == (1, 1)
    assert status["waiting_for"] == []
    assert status["model_server"] == {"url": system.model.url, "reachable": True}
    assert "POST /echo" in status["routes"]
    assert (status["log"]["trouble"], status["log"]["awaiting_connection"], status["health"]) == (
        None,
        False,
        None,
    )
    assert [t["route"] for t in status["slowest"]] == ["POST /echo"]
    assert status["load"] == {"current": 0.0, "served": 3.0, "rejected": 0.0}
    assert status["queue"] == {"waiting": 0, "working": 0}
    assert sum(r["message"].get("cur_perf", 0.0) for r in status["reports"]) == 3.0
    assert any(r["path"] == "/delete_requests/" for r in status["reports"])
    assert all(r["answer"].startswith("200") for r in status["reports"] if r["delivered"])
    assert MASTER_TOKEN not in text


async def test_status_of_a_worker_that_is_not_ready(tmp_path: Path) -> None:
    setup = Setup(log=str(tmp_path / "model.log"), health="/error500", benchmark="/echo")
    async with with_worker_task(tmp_path, setup, wait=False) as system:
        await system.model.until(
            lambda: len(system.model.requests) > 1
        )  # the result of the first check is known
        async with system.http.get(system.loopback_url + "/status") as answer:
            status: Any = await answer.json()
    assert status["waiting_for"][:3] == ["health", "log", "benchmark"]
    assert status["log"]["trouble"] == "does not exist"
    assert status["health"]["url"] == system.model.url + "/error500"
    assert status["health"]["last_problem"] == "health check answered 500"


async def test_metrics_are_prometheus_text(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        await system.call("/echo", 3.0)
        await system.call("/error500", 4.0)
        async with system.http.get(system.loopback_url + "/metrics") as answer:
            assert answer.content_type == "text/plain"
            lines = (await answer.text()).splitlines()
    for line in (
        'pyworker_requests_total{outcome="served"} 1.0',
        'pyworker_requests_total{outcome="errored"} 1.0',
        'pyworker_requests_total{outcome="rejected"} 0.0',
        'pyworker_state{state="ready"} 1.0',
        'pyworker_state{state="errored"} 0.0',
        "pyworker_requests_received_total 2.0",
        "pyworker_workload_served_total 3.0",
        "pyworker_requests_in_flight 0.0",
        "pyworker_workload_per_second_max 100.0",
        "pyworker_workload_per_second_observed 0.0",
    ):
        assert line in lines


async def test_an_update_needs_the_master_token(tmp_path: Path) -> None:
    flag = tmp_path / ".force_update"
    async with with_worker_task(tmp_path, force_update_file=flag) as system:
        for wrong in (
            None,
            "",
            "Bearer",
            "Bearer ",
            "wrong",
            f"Bearer {MASTER_TOKEN}x",
            f"Basic {MASTER_TOKEN}",
        ):
            assert await update(system, wrong) == 401
        assert not flag.exists()
        for right in (f"Bearer {MASTER_TOKEN}", MASTER_TOKEN, f"bearer  {MASTER_TOKEN}"):
            flag.unlink(missing_ok=True)
            assert await update(system, right) == 200
            assert flag.exists()


async def test_a_token_that_is_not_text_is_refused(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, connected(system.url) as client:
        await client.post("/pyworker/update", b"", {"Authorization": b"Bearer \xff\xfe"})
        assert (await client.answer())[0].status == 401


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer", "x"])
async def test_without_a_master_token_every_update_is_refused(tmp_path: Path, authorization: str) -> None:
    flag = tmp_path / ".force_update"
    async with with_worker_task(tmp_path, force_update_file=flag, master_token="") as system:
        assert await update(system, authorization) == 401
        assert not flag.exists()


async def test_an_update_whose_file_cannot_be_written_is_answered_500(tmp_path: Path) -> None:
    flag = tmp_path / "none" / ".force_update"
    async with with_worker_task(tmp_path, force_update_file=flag) as system:
        assert await update(system, MASTER_TOKEN) == 500


async def authors(request: web.Request) -> web.Response:
    return web.Response(text="author's")


@pytest.mark.parametrize(
    "route",
    [
        web.get("/ping", authors),
        web.route("*", "/ping", authors),
        web.head("/ping", authors),
        web.get("/ping", authors, allow_head=False),
    ],
)
def test_an_authors_route_takes_precedence(route: web.RouteDef) -> None:
    ours = [web.get("/ping", authors), web.get("/healthz", authors), web.post("/ping", authors)]
    app = web.Application()
    kept = without(ours, [route])
    app.add_routes([route, *kept])
    assert ours[0] not in kept
    assert ours[1] in kept
    assert (ours[2] in kept) is (route.method != "*")
