"""Endpoints, workergroups, logs and plans over HTTP, as Vast.ai's client requests them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from lib.local.engine import LocalEngine
from lib.local.engine_logs import LOG_LEVELS, MAX_LINES
from lib.local.messages import RouteQuery
from lib.local.serving import serve_engine
from lib.wire import DeleteRequests, FinishedRequest
from tests.fakes.reports import READY
from tests.manual_clock import ManualClock
from tests.system import engine_key

ENDPOINTS = "/api/v0/endptjobs/"
GROUPS = "/api/v0/workergroups/"
DEFAULTS = {"min_load": 10.0, "target_util": 0.9, "cold_mult": 2.5, "cold_workers": 5, "max_workers": 20}


@dataclass
class Console:
    """An engine on a socket, its manual clock, and a client with an API key."""

    engine: LocalEngine
    clock: ManualClock
    url: str
    http: aiohttp.ClientSession

    async def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = "any", status: int = 200
    ) -> Any:
        """Send a request, check the answer's status, return its JSON; a `bytes` body is sent unchanged."""
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        headers = {"Content-Type": "application/json", **authorization}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.http.request(method, self.url + path, data=data, headers=headers) as answer:
            result = await answer.json()
            assert answer.status == status, result
            return result

    async def refused(self, method: str, path: str, body: object, status: int = 400, code: str = "") -> str:
        """Check that a request is refused in the console's format and changes nothing; return the message."""
        before = self.tables()
        result = await self.ask(method, path, body, status=status)
        assert sorted(result) == ["error", "msg", "success"]
        assert result["success"] is False
        assert result["error"] == (code or "invalid_args")
        assert self.tables() == before
        return result["msg"]

    def tables(self) -> tuple[object, object]:
        return dict(self.engine.groups.endpoints), dict(self.engine.groups.workergroups)


@asynccontextmanager
async def running_console(**options: Any) -> AsyncGenerator[Console, None]:
    clock = ManualClock()
    engine = LocalEngine(clock=clock, key=engine_key(), **options)
    async with serve_engine(engine) as url, aiohttp.ClientSession() as http:
        yield Console(engine, clock, url, http)


@pytest.fixture
async def console() -> AsyncGenerator[Console, None]:
    async with running_console() as console:
        yield console


# Endpoints


async def test_an_engine_starts_with_one_endpoint(console: Console) -> None:
    result = await console.ask("GET", ENDPOINTS + "?client_id=me&api_key=any", key=None)
    assert result["success"] is True
    (endpoint,) = result["results"]
    assert {name: endpoint[name] for name in DEFAULTS} == DEFAULTS
    assert endpoint["id"] == 1
    assert endpoint["endpoint_name"] == "local"
    assert endpoint["api_key"] == "local"
    assert endpoint["user_id"] == 1
    assert endpoint["created_at"] == console.clock.wall()
    assert await console.ask("GET", ENDPOINTS + "1/") == {"success": True, "result": endpoint}


async def test_an_endpoint_is_created_changed_and_removed(console: Console) -> None:
    body = {"endpoint_name": "chat", "min_load": 100, "cold_workers": None, "endpoint_state": "active"}
    assert await console.ask("POST", ENDPOINTS, body) == {"success": True, "result": 2}
    changed = await console.ask("PUT", ENDPOINTS + "2/", {"max_workers": 3, "target_util": None})
    assert changed["success"] is True
    one = (await console.ask("GET", ENDPOINTS + "2/"))["result"]
    assert one == changed["result"]
    assert {name: one[name] for name in DEFAULTS} == {**DEFAULTS, "min_load": 100, "max_workers": 3}
    await console.ask("POST", GROUPS, {"endpoint_name": "chat", "template_hash": "abc"})
    assert await console.ask("DELETE", ENDPOINTS + "2/", {"endptjob_id": 2}) == {"success": True}
    assert [e["id"] for e in (await console.ask("GET", ENDPOINTS))["results"]] == [1]
    assert (await console.ask("GET", GROUPS))["results"] == []
    assert await console.ask("POST", ENDPOINTS, body) == {"success": True, "result": 3}


async def test_the_engines_only_key_is_the_endpoints_key(console: Console) -> None:
    async with running_console(api_key="secret") as console:
        (endpoint,) = (await console.ask("GET", ENDPOINTS, key="secret"))["results"]
        assert endpoint["api_key"] == "secret"
        refusal = await console.ask("GET", ENDPOINTS, key="other", status=401)
        assert refusal == {"success": False, "error": "auth_error", "msg": "wrong API key"}


@pytest.mark.parametrize(
    ("body", "message_part"),
    [
        ({}, "endpoint_name is missing"),
        ({"endpoint_name": ""}, "endpoint_name must be a name"),
        ({"endpoint_name": 5}, "endpoint_name must be a string"),
        ({"endpoint_name": "a", "min_load": "5"}, "min_load must be a number"),
        ({"endpoint_name": "a", "min_load": -1}, "min_load must be 0 or more"),
        ({"endpoint_name": "a", "min_load": 1e13}, "min_load must be 1e+12 or less"),
        ({"endpoint_name": "a", "target_util": 0}, "target_util must be 0.01 or more"),
        ({"endpoint_name": "a", "target_util": 1.1}, "target_util must be 1 or less"),
        ({"endpoint_name": "a", "cold_mult": True}, "cold_mult must be a number"),
        ({"endpoint_name": "a", "cold_workers": 1.5}, "cold_workers must be an integer"),
        ({"endpoint_name": "a", "max_workers": -1}, "max_workers must be 0 or more"),
        ({"endpoint_name": "a", "max_workers": 100_001}, "max_workers must be 100000 or less"),
        ({"endpoint_name": "a", "endpoint_state": "asleep"}, "endpoint_state must be one of active"),
        ({"endpoint_name": "a", "autoscaler_instance": "x" * 5000}, "autoscaler_instance is longer"),
        (b"", "endpoint_name is missing"),
        (b"{", "the body is not JSON"),
        (b"[1]", "the body is not a JSON object"),
        (b'{"min_load": NaN}', "NaN is not a JSON number"),
    ],
)
async def test_invalid_endpoints_are_refused(console: Console, body: object, message_part: str) -> None:
    assert message_part in await console.refused("POST", ENDPOINTS, body)
    if body not in (b"", {}) and "endpoint_name" not in message_part:
        changes = body if isinstance(body, bytes) else {**cast("dict[str, Any]", body), "endpoint_name": None}
        assert message_part in await console.refused("PUT", ENDPOINTS + "1/", changes)


async def test_every_wrong_field_is_named_at_once(console: Console) -> None:
    message = await console.refused("POST", ENDPOINTS, {"min_load": "x", "max_workers": "y"})
    assert all(name in message for name in ("endpoint_name", "min_load", "max_workers"))


async def test_names_are_unique_and_can_not_change(console: Console) -> None:
    message = await console.refused("POST", ENDPOINTS, {"endpoint_name": "local"}, 409, "already_exists")
    assert "'local' exists already" in message
    assert "can't be changed" in await console.refused("PUT", ENDPOINTS + "1/", {"endpoint_name": "other"})
    assert (await console.ask("PUT", ENDPOINTS + "1/", {"endpoint_name": "local"}))["success"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [ENDPOINTS, GROUPS])
async def test_unknown_ids(console: Console, method: str, path: str) -> None:
    assert "has the id 9" in await console.refused(method, f"{path}9/", {}, 404, "not_found")
    assert "'x', is not an integer" in await console.refused(method, f"{path}x/", {})
    assert "no API key" in (await console.ask(method, f"{path}9/", {}, key=None, status=401))["msg"]


async def test_unknown_keys_are_listed_as_ignored(console: Console) -> None:
    body = {"endpoint_name": "a", "max_wokers": 3, "client_id": "me", "autoscaler_instance": "prod"}
    assert await console.ask("POST", ENDPOINTS, body) == {
        "success": True,
        "result": 2,
        "ignored": ["max_wokers"],
    }


# Workergroups


async def test_a_workergroup_is_created_changed_and_removed(console: Console) -> None:
    body = {"endpoint_id": 1, "template_hash": "abc", "search_params": {"gpu_ram": {"gte": 24}}}
    assert await console.ask("POST", GROUPS, body) == {"success": True, "result": 1, "id": 1}
    (group,) = (await console.ask("GET", GROUPS))["results"]
    assert group == {
        "id": 1,
        "endpoint_id": 1,
        "endpoint_name": "local",
        "api_key": "local",
        "user_id": 1,
        "created_at": console.clock.wall(),
        "template_hash": "abc",
        "template_id": None,
        "search_params": {"gpu_ram": {"gte": 24}},
        "launch_args": "",
        "gpu_ram": 24.0,
        "test_workers": 3,
        "min_load": None,
        "target_util": None,
        "cold_mult": None,
    }
    await console.ask("PUT", GROUPS + "1/", {"gpu_ram": 80, "min_load": 50, "search_params": "num_gpus=2"})
    one = (await console.ask("GET", "/api/v0/autojobs/1/"))["result"]
    assert (one["gpu_ram"], one["min_load"], one["search_params"]) == (80, 50, "num_gpus=2")
    assert await console.ask("DELETE", GROUPS + "1/") == {"success": True}
    assert (await console.ask("GET", GROUPS))["results"] == []


@pytest.mark.parametrize(
    ("body", "message_part"),
    [
        ({"template_hash": "a"}, "endpoint_id or endpoint_name is needed"),
        ({"endpoint_id": 1}, "template_hash or template_id is needed"),
        ({"endpoint_id": 0, "template_id": 1}, "endpoint_id must be 1 or more"),
        ({"endpoint_id": "1", "template_id": 1}, "endpoint_id must be an integer"),
        ({"endpoint_id": 1, "template_id": "1"}, "template_id must be an integer"),
        ({"endpoint_id": 1, "template_id": 1, "gpu_ram": -1}, "gpu_ram must be 0 or more"),
        ({"endpoint_id": 1, "template_id": 1, "test_workers": 0.5}, "test_workers must be an integer"),
        ({"endpoint_id": 1, "template_id": 1, "target_util": 2}, "target_util must be 1 or less"),
        ({"endpoint_id": 1, "template_id": 1, "search_params": 5}, "search_params must be a string"),
        ({"endpoint_id": 1, "template_id": 1, "launch_args": []}, "launch_args must be a string"),
        (b"nonsense", "the body is not JSON"),
    ],
)
async def test_invalid_workergroups_are_refused(console: Console, body: object, message_part: str) -> None:
    assert message_part in await console.refused("POST", GROUPS, body)


async def test_a_workergroup_with_an_unknown_endpoint_or_with_two(console: Console) -> None:
    await console.ask("POST", ENDPOINTS, {"endpoint_name": "chat"})
    body = {"template_id": 1, "endpoint_id": 1}
    both = {**body, "endpoint_name": "chat"}
    assert "are different endpoints" in await console.refused("POST", GROUPS, both)
    unknown = {**body, "endpoint_name": "none"}
    assert "no endpoint has the name 'none'" in await console.refused(
        "POST", GROUPS, unknown, 404, "not_found"
    )
    unknown = {**body, "endpoint_id": 7}
    assert "no endpoint has the id 7" in await console.refused("POST", GROUPS, unknown, 404, "not_found")


async def test_a_path_with_an_endpoint_shows_only_that_endpoint(console: Console) -> None:
    chat = {"result": 2, "success": True}
    assert await console.ask("POST", "/e/chat" + ENDPOINTS, {}) == chat
    await console.ask("POST", GROUPS, {"endpoint_name": "local", "template_id": 1})
    assert (await console.ask("POST", "/e/chat" + GROUPS, {"template_id": 1}))["id"] == 2
    assert [e["id"] for e in (await console.ask("GET", "/e/chat" + ENDPOINTS))["results"]] == [2]
    assert [g["id"] for g in (await console.ask("GET", "/e/chat" + GROUPS))["results"]] == [2]
    for method in ("GET", "PUT", "DELETE"):
        await console.refused(method, "/e/chat" + ENDPOINTS + "1/", {}, 404, "not_found")
        await console.refused(method, "/e/chat" + GROUPS + "1/", {}, 404, "not_found")
    other = {"endpoint_name": "other"}
    assert "as in the path" in await console.refused("POST", "/e/chat" + ENDPOINTS, other)
    other = {"endpoint_name": "local", "template_id": 1}
    await console.refused("POST", "/e/chat" + GROUPS, other, 404, "not_found")
    for path in ("/get_autogroup_workers/", "/get_autogroup_logs/"):
        await console.ask("POST", "/e/chat" + path, {"id": 1}, status=404)


# Workers and logs


async def test_workers_belong_to_the_oldest_group_of_their_endpoint(console: Console) -> None:
    console.engine.take_report("local", READY)
    await console.ask("POST", GROUPS, {"endpoint_id": 1, "template_id": 1})
    (worker,) = await console.ask("POST", "/get_autogroup_workers/", {"id": 1})
    assert (worker["id"], worker["status"]) == (7, "ready")
    assert await console.ask("POST", "/get_autogroup_workers/", {"id": 2}) == []
    await console.ask("POST", "/get_autogroup_workers/", {"id": 3}, status=404)
    message = await console.ask("POST", "/get_autogroup_workers/", {}, status=400)
    assert message == {"error": "id is missing"}


async def test_a_removed_endpoint_forgets_its_workers_until_they_report(console: Console) -> None:
    console.engine.take_report("chat", READY)
    answer = console.engine.route(RouteQuery("chat", 5.0, 0))
    assert answer["request_idx"] in console.engine.open_requests
    await console.ask("DELETE", ENDPOINTS + "2/")
    assert console.engine.workers == {}
    assert len(console.engine.open_requests) == 0
    console.engine.take_report("chat", READY)
    assert [e["id"] for e in (await console.ask("GET", ENDPOINTS))["results"]] == [1, 3]


async def test_logs_at_four_levels(console: Console) -> None:
    console.engine.take_report("local", replace(READY, loadtime=0.0, mtoken="secret-token"))
    console.engine.take_report("local", replace(READY, error_msg="CUDA\nerror"))
    console.engine.take_report("local", READY)
    idx = console.engine.route(RouteQuery("local", 5.0, 0))["request_idx"]
    done = FinishedRequest(idx, True, "Success", 1.0, 2.0, 3.0)
    console.engine.take_finished(DeleteRequests(7, "", (done,)))
    console.engine.route(RouteQuery("local", 5.0, 0))
    console.clock.advance(31.0)
    result = await console.ask("POST", "/get_endpoint_logs/", {"id": 1})
    assert tuple(result) == LOG_LEVELS
    lines = {level: text.splitlines() for level, text in result.items()}
    states = [line.split(" ", 1)[1] for line in lines["info0"]]
    assert states == [
        "worker 7 is loading",
        "worker 7 is error: CUDA error",
        "worker 7 is ready",
    ]
    assert len(lines["debug"]) == 3
    assert "secret-token" not in str(result)
    assert [line.split(" ", 1)[1] for line in lines["trace"]] == [
        "request 1, cost 5: routed to worker 7, whose load is now 5",
        "request 1: Success at worker 7",
        "request 2, cost 5: routed to worker 7, whose load is now 5",
    ]
    assert len(console.engine.open_requests) == 0
    result = await console.ask("POST", "/get_autogroup_logs/", {"id": 1, "tail": 1})
    assert result["info0"].endswith("worker 7 is stopped: no report for 30 s")
    assert result["info1"].endswith("gave up 1 request(s) because worker 7 stopped reporting: 2")
    assert [text.count("\n") for text in result.values()] == [0, 0, 0, 0]
    assert set((await console.ask("POST", "/get_endpoint_logs/", {"id": 1, "tail": 0})).values()) == {""}


async def test_logs_are_bounded(console: Console) -> None:
    for _ in range(MAX_LINES + 5):
        console.engine.take_report("local", replace(READY, error_msg="x" * 10_000))
    result = await console.ask("POST", "/get_endpoint_logs/", {"id": 1})
    assert len(result["debug"].splitlines()) == MAX_LINES
    assert len(result["info0"].splitlines()) == 1
    assert len(result["info0"]) < 600


@pytest.mark.parametrize(
    ("body", "status", "message_part"),
    [
        ({}, 400, "id is missing"),
        ({"id": "1"}, 400, "id must be an integer"),
        ({"id": 9}, 404, "has the id 9"),
        ({"id": 1, "tail": -1}, 400, "tail must be 0 or more"),
        ({"id": 1, "tail": "all"}, 400, "tail must be an integer"),
        ([], 400, "not a JSON object"),
    ],
)
@pytest.mark.parametrize("path", ["/get_endpoint_logs/", "/get_autogroup_logs/"])
async def test_invalid_requests_for_logs(
    console: Console, path: str, body: object, status: int, message_part: str
) -> None:
    console.engine.take_report("local", READY)
    result = await console.ask("POST", path, body, status=status)
    assert list(result) == ["error"]
    assert message_part in result["error"]


@pytest.mark.parametrize(
    "path", ["/get_endpoint_logs/", "/get_autogroup_logs/", "/get_autogroup_workers/", "/update_workers/"]
)
async def test_no_key_is_401(console: Console, path: str) -> None:
    assert "no API key" in str(await console.ask("POST", path, {"id": 1}, key=None, status=401))


# Updates


@asynccontextmanager
async def fake_updatable_worker(status: int) -> AsyncGenerator[tuple[str, list[str]], None]:
    """A worker that answers update requests with `status`; yields its URL and the tokens it received."""
    asked: list[str] = []

    async def update(request: web.Request) -> web.Response:
        asked.append(request.headers["Authorization"])
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/pyworker/update", update)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", asked
    finally:
        await runner.cleanup()


async def test_workers_are_asked_to_update_with_their_token(console: Console) -> None:
    async with fake_updatable_worker(200) as (willing, asked), fake_updatable_worker(401) as (unwilling, _):
        console.engine.take_report("local", replace(READY, id=4, url="http://127.0.0.1:9"))
        console.clock.advance(31.0)
        console.engine.take_report("local", replace(READY, url=willing, mtoken="token"))
        console.engine.take_report("local", replace(READY, id=2, url=unwilling, mtoken="other"))
        console.engine.take_report("local", replace(READY, id=3, url=unwilling))
        result = await console.ask("POST", "/update_workers/", {"workergroup_id": 1})
    assert result == {
        "success": True,
        "result": {
            "4": "not asked: it is stopped",
            "7": "asked",
            "2": "refused: HTTP 401",
            "3": "refused: it has no MASTER_TOKEN",
        },
    }
    assert asked == ["Bearer token"]


async def test_an_unreachable_worker_is_reported(console: Console) -> None:
    async with fake_updatable_worker(200) as (gone, _):
        pass
    console.engine.take_report("local", replace(READY, url=gone))
    result = await console.ask("POST", "/update_workers/", {"workergroup_id": 1})
    assert result["result"]["7"].startswith("not reached: ")
    cancelled = await console.ask("POST", "/update_workers/", {"workergroup_id": 1, "cancel_update": True})
    assert "nothing to cancel" in cancelled["msg"]


@pytest.mark.parametrize(
    ("body", "status", "message_part"),
    [
        ({}, 400, "workergroup_id is missing"),
        ({"workergroup_id": True}, 400, "workergroup_id must be an integer"),
        ({"workergroup_id": 5}, 404, "no workergroup has the id 5"),
        ({"workergroup_id": 5, "cancel_update": 1}, 400, "cancel_update must be true or false"),
    ],
)
async def test_invalid_update_requests(
    console: Console, body: object, status: int, message_part: str
) -> None:
    code = "not_found" if status == 404 else ""
    assert message_part in await console.refused("POST", "/update_workers/", body, status, code)


# Plans


async def test_the_plan_is_shown(console: Console) -> None:
    console.engine.take_report("local", replace(READY, new_load=300.0, max_perf=10.0))
    (plan,) = (await console.ask("GET", "/local/plan", key=None))["plans"]
    assert (plan["load"], plan["workers_ready"], plan["workers_ready_wanted"]) == (20.0, 1, 3)
    await console.ask("PUT", GROUPS + "1/", {"min_load": 900})
    await console.ask("PUT", ENDPOINTS + "1/", {"max_workers": 50})
    (plan,) = (await console.ask("GET", "/local/plan"))["plans"]
    assert (plan["target_capacity"], plan["workers_ready_wanted"]) == (1000.0, 50)


async def test_a_deployment_exists_for_each_endpoint(console: Console) -> None:
    """The SDK's client calls the workers that there are; it has nothing to upload."""
    path, config = "/api/v0/deployments/", {"name": "mine", "image": "any"}
    await console.refused("PUT", path, b"[]")
    made = await console.ask("PUT", path, config)
    assert made == {"success": True, "action": "exists", "deployment_id": 1, "endpoint_id": 1}
    assert console.engine.groups.endpoint(1).name == "local"
    assert await console.ask("PUT", path, config) == made
    assert await console.ask("POST", "/api/v0/deployment/1/heartbeat/") == {"success": True}

    other = await console.ask("PUT", f"/e/other{path}", config)
    assert console.engine.groups.endpoint(other["endpoint_id"]).name == "other"
    await console.ask("POST", f"/e/local/api/v0/deployment/{other['deployment_id']}/heartbeat/", status=404)
