"""The worker's metrics in Prometheus's text format, named by its conventions (docs/operating.md).

Owns names and help texts. The numbers are those of the ledger, the timings, the readiness, the engine, the
GPUs and the process.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lib import __version__
from lib.backend import Backend
from lib.gpu.health import GpuHealth
from lib.metrics import Outcome
from lib.model.readiness import State
from lib.request.timings import BOUNDS_S, Histogram, RouteDurations
from lib.runtime.logs import dropped_lines

__all__ = ["CONTENT_TYPE_LATEST", "exposition", "process_exposition"]


def exposition(backend: Backend, gpu_health: GpuHealth | None = None) -> bytes:
    """Return the worker's part of the body of `GET /metrics`, with metrics of GPUs if there are any."""
    registry = CollectorRegistry()
    registry.register(_WorkerCollector(backend, gpu_health))
    return generate_latest(registry)


def process_exposition() -> bytes:
    """Return the process's part of the body of `GET /metrics`; b"" without `/proc`, as on macOS.

    It counts the open files, so it is for a thread.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _WorkerCollector(Collector):
    def __init__(self, backend: Backend, gpu_health: GpuHealth | None) -> None:
        self._backend = backend
        self._gpu_health = gpu_health

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "pyworker_build",
            "The versions of PyWorker and of Python",
            value={"version": __version__, "python": platform.python_version()},
        )
        yield from self._requests()
        yield self._answers()
        yield from self._workload()
        yield from self._state()
        yield from self._times()
        yield from self._reports()
        if self._gpu_health is not None and self._gpu_health.gpus:
            if not self._gpu_health.is_stale:
                yield from _gpu_readings(self._gpu_health)
            yield from _gpu_faults(self._gpu_health)
        yield CounterMetricFamily(
            "pyworker_log_lines_dropped",
            "Lines of the worker's log that were not written",
            value=dropped_lines(),
        )
        yield from self._bodies()
        yield from self._strangers()

    def _requests(self) -> Iterator[Metric]:
        ledger = self._backend.metrics
        lanes = self._backend.lanes
        requests = CounterMetricFamily(
            "pyworker_requests", "Authenticated requests that ended", labels=["outcome"]
        )
        for outcome in Outcome:
            requests.add_metric([outcome.name.lower()], ledger.outcomes[outcome])
        yield requests
        yield CounterMetricFamily("pyworker_requests_received", "Requests accepted", value=ledger.received)
        yield GaugeMetricFamily("pyworker_requests_in_flight", "Requests in flight", value=ledger.in_flight)
        yield GaugeMetricFamily(
            "pyworker_requests_waiting", "Requests that wait for a slot", value=lanes.waiting
        )
        yield GaugeMetricFamily("pyworker_requests_working", "Requests that have a slot", value=lanes.working)

    def _answers(self) -> Metric:
        answers = CounterMetricFamily(
            "pyworker_http_requests",
            "Requests to the public port that ended, authenticated or not",
            labels=["route", "status"],
        )
        for (route, status), count in self._backend.timings.answers.by_route_and_status.items():
            answers.add_metric([route, str(status)], count)
        return answers

    def _workload(self) -> Iterator[Metric]:
        ledger, running = self._backend.metrics, self._backend.running
        yield CounterMetricFamily("pyworker_workload_served", "Workload served", value=ledger.served_load)
        yield CounterMetricFamily(
            "pyworker_workload_rejected", "Workload rejected", value=ledger.rejected_load
        )
        yield GaugeMetricFamily("pyworker_workload_in_flight", "Workload in flight", value=ledger.cur_load)
        yield GaugeMetricFamily(
            "pyworker_workload_per_second_max",
            "Throughput that is reported as max_perf, in workload/s; 0 until it is known",
            value=running.readiness.max_perf,
        )
        observation = running.live_capacity.observation
        yield GaugeMetricFamily(
            "pyworker_workload_per_second_observed",
            "Throughput that requests have shown, in workload/s, over the last saturated minute; "
            "0 without one in the last 10 minutes",
            value=0.0 if observation is None else observation.workload_per_second,
        )

    def _state(self) -> Iterator[Metric]:
        readiness = self._backend.running.readiness
        state = GaugeMetricFamily(
            "pyworker_state", "1 for the current state, 0 for the others", labels=["state"]
        )
        for name in State:
            state.add_metric([name.value], float(readiness.state is name))
        yield state
        yield GaugeMetricFamily(
            "pyworker_load_time_seconds",
            "Time from the start to ready; 0 until then",
            value=readiness.loadtime_s,
        )

    def _times(self) -> Iterator[Metric]:
        families: list[tuple[str, str, Callable[[RouteDurations], Histogram]]] = [
            ("queue", "Time from acceptance to a slot", lambda route: route.queue_s),
            ("first_byte", "Time to the first byte of the answer", lambda route: route.first_byte_s),
            ("duration", "Time to the end of the answer", lambda route: route.total_s),
        ]
        durations = self._backend.timings.durations
        for name, documentation, histogram_of in families:
            family = HistogramMetricFamily(
                f"pyworker_request_{name}_seconds", documentation, labels=["route"]
            )
            for route, its in durations.items():
                histogram = histogram_of(its)
                family.add_metric([route], _buckets(histogram), histogram.sum_s)
            yield family

    def _reports(self) -> Iterator[Metric]:
        reports = CounterMetricFamily(
            "pyworker_reports", "Attempts to deliver a message to the engine", labels=["path", "result"]
        )
        for path, (delivered, failed) in self._backend.running.engine.attempts.items():
            reports.add_metric([path, "delivered"], delivered)
            reports.add_metric([path, "failed"], failed)
        yield reports
        yield CounterMetricFamily(
            "pyworker_finished_requests_dropped",
            "Finished requests that were dropped before they were reported to the engine",
            value=self._backend.metrics.dropped_entries,
        )

    def _bodies(self) -> Iterator[Metric]:
        running = self._backend.running
        yield GaugeMetricFamily(
            "pyworker_bodies_memory_bytes",
            "Memory counted for bodies of verified requests",
            value=running.verified_bodies.held_bytes,
        )
        yield GaugeMetricFamily(
            "pyworker_bodies_memory_limit_bytes",
            "The most that is counted for them together",
            value=running.verified_bodies.limit_bytes,
        )

    def _strangers(self) -> Iterator[Metric]:
        running = self._backend.running
        yield CounterMetricFamily(
            "pyworker_refused_signatures",
            "Signatures that were refused although they are well-formed",
            value=running.refusals.total,
        )
        yield GaugeMetricFamily(
            "pyworker_strangers_memory_bytes",
            "Memory counted for clients of whom no request was verified yet",
            value=running.strangers.held_bytes,
        )
        yield CounterMetricFamily(
            "pyworker_strangers_evicted",
            "Connections that were closed because such clients held too much together",
            value=running.strangers.evicted,
        )


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """The numbers of durations up to each bound."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _gpu_readings(health: GpuHealth) -> Iterator[Metric]:
    names = ["gpu", "name"]
    utilization = GaugeMetricFamily(
        "pyworker_gpu_utilization_ratio",
        "Fraction of time in which the GPU was busy, over its last sample",
        labels=names,
    )
    used = GaugeMetricFamily("pyworker_gpu_memory_used_bytes", "Memory in use on the GPU", labels=names)
    total = GaugeMetricFamily("pyworker_gpu_memory_total_bytes", "Memory of the GPU", labels=names)
    pending = GaugeMetricFamily(
        "pyworker_gpu_remap_pending", "1 if failed memory waits for a reset of the GPU", labels=names
    )
    slow = GaugeMetricFamily(
        "pyworker_gpu_slowdown", "1 while hardware or heat holds the GPU's clocks", labels=names
    )
    for gpu in health.gpus:
        labels = [str(gpu.index), gpu.name]
        for family, value in (
            (utilization, gpu.utilization),
            (used, gpu.memory_used_bytes),
            (total, gpu.memory_total_bytes),
            (pending, gpu.remap_pending),
            (slow, None if gpu.clock_reasons is None else bool(health.history_of(gpu.index).slowdowns)),
        ):
            if value is not None:
                family.add_metric(labels, float(value))
    yield from (utilization, used, total, pending, slow)


def _gpu_faults(health: GpuHealth) -> Iterator[Metric]:
    names = ["gpu", "name"]
    failed = GaugeMetricFamily(
        "pyworker_gpu_failed", "1 if the GPU has an error that lasts until a restart", labels=names
    )
    ecc = CounterMetricFamily(
        "pyworker_gpu_uncorrectable_ecc_errors", "Uncorrectable ECC errors since the start", labels=names
    )
    xids = CounterMetricFamily(
        "pyworker_gpu_xid_events", "XID events, by their number", labels=[*names, "xid"]
    )
    # What names no GPU has the labels gpu="" and name="".
    for index in (*(gpu.index for gpu in health.gpus), None):
        history = health.history_of(index)
        labels = ["" if index is None else str(index), health.name_of(index)]
        if index is not None or health.has_error(None):
            failed.add_metric(labels, float(health.has_error(index)))
        if history.ecc_counter is not None:
            ecc.add_metric(labels, history.ecc_errors)
        for xid, count in history.xid_events.items():
            xids.add_metric([*labels, str(xid)], count)
    yield from (failed, ecc, xids)
