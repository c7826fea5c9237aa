"""A real Prometheus with the files of ops/ scrapes a worker, and answers each query of them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import yaml

from lib.local.processes import free_port
from tests.fakes.process import RunningProcess
from tests.guard import GUARD_S
from tests.ops.queries import ALERTS, OPS, queries
from tests.system import System, with_worker_task

pytestmark = [
    pytest.mark.one_python,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is missing: it is Debian's package of that name",
    ),
]

INTERVAL = "100ms"


@dataclass
class Prometheus:
    """A running Prometheus; `url` is that of its API."""

    url: str
    http: aiohttp.ClientSession

    async def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API; raises `AssertionError` for an error."""
        async with self.http.get(f"{self.url}/api/v1/{path}", params=parameters) as answer:
            content = await answer.json()
        assert content["status"] == "success", content
        return content["data"]

    async def series(self, query: str) -> list[dict[str, Any]]:
        """The series that `query` gives now."""
        return (await self.get("query", query=query))["result"]

    async def until(self, query: str) -> list[dict[str, Any]]:
        """Return what `query` gives, once it gives a series."""
        with anyio.fail_after(GUARD_S):
            while not (found := await self.series(query)):
                pass
            return found


@asynccontextmanager
async def prometheus(system: System, folder: Path) -> AsyncGenerator[Prometheus, None]:
    """Run Prometheus with the configuration of ops/, which scrapes the worker often."""
    config = yaml.safe_load((OPS / "prometheus.yaml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), INTERVAL)
    target = system.loopback_url.removeprefix("http://")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    shutil.copy(OPS / "alerts.yaml", folder)
    with free_port() as port:
        process = await asyncio.create_subprocess_exec(
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            await RunningProcess(process).until("Server is ready to receive web requests.")
            yield Prometheus(f"http://127.0.0.1:{port}", system.http)
        finally:
            process.kill()
            await process.wait()


async def test_it_scrapes_a_worker_and_answers_every_query(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, prometheus(system, tmp_path) as server:
        await system.call("/echo", 3.0)
        await system.call("/error500", 4.0)
        await server.until('rate(pyworker_http_requests_total{route="POST /error500", status="500"}[1m])')
        assert [s["value"][1] for s in await server.series('up{job="pyworker"}')] == ["1"]
        empty = [query for query in queries() if not await server.series(query)]
        # Here there is no GPU, and not everything that is compared is so.
        assert [query for query in empty if "gpu" not in query and not re.search("[<>]|==", query)] == []


async def test_the_rules_work_on_a_worker_that_is_errored(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system, prometheus(system, tmp_path) as server:
        assert system.backend is not None
        system.backend.backend_errored("the model server is broken")
        (pending,) = await server.until('ALERTS{alertname="PyWorkerErrored", alertstate="pending"}')
        assert pending["metric"]["state"] == "errored"
        (group,) = (await server.get("rules"))["groups"]
        assert [rule["name"] for rule in group["rules"]] == [alert["alert"] for alert in ALERTS]
        assert {rule["health"] for rule in group["rules"]} == {"ok"}
        assert {alert["labels"]["alertname"] for alert in (await server.get("alerts"))["alerts"]} == {
            "PyWorkerErrored"
        }
