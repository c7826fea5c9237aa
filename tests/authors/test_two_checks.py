"""A worker with two handlers whose health checks differ: both are watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.worker import Setup
from tests.system import engine_and_model_server, worker_process


@pytest.mark.parametrize("declared", ["", "true"])
async def test_both_health_checks_are_watched(tmp_path: Path, declared: str) -> None:
    async with engine_and_model_server(tmp_path) as system:
        module, env = "tests.authors.two_checks", {"DECLARED": declared}
        async with worker_process(system, tmp_path, Setup(), env, module=module) as worker:
            system.worker = worker
            await system.ready()
            asked = {r.path for r in system.model.requests if r.method == "GET"}
            assert "/echo" in asked
            assert system.model.health_checks > 0
