"""What the engine and the author are told about a model that does not get loaded."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.worker import READY_LINE, Setup
from tests.system import with_worker_task


async def test_a_model_whose_health_check_fails_for_ever_is_an_error_after_the_limit(tmp_path: Path) -> None:
    log = tmp_path / "loaded.log"
    log.write_text(READY_LINE + "\n")
    setup = Setup(log=str(log), health="/health")
    async with with_worker_task(tmp_path, setup, wait=False, model_load_timeout_s=0.2) as system:
        assert system.running is not None
        system.model.health_status = 503
        await system.model.until(lambda: system.model.health_checks > 0)
        text = await system.errored()
        assert text.startswith("the model is not loaded after 0.2 s (MODEL_LOAD_TIMEOUT_S): ")
        assert system.running.readiness.state.value == "errored"
        system.model.health_status = 200
        await system.ready()
        await system.reported()
        assert system.running.readiness.state.value == "ready"
