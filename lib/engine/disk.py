"""Disk use for status reports: the size in use, and its growth since the last acknowledged report."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from lib.runtime.settings import GIB


@dataclass(frozen=True)
class DiskReading:
    """The GiB in use on `/`, and their growth since the last acknowledged reading."""

    used_gib: float
    grown_gib: float


class DiskUse:
    """Measures the use of `/`, and its growth between acknowledged readings."""

    def __init__(self) -> None:
        self._acknowledged_gib: float | None = None

    def read(self) -> DiskReading:
        """Measure now. Blocks for a system call."""
        used_gib = psutil.disk_usage("/").used / GIB
        before_gib = used_gib if self._acknowledged_gib is None else self._acknowledged_gib
        return DiskReading(used_gib, used_gib - before_gib)

    def acknowledge(self, reading: DiskReading) -> None:
        """Note that the engine has received `reading`: growth counts from it."""
        self._acknowledged_gib = reading.used_gib
