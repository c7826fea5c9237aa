"""One measurement: a load on a subject, and the figures that follow from it.

Owns CPU time and memory of processes. The figures' names and titles are in figures.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.jobs import JobResult, LoadJob
from benchmarks.loads import Load
from benchmarks.processes import kept_apart
from benchmarks.subjects import RunningSubject
from benchmarks.system import System
from benchmarks.verification import measure_verification

MIB = 1024 * 1024
# Verifications measured beside a load of refused signatures, at most.
VERIFICATIONS = 500


class MeasuredProcesses:
    """A process with its children, as they are when this is made: their CPU time and memory."""

    def __init__(self, process: psutil.Process) -> None:
        self._processes = [process, *process.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU time so far, user and system, of all threads.

        From the processes' CPU clocks (clock_getcpuclockid(3)): psutil counts in ticks of 10 ms, in
        which a fast subject serves hundreds of requests.
        """
        return sum(time.clock_gettime((~process.pid << 3) | 2) for process in self._processes)

    def memory_bytes(self) -> int:
        """Resident memory now."""
        return sum(process.memory_info().rss for process in self._processes)

    def reset_peak(self) -> None:
        """Have `peak_bytes` begin anew (proc_pid_clear_refs(5))."""
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The sum of the processes' largest resident memory since `reset_peak`."""
        return sum(_peak_bytes(process.pid) for process in self._processes)


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no peak of memory")


@dataclass(frozen=True)
class Usage:
    """CPU time and memory that the processes of a subject have used for a load."""

    cpu_s: float
    growth_bytes: int
    peak_growth_bytes: int


async def measure(load: Load, running: RunningSubject, system: System) -> dict[str, float]:
    """Put `load` on a running subject; return figures by their names. Raises `WrongAnswers`.

    With one request at a time, the load generator has a processor of its own, as a client elsewhere has: what
    the scheduler chooses would otherwise change the latency of the same subject by half.
    """
    with kept_apart(system.generator.pid) if load.concurrency == 1 else nullcontext():
        return await _measure(load, running, system)


async def _measure(load: Load, running: RunningSubject, system: System) -> dict[str, float]:
    job = LoadJob.of(load, running.port, running.url, running.subject.form_of(load))
    await system.generator.prepare(job)
    processes = MeasuredProcesses(running.process) if running.process else None
    usage = None
    if processes is None:
        result = await system.generator.send(job)
    else:
        processes.reset_peak()
        memory_bytes, cpu_s = processes.memory_bytes(), processes.cpu_s()
        result = await system.generator.send(job)
        usage = Usage(
            processes.cpu_s() - cpu_s,
            processes.memory_bytes() - memory_bytes,
            processes.peak_bytes() - memory_bytes,
        )
    await system.generator.close()
    figures = dict(_figures(load, result, usage))
    if load.form == "refused":
        cost = measure_verification(system.key_file, min(load.count, VERIFICATIONS))
        figures["verification_us"] = cost.verification_s * 1e6
        if running.subject.name == "worker":
            figures["check_us"] = cost.check_s * 1e6
    return figures


def _figures(load: Load, result: JobResult, usage: Usage | None) -> Iterator[tuple[str, float]]:
    if load.kind == "held":
        yield "streams_begun", result.begun
        if usage:
            yield "memory_kib_per_stream", usage.growth_bytes / load.count / 1024
        return
    if load.kind == "probed":
        yield "time_ms", result.p50_s * 1e3
        yield "longest_wait_ms", result.longest_wait_s * 1e3
        if usage:
            yield "cpu_ms_per_request", usage.cpu_s / result.answered * 1e3
            yield "extra_memory_mib", usage.peak_growth_bytes / MIB
        return
    if load.events:
        if usage:
            yield "cpu_us_per_event", usage.cpu_s / (result.answered * load.events) * 1e6
            if load.group == "scale":
                yield "cores", usage.cpu_s / result.elapsed_s
        if load.group == "scale":
            yield "events_per_s", result.answered * load.events / result.elapsed_s
        yield "completion_p50_s", result.p50_s
        return
    if usage:
        yield "cpu_us_per_request", usage.cpu_s / result.answered * 1e6
    if load.concurrency > 1 and load.form != "refused":
        yield "requests_per_s", result.answered / result.elapsed_s
    yield "p50_us", result.p50_s * 1e6
    yield "p99_us", result.p99_s * 1e6
