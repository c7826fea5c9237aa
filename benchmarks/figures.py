"""The figures of a measurement: their names, in the order in which they are shown, and their titles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Title and digits behind the decimal point of a figure; `is_compared`: its ratios are shown too."""

    title: str
    digits: int = 0
    is_compared: bool = True


FIGURES: Mapping[str, Figure] = {
    "cpu_us_per_request": Figure("CPU a request, µs"),
    "cpu_ms_per_request": Figure("CPU a request, ms"),
    "cpu_us_per_event": Figure("CPU an event, µs", 1),
    "requests_per_s": Figure("requests a second"),
    "events_per_s": Figure("events a second"),
    "cores": Figure("cores in use", 2),
    "p50_us": Figure("p50, µs"),
    "p99_us": Figure("p99, µs"),
    "completion_p50_s": Figure("p50 of completion, s", 3),
    "time_ms": Figure("p50, ms"),
    "memory_kib_per_stream": Figure("memory a stream, KiB", 1),
    "streams_begun": Figure("streams that have begun", is_compared=False),
    "extra_memory_mib": Figure("peak of extra memory, MiB", 1),
    "longest_wait_ms": Figure("longest wait of a small request, ms", 1),
    "verification_us": Figure("CPU of one bare verification by `cryptography`, µs", 1, is_compared=False),
    "check_us": Figure("CPU of the check of a wrong signature, µs", 1, is_compared=False),
}
ADDED = Figure("p50 added to direct, µs", is_compared=False)
