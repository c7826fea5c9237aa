"""Checks docs/local-engine.md against the local engine: routes, parameters, states and faults."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import aiohttp
import pytest

from lib.local import autoscale
from lib.local.api import EngineApi
from lib.local.docs_page import RELOAD_S
from lib.local.engine import LocalEngine
from lib.local.engine_logs import LOG_LEVELS
from lib.local.faults import FAULT_KINDS, Fault
from lib.local.fleet import ARRIVAL_WINDOW_S, SILENCE_S, WORKER_STATES
from lib.local.groups import Scaling, Workergroup
from lib.local.hello_world import hello_world
from lib.local.local_worker_env import WORKER_ID
from lib.local.open_requests import ABANDONED_S
from lib.local.serving import serve_engine
from lib.local.tried_requests import read_tried
from tests.docs.blocks import codes, document, table
from tests.fakes.command import done
from tests.system import GUARD_S, engine_key
from tests.workers.worker_system import worker_system

DOC = document("local-engine")
MANAGING = DOC.section("## Managing endpoints and workergroups")


def defaults(rows: list[list[str]]) -> dict[str, str]:
    """The default of each name in the first cell of the rows."""
    return {name: row[1] for row in rows for name in codes(row[0])}


def test_parameters_and_their_defaults() -> None:
    documented = defaults(table(MANAGING, 1))
    assert documented.pop("endpoint_name") == "required"
    assert {name: float(value) for name, value in documented.items()} == dataclasses.asdict(Scaling())
    documented, group = defaults(table(MANAGING, 2)), Workergroup(0, 0, 0.0)
    assert (float(documented["test_workers"]), float(documented["gpu_ram"])) == (
        group.test_workers,
        group.gpu_ram,
    )
    assert {name for name, value in documented.items() if value == "the endpoint's"} == {
        name for name in documented if name in dataclasses.asdict(Scaling())
    }


def test_a_request_of_the_page_of_an_api() -> None:
    section = DOC.section("### Trying a route")
    (block,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    tried = read_tried(block.encode())
    assert tried.target() == "/voices/alto?limit=3"
    names = {field.name for field in dataclasses.fields(tried)}
    assert set(json.loads(block)) == names
    assert {name for row in table(section) for name in codes(row[0])} == names - {"endpoint", "api_key"}
    assert f"every {RELOAD_S} s" in DOC.section("## The API of the workers")


def test_states_levels_and_times() -> None:
    assert [codes(row[0])[0] for row in table(DOC.text)] == list(WORKER_STATES)
    assert f"no report for {SILENCE_S:g} s" in DOC.text
    assert f"if for {ABANDONED_S:g} s no worker" in DOC.prose
    assert f"within the last {ARRIVAL_WINDOW_S:g} s" in DOC.text
    assert f"too many for {autoscale.SCALE_DOWN_DELAY_S:g} s" in DOC.text
    assert f"makes {autoscale.TOKENS_PER_S} tokens a second" in DOC.prose
    logs = next(row[1] for row in table(MANAGING) if "logs" in row[0])
    assert [level for level in LOG_LEVELS if f"`{level}`" in logs] == list(LOG_LEVELS)


def test_every_documented_route_exists() -> None:
    app = EngineApi(LocalEngine(key=engine_key())).app()
    known = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    for row in table(MANAGING):
        words = codes(row[0])
        methods = [word for word in words if word.isupper()]
        paths = [word for word in words if word.startswith("/")]
        assert methods
        assert paths
        assert {(m, p) for m in methods for p in paths} <= known
    for method, path in re.findall(r"`(GET|POST) (/[a-z_/.0-9]+)", DOC.prose):
        assert (method, path) in known


async def test_faults() -> None:
    section = DOC.section("## Faults")
    assert {codes(row[0])[0] for row in table(section)} == {f.name for f in dataclasses.fields(Fault)}
    assert all(f"`{kind}`" in section for kind in FAULT_KINDS)
    engine = LocalEngine(key=engine_key())
    async with (
        serve_engine(engine) as url,
        aiohttp.ClientSession() as http,
        http.post(url + "/local/faults", json=DOC.sample("faults")) as answer,
    ):
        assert answer.status == 200
    assert (engine.faults.reports, engine.faults.route) == (Fault(lose=True, times=3), Fault(delay_s=2.5))


async def test_vastais_client(tmp_path: Path) -> None:
    pytest.importorskip("vastai", reason="Vast.ai's client, the package vastai, is not installed")
    DOC.write_files(tmp_path)
    engine = LocalEngine(key=engine_key())
    async with serve_engine(engine) as url, hello_world(url, os.environ, tmp_path, 5000):
        await engine.wait_for(lambda: engine.worker(WORKER_ID).state == "ready", GUARD_S)
        finished = await done("python", "official.py", url, cwd=tmp_path)
    assert "'tokens': 200" in finished.output, finished.errors


async def test_openais_client(tmp_path: Path) -> None:
    async with worker_system(tmp_path, "openai") as here:
        client, documented_url = DOC.block("python", "openai"), "http://127.0.0.1:8081"
        assert client.count(documented_url) == 1
        client = client.replace(documented_url, here.system.engine_url)
        finished = await done("python", "-c", client, cwd=tmp_path)
    assert (finished.status, finished.output) == (0, " word" * 50), finished.errors
