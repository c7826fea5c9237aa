"""The data of the local engine's page: workers, requests and plans of the last 10 minutes, as JSON.

Owns the selection and its units: loads in workload units, times in Unix seconds, durations in seconds. Does
not own the page that draws it (lib/local/page/).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lib.local.engine import LocalEngine, ReceivedCompletion
from lib.local.fleet import ReceivedReport, WorkerRecord
from lib.local.groups import Endpoint

# The time range of the page's charts, in seconds.
WINDOW_S = 600.0
# At most this many finished requests, the latest ones, are sent: enough for the latency chart.
MAX_FINISHED = 2000


@dataclass(frozen=True)
class Overview:
    """The state of `engine` now, and the events since `since` (Unix seconds) or the last 10 minutes."""

    engine: LocalEngine
    since: float

    def to_json(self) -> dict[str, Any]:
        """The answer of `GET /local/overview`."""
        now = self.engine.clock.wall()
        since = max(self.since, now - WINDOW_S)
        return {
            "now": now,
            "window_s": WINDOW_S,
            "open_requests": len(self.engine.open_requests),
            "plans": plans(self.engine),
            "workers": [_worker(worker, since) for worker in self.engine.workers.values()],
            "finished": [_finish(f) for f in _latest(self.engine.finished, since)],
        }


def plans(engine: LocalEngine) -> list[dict[str, Any]]:
    """The scaling plan of each endpoint, and the state of `--autoscale` where it runs."""
    return [_plan(engine, endpoint) for endpoint in engine.groups.endpoints.values()]


def _plan(engine: LocalEngine, endpoint: Endpoint) -> dict[str, Any]:
    autoscale = engine.autoscale
    ours = autoscale is not None and autoscale.endpoint == endpoint.name
    return {
        "endpoint": endpoint.name,
        "endpoint_id": endpoint.id,
        **engine.plan_of(endpoint).to_json(),
        "autoscale": asdict(autoscale) if autoscale is not None and ours else None,
    }


def _worker(worker: WorkerRecord, since: float) -> dict[str, Any]:
    last = worker.last
    assert last is not None, "only workers that have reported are kept"
    return {
        **worker.to_json(),
        "endpoint": worker.endpoint,
        "error_msg": last.error_msg,
        "routed": worker.routed,
        "loadtime": last.loadtime,
        "reported_at": worker.reports[-1].received_at,
        "samples": [_sample(report) for report in worker.reports if report.received_at > since],
    }


def _sample(report: ReceivedReport) -> dict[str, Any]:
    message = report.message
    return {
        "at": report.received_at,
        "state": report.state,
        "cur_load": message.cur_load,
        "max_perf": message.max_perf,
        "cur_perf": message.cur_perf,
        "working": message.num_requests_working,
    }


def _latest(finished: list[ReceivedCompletion], since: float) -> Iterable[ReceivedCompletion]:
    latest = finished[-MAX_FINISHED:]
    return (f for f in latest if f.received_at > since)


def _finish(finish: ReceivedCompletion) -> dict[str, Any]:
    request = finish.request
    began, ended = request.entered_queue_at, request.work_completed_at
    started = request.work_started_at or ended
    return {
        "at": finish.received_at,
        "worker_id": finish.worker_id,
        "request_idx": request.request_idx,
        "status": request.status,
        "queue_s": max(0.0, started - began) if began else 0.0,
        "total_s": max(0.0, ended - began) if began and ended else 0.0,
    }
