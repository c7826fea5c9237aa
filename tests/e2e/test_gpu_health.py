"""Real workers with a stand-in for `pynvml`: a GPU that fails, and a machine without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from lib.gpu.xids import XIDS
from tests.fakes.worker import Setup
from tests.guard import GUARD_S
from tests.system import ROOT, System, with_worker_process, with_worker_task

LOST = f"GPU 0 (NVIDIA H100 80GB HBM3): XID 79: {XIDS[79].words}. {XIDS[79].advice}"
# Fails if it is imported by the thread of the event loop.
STAND_IN = """
import threading
assert threading.current_thread() is not threading.main_thread()
from tests.fakes.nvml import library
_library = library()
def __getattr__(name):
    return getattr(_library, name)
"""


def environment(tmp_path: Path, module: str = STAND_IN, **env: str) -> dict[str, str]:
    """The environment of a worker that imports `module` as `pynvml`, driven by the file `xid`."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "pynvml.py").write_text(module)
    return {"PYTHONPATH": f"{ROOT}:{folder}", "FAKE_XID_FILE": str(tmp_path / "xid"), **env}


def tell_xid(tmp_path: Path, xid: int) -> None:
    """Have the stand-in tell `xid`."""
    whole = tmp_path / "xid.part"
    whole.write_text(str(xid))
    whole.rename(tmp_path / "xid")


async def status_of(system: System) -> dict[str, Any]:
    async with system.http.get(system.loopback_url + "/status") as answer:
        return await answer.json()


async def metrics_of(system: System) -> str:
    async with system.http.get(system.loopback_url + "/metrics") as answer:
        return await answer.text()


async def status_when(system: System, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first `/status` for which `condition` holds."""
    with anyio.fail_after(GUARD_S):
        while True:
            status = await status_of(system)
            if condition(status):
                return status


def findings(status: dict[str, Any]) -> dict[str, str]:
    """The severity of each finding."""
    gpu: dict[str, Any] | None = status["gpu"]
    return {} if gpu is None else {f["text"]: f["severity"] for f in gpu["findings"]}


async def test_a_gpu_that_fails_is_an_error_until_a_restart(tmp_path: Path) -> None:
    setup = Setup(health="/health", log=str(tmp_path / "model.log"))
    env = environment(tmp_path)
    async with with_worker_process(tmp_path, setup, env, wait=False) as system:
        system.model.health_status = 503
        tell_xid(tmp_path, 79)
        assert await system.errored() == LOST
        # Neither a load line nor the health check that succeeds, nor requests, clear it.
        system.model.health_status = 200
        system.write_log()
        status = await status_when(system, lambda s: not s["waiting_for"])
        assert not status["health"]["last_problem"]
        assert (await system.call("/echo"))[0] == 200
        await system.reported(served=1.0, error_msg=LOST)
        status = await status_of(system)
        assert (status["state"], status["error_msg"]) == ("errored", LOST)
        assert findings(status) == {LOST: "error"}
        (gpu,) = status["gpu"]["gpus"]
        assert (gpu["utilization"], gpu["xid_events"]) == (0.98, {"79": 1})
        text, labels = await metrics_of(system), 'gpu="0",name="NVIDIA H100 80GB HBM3"'
        assert f'pyworker_gpu_xid_events_total{{{labels},xid="79"}} 1.0' in text
        assert f"pyworker_gpu_failed{{{labels}}} 1.0" in text
        assert system.worker is not None
        system.worker.terminate()
        assert await system.worker.exit_status() == 0
        assert f"ERROR   lib.gpu.health: {LOST}" in system.worker.output()


async def test_an_application_that_fails_is_a_warning(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path, env=environment(tmp_path)) as system:
        tell_xid(tmp_path, 31)
        status = await status_when(system, findings)
        assert list(findings(status).values()) == ["warning"]
        assert (status["state"], status["error_msg"]) == ("ready", "")


async def test_a_gpu_that_fails_is_shown_only_without_the_setting(tmp_path: Path) -> None:
    env = environment(tmp_path, GPU_HEALTH="false")
    async with with_worker_process(tmp_path, env=env) as system:
        tell_xid(tmp_path, 79)
        status = await status_when(system, findings)
        assert findings(status) == {LOST: "error"}
        assert (status["state"], status["error_msg"]) == ("ready", "")
        assert "pyworker_gpu_failed{" in await metrics_of(system)


@pytest.mark.parametrize(
    ("module", "env"),
    [
        (STAND_IN, {"FAKE_XID_FILE": ""}),
        ("raise ImportError('broken')", {}),
    ],
    ids=["no driver", "broken library"],
)
async def test_a_machine_without_a_gpu(tmp_path: Path, module: str, env: dict[str, str]) -> None:
    async with with_worker_process(tmp_path, env=environment(tmp_path, module, **env)) as system:
        status, text = await status_of(system), await metrics_of(system)
        assert (status["state"], status["gpu"]) == ("ready", None)
        assert "pyworker_gpu" not in text
        assert system.worker is not None
        assert "GPU" not in system.worker.output()


async def test_without_the_extra_there_is_no_task(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path) as system:
        assert system.running is not None
        assert "GPU health" not in system.running.tasks()
        assert (await status_of(system))["gpu"] is None
