"""Mutated uploads (tests/endurance/fuzz_uploads.py): some of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endurance.fuzz_uploads import run_uploads


@pytest.mark.one_python
async def test_mutated_uploads_get_http_and_leave_nothing_behind(tmp_path: Path) -> None:
    findings, wrong = await run_uploads(tmp_path, 300, seed=1)
    assert (wrong, findings.malformed, findings.hung) == ([], [], [])
    assert min(findings.statuses[status] for status in (200, 400, 422)) > 0
