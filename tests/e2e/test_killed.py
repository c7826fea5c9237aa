"""A worker that is killed by SIGKILL and started again: nothing that it had not reported is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from lib.local.faults import Fault
from tests.endurance.kills import kill_at_random_points
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import (
    System,
    WorkerProcess,
    engine_and_model_server,
    restarted,
    with_worker_process,
    worker_process,
)

SETUP = Setup(health="/health", handler={"max_concurrency": 8})


def statuses(system: System) -> list[str]:
    return sorted(c.request.status for c in system.engine.finished)


def calls(system: System, path: str) -> list[Any]:
    """The JSON of each request that the model server has received for `path`."""
    return [request.json() for request in system.model.requests if request.path == path]


async def received(system: System, path: str) -> None:
    await system.model.until(lambda: bool(calls(system, path)))


async def killed(worker: WorkerProcess | None) -> None:
    assert worker is not None
    worker.process.kill()
    await worker.exit_status()


def journals(folder: Path) -> list[os.stat_result]:
    return [path.stat() for path in folder.rglob("*journal*")]


async def test_what_the_engine_has_not_acknowledged_is_told_after_the_restart(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system:
        for _ in range(2):
            assert (await system.call("/echo", 3.0))[0] == 200
        await system.reported(served=6.0)
        await system.engine.wait_for(lambda: len(system.engine.finished) == 2, GUARD_S)
        system.engine.faults.reports = system.engine.faults.completions = Fault(refuse=True)
        for _ in range(3):
            assert (await system.call("/echo", 10.0))[0] == 200
        assert (await system.call("/error500", 20.0))[0] == 500
        held = asyncio.ensure_future(system.call("/held", 40.0))
        await received(system, "/held")
        await killed(system.worker)
        await asyncio.wait({held})
        system.engine.faults.clear()
        async with restarted(system, tmp_path, SETUP):
            await system.engine.wait_for(lambda: len(system.engine.finished) >= 7, GUARD_S)
            await system.reported(served=36.0)
            assert statuses(system) == ["Error"] * 2 + ["Success"] * 5
            totals = system.totals
            assert (totals.new_load, totals.cur_perf, totals.rej_load) == (96.0, 36.0, 0.0)


async def test_a_used_signature_stays_used(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system:
        envelope = system.envelope()
        async with system.http.post(system.url + "/echo", json=envelope) as answer:
            assert answer.status == 200
        await killed(system.worker)
        async with restarted(system, tmp_path, SETUP):
            async with system.http.post(system.url + "/echo", json=envelope) as answer:
                assert (answer.status, (await answer.json())["error"]) == (
                    401,
                    "replay: this signature was used before, or is too old",
                )
            assert (await system.call("/echo"))[0] == 200


async def test_the_model_server_is_told_of_the_ends_of_open_sessions(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system:
        terms = {"on_close_route": "/accepted", "on_close_payload": {"n": 1}}
        body = {"auth_data": (auth := system.auth(50.0)), "payload": terms}
        async with system.http.post(system.url + "/session/create", json=body) as answer:
            session_id = (await answer.json())["session_id"]
        await killed(system.worker)
        async with restarted(system, tmp_path, SETUP) as second:
            await received(system, "/accepted")
            assert calls(system, "/accepted") == [{"n": 1, "session_id": session_id}]
            await system.engine.wait_for(lambda: statuses(system) == ["Error"], GUARD_S)
            inside = {**system.envelope(), "auth_data": auth, "session_id": session_id}
            async with system.http.post(system.url + "/echo", json=inside) as answer:
                assert answer.status == 410
            for _ in range(2):  # by then, it has also read the model server's answer to that call
                assert (await system.call("/echo"))[0] == 200
            await killed(second)
        # It was told once.
        async with restarted(system, tmp_path, SETUP):
            assert len(calls(system, "/accepted")) == 1


async def test_a_second_worker_on_the_port_leaves_the_journal_alone(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, SETUP) as system:
        (before,) = journals(tmp_path)
        async with worker_process(system, tmp_path, SETUP, name="second.log") as second:
            assert await second.exit_status() == 3
        (after,) = journals(tmp_path)
        assert (after.st_ino, after.st_mode & 0o777) == (before.st_ino, 0o600)


async def test_without_a_folder_there_is_none_and_one_line_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    async with with_worker_process(tmp_path, SETUP, {"WORKSPACE_DIR": str(missing)}) as system:
        assert (await system.call("/echo"))[0] == 200
        assert system.worker is not None
        lines = [line for line in system.worker.output().splitlines() if "journal" in line]
        assert len(lines) == 1
        assert str(missing) in lines[0]
        assert " INFO " in lines[0]
    assert journals(tmp_path) == []


async def test_totals_are_right_whenever_it_is_killed(tmp_path: Path) -> None:
    async with engine_and_model_server(tmp_path) as system:
        result = await kill_at_random_points(system, tmp_path, kills=4, seed=1)
    assert result.kills == 4
    assert min(result.statuses[status] for status in ("Success", "Error")) > 0
