"""Growth of disk use counts from the last acknowledged reading."""

from __future__ import annotations

import psutil

from lib.engine.disk import DiskReading, DiskUse
from lib.runtime.settings import GIB


def test_a_reading_is_in_gib() -> None:
    reading = DiskUse().read()
    assert 0 < reading.used_gib <= psutil.disk_usage("/").total / GIB
    assert reading.grown_gib == 0


def test_growth_counts_from_the_last_reading_that_was_acknowledged() -> None:
    disk = DiskUse()
    disk.acknowledge(DiskReading(1.0, 0.0))
    first = disk.read()
    assert first.grown_gib == first.used_gib - 1.0
    again = disk.read()
    assert again.grown_gib == again.used_gib - 1.0  # not acknowledged: reported again
    disk.acknowledge(again)
    then = disk.read()
    assert then.grown_gib == then.used_gib - again.used_gib
