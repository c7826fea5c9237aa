"""Disk use as reports tell it: what `/` holds, and the growth since the engine last heard of it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from lib.runtime.settings import GIB


@dataclass(frozen=True)
class DiskReading:
    """Used on `/` and grown since the last acknowledged reading, in GiB."""

    used_gib: float
    grown_gib: float


class DiskUse:
    def __init__(self) -> None:
        self._told_gib: float | None = None

    def read(self) -> DiskReading:
        """The disk's use now; blocks for a system call."""
        used_gib = psutil.disk_usage("/").used / GIB
        return DiskReading(used_gib, 0.0 if self._told_gib is None else used_gib - self._told_gib)

    def acknowledge(self, reading: DiskReading) -> None:
        """The engine has been told `reading`: growth counts from there."""
        self._told_gib = reading.used_gib
