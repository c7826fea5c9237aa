"""The soak (tests/endurance/soak.py): short minutes, and its verdict."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.endurance.soak import FAULTS, Minute, growth, run_soak

MINUTE_S = 2.0


@pytest.mark.one_python
async def test_sums_are_exact_and_nothing_is_left_after_each_fault(tmp_path: Path) -> None:
    async with aclosing(run_soak(tmp_path, len(FAULTS), MINUTE_S, seed=1)) as running:
        minutes = [minute async for minute in running]
    assert [minute.fault for minute in minutes] == [name for name, _ in FAULTS]
    assert min(minute.requests for minute in minutes) > 0
    assert max(minute.descriptors for minute in minutes) == minutes[0].descriptors


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"memory_mib": 80.0}, ["memory: from 60.0 to 80.0 MiB"]),
        ({"p99_s": 0.1}, ["p99: from 10.0 to 100.0 ms"]),
        ({"descriptors": 31}, ["descriptors: from 30 to 31"]),
        ({"tasks": 12}, ["tasks: from 11 to 12"]),
        ({"threads": 99}, ["threads: from 12 to 99"]),
    ],
)
def test_growth_is_found(change: dict[str, Any], found: list[str]) -> None:
    minute = Minute("none", 1000, 60.0, 30, 11, 12, 0.002, 0.010)
    minutes = [minute] * (len(FAULTS) + 4) + [replace(minute, **change)] * 4
    assert growth(minutes) == found
