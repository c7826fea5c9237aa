"""The ledger and the state as Prometheus text, by its naming conventions (protocol.md §4)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lib.backend import Backend
from lib.metrics import Outcome
from lib.model.readiness import State


def exposition(backend: Backend) -> bytes:
    """What `GET /metrics` answers."""
    registry = CollectorRegistry()
    registry.register(_WorkerCollector(backend))
    return generate_latest(registry)


class _WorkerCollector(Collector):
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def collect(self) -> Iterator[Metric]:
        ledger, readiness = self._backend.metrics, self._backend.parts.readiness
        waiting, working = self._backend.queue_lengths()
        requests = CounterMetricFamily(
            "pyworker_requests", "Authenticated requests that ended", labels=["outcome"]
        )
        for outcome in Outcome:
            requests.add_metric([outcome.name.lower()], ledger.outcomes[outcome])
        state = GaugeMetricFamily("pyworker_state", "1 for the state the worker is in", labels=["state"])
        for name in State:
            state.add_metric([name.value], float(readiness.state is name))
        yield requests
        yield state
        yield CounterMetricFamily("pyworker_requests_received", "Requests accepted", value=ledger.received)
        yield CounterMetricFamily("pyworker_workload_served", "Workload served", value=ledger.served_load)
        yield CounterMetricFamily(
            "pyworker_workload_rejected", "Workload rejected", value=ledger.rejected_load
        )
        yield CounterMetricFamily(
            "pyworker_finished_requests_dropped",
            "Finished requests that the engine never heard of",
            value=ledger.dropped_entries,
        )
        yield GaugeMetricFamily("pyworker_requests_in_flight", "Requests in flight", value=ledger.in_flight)
        yield GaugeMetricFamily("pyworker_requests_waiting", "Requests that wait for a slot", value=waiting)
        yield GaugeMetricFamily("pyworker_requests_working", "Requests that have a slot", value=working)
        yield GaugeMetricFamily("pyworker_workload_in_flight", "Workload in flight", value=ledger.cur_load)
        yield GaugeMetricFamily(
            "pyworker_workload_per_second_max", "Throughput by the benchmark", value=readiness.max_perf
        )
        yield GaugeMetricFamily(
            "pyworker_load_time_seconds", "From start to ready; 0 before", value=readiness.loadtime_s
        )
