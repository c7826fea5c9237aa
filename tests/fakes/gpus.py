"""The health of two GPUs, for tests of how it is shown."""

from __future__ import annotations

from lib.gpu.health import GpuHealth
from lib.gpu.nvml import Gpu, Readings, Xid
from tests.manual_clock import ManualClock


def health_of_gpus(clock: ManualClock | None = None) -> GpuHealth:
    """Two GPUs: one with warnings of all kinds, and a slice that reports little and has an error."""
    health = GpuHealth(clock or ManualClock(), _ignore)
    for ecc_errors in (1, 3):
        health.note_readings(
            Readings(
                (
                    Gpu(
                        index=0,
                        name="NVIDIA H200",
                        utilization=0.75,
                        memory_used_bytes=1000,
                        memory_total_bytes=2000,
                        clock_reasons=0x8,
                        uncorrectable_ecc_errors=ecc_errors,
                        remap_pending=True,
                    ),
                    Gpu(index=1, name='a "slice"', memory_used_bytes=1, memory_total_bytes=2),
                )
            )
        )
    for xid in (Xid(31, 0), Xid(31, 0), Xid(79, 1)):
        health.note_xid(xid)
    return health


def _ignore(error_msg: str) -> None:
    return None
