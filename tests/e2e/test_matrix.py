"""The fault matrix (tests/endurance/matrix.py): every case once, with one carrier."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endurance.matrix import Patience, Row, cases, run_cases
from tests.system import CARRIER

# Most cases are for a patient worker; in several tests they run beside each other.
PATIENT_PARTS = 4
PARTS: list[tuple[Patience, int, int]] = [
    ("impatient", 0, 1),
    ("hasty", 0, 1),
    *(("patient", part, PATIENT_PARTS) for part in range(PATIENT_PARTS)),
]


@pytest.mark.parametrize(("patience", "part", "parts"), PARTS)
async def test_no_case_hangs_a_client_miscounts_or_leaves_anything_behind(
    tmp_path: Path, patience: Patience, part: int, parts: int
) -> None:
    chosen = [case for case in cases() if not case.is_long and case.patience == patience][part::parts]
    rows: list[Row] = []
    await run_cases(tmp_path, patience, CARRIER, chosen, rows.append)
    assert len(rows) == len(chosen) > 0
    assert [row.markdown() for row in rows if row.problem] == []


def test_each_case_is_there_once() -> None:
    table = cases()
    assert len(set(table)) == len(table)
