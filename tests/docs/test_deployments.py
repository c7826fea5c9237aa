"""Runs the deployment of docs/deployments.md, and its client."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import document
from tests.fakes.command import command, done

pytest.importorskip("vastai", reason="Vast.ai's SDK, the package vastai, is not installed")

DOC = document("deployments")
CHECK, SERVE, CALL = map(shlex.split, DOC.block("shell", "my_model").splitlines())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    DOC.write_files(tmp_path)
    return tmp_path


async def test_the_deployment_is_valid(folder: Path) -> None:
    ended = await done(*CHECK[1:], cwd=folder)
    assert "no problems, no warnings" in ended.output, ended.errors


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="the client of the SDK's deployments needs Python 3.12"
)
async def test_the_client_calls_the_deployment(folder: Path) -> None:
    async with command(*SERVE[1:], cwd=folder, env={"BENCHMARK_TARGET_S": "1"}) as local:
        await local.until("pyworker request /remote/repeat ")
        (engine,) = re.findall("engine +(http://.*)  stands in", local.output)
        called = await done(*CALL, cwd=folder, env={"ENGINE_URL": engine})
    assert called.output == "Alice was Alice was \n", called.errors
