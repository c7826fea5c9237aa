"""The data of the local engine's page: workers, requests, events and plans of the last 10 minutes, as JSON.

Owns the selection and its units: loads in workload units, times in Unix seconds, durations in seconds. Does
not own the page that draws it (lib/local/page/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lib.local.ended_requests import GivenUpRequest, ReceivedCompletion
from lib.local.engine import LocalEngine
from lib.local.engine_logs import LogLevel
from lib.local.faults import FAULT_KINDS
from lib.local.fleet import ReceivedReport, WorkerRecord
from lib.local.groups import Endpoint
from lib.local.open_requests import Routing
from lib.wire import RequestStatus

# The time range of the page's charts, in seconds.
WINDOW_S = 600.0
# At most this many ended requests, the latest ones, are sent: enough for the latency chart.
MAX_ENDED = 2000
# At most this many events of each endpoint and level.
MAX_EVENTS = 50
EVENT_LEVELS: tuple[LogLevel, ...] = ("info0", "info1")
GIVEN_UP = "Given up"

# What a status says about the cause. The engine is told no more.
# The worker's log has a line for each request.
_WHY: Mapping[RequestStatus, str] = {
    "Success": "",
    "Error": "the client's payload was refused, or the model server failed: the worker's log says which",
    "Cancelled": "the client left",
    "Rejected": "answered with 429 or 503: the queue was too long, or the worker was not ready",
}


@dataclass(frozen=True)
class Overview:
    """The state of `engine` now, and the events since `since` (Unix seconds) or the last 10 minutes."""

    engine: LocalEngine
    since: float

    def to_json(self) -> dict[str, Any]:
        """The answer of `GET /local/overview`."""
        # First of all, as this gives up lost requests: their end must not be after `now`.
        open_requests = self.engine.open_requests
        now = self.engine.clock.wall()
        since = max(self.since, now - WINDOW_S)
        return {
            "engine_id": self.engine.id,
            "now": now,
            "window_s": WINDOW_S,
            "open_requests": len(open_requests),
            "waiting_requests": open_requests.waiting,
            "faults": [kind for kind in FAULT_KINDS if self.engine.faults.of(kind).active],
            "plans": plans(self.engine),
            "workers": [_worker(worker, since) for worker in self.engine.workers.values()],
            "ended": _ended(self.engine, since),
            "events": _events(self.engine, since),
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
        "why": worker.why,
        "since": worker.since,
        "draining": worker.draining and not worker.unreachable and not worker.silent,
        "as_intended": worker.retired or worker.draining,
        "arrival_rate": worker.arrival_rate,
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
        "new_load": message.new_load,
        "rej_load": message.rej_load,
        "cur_load": message.cur_load,
        "max_perf": message.max_perf,
        "cur_perf": message.cur_perf,
        "working": message.num_requests_working,
    }


def _events(engine: LocalEngine, since: float) -> list[dict[str, Any]]:
    """The latest changes of the endpoints and their workers, oldest first."""
    events = (
        {"at": line.at, "endpoint": endpoint.name, "text": line.text}
        for endpoint in engine.groups.endpoints.values()
        for level in EVENT_LEVELS
        for line in engine.log_of(endpoint).lines(level, MAX_EVENTS)
        if line.at > since
    )
    return sorted(events, key=_at)


def _ended(engine: LocalEngine, since: float) -> list[dict[str, Any]]:
    """The requests that workers have finished or the engine has given up, oldest first."""
    ended = [*_since(engine, engine.finished, since), *map(_given_up, engine.given_up)]
    return sorted((e for e in ended if e["at"] > since), key=_at)[-MAX_ENDED:]


def _since(engine: LocalEngine, finished: list[ReceivedCompletion], since: float) -> Iterator[dict[str, Any]]:
    for completion in finished[-MAX_ENDED:]:
        if completion.received_at > since:
            yield _completion(completion, engine.worker(completion.worker_id).endpoint)


def _completion(completion: ReceivedCompletion, endpoint: str) -> dict[str, Any]:
    request = completion.request
    entered, started, ended = (
        request.entered_queue_at,
        request.work_started_at,
        request.work_completed_at,
    )
    queue_s = max(0.0, started - entered) if entered and started else None
    work_s = max(0.0, ended - started) if started and ended else None
    routing = _routing(completion.routing)
    known = [s for s in (routing["waited_s"], queue_s, work_s) if s is not None]
    return {
        **routing,
        "endpoint": routing["endpoint"] or endpoint,
        "at": completion.received_at,
        "worker_id": completion.worker_id,
        "request_idx": request.request_idx,
        "status": request.status,
        "why": _WHY[request.status],
        "queue_s": queue_s,
        "work_s": work_s,
        "total_s": sum(known) if work_s is not None else None,
    }


def _given_up(request: GivenUpRequest) -> dict[str, Any]:
    return {
        **_routing(request.routing),
        "at": request.at,
        "worker_id": request.routing.worker_id,
        "request_idx": request.request_idx,
        "status": GIVEN_UP,
        "why": request.why,
        "queue_s": None,
        "work_s": None,
        "total_s": None,
    }


def _routing(routing: Routing | None) -> dict[str, Any]:
    """The routing of a request; `route` and `http_status` are known of the OpenAI gateway's requests only."""
    return {
        "endpoint": routing.endpoint if routing else "",
        "cost": routing.cost if routing else None,
        "waited_s": routing.waited_s if routing else None,
        "times_routed": routing.times_routed if routing else None,
        "route": routing.route if routing else "",
        "http_status": routing.status if routing else None,
    }


def _at(event: Mapping[str, Any]) -> float:
    return event["at"]
