"""A worker under random clients, faults and restarts (tests/endurance/stateful.py): some of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endurance.stateful import run_steps


@pytest.mark.one_python
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_invariants_hold_after_each_step(tmp_path: Path, seed: int) -> None:
    run = await run_steps(tmp_path, 100, seed)
    assert min(run.steps_done[step] for step in ("ask", "leave", "kill", "restart", "fail_engine")) > 0
