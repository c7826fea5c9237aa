"""Liveness, readiness, metrics, status and update (docs/protocol.md, "Management routes").

Owns their answers, which are for operators and for the engine. An author's route with the same path takes
precedence.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import Backend
from lib.metrics import Outcome
from lib.model.benchmark_keeper import BenchmarkKeeper
from lib.model.health_override import HealthOverride
from lib.model.live_capacity import LiveCapacity
from lib.model.readiness import State
from lib.model.watch import HealthWatch, LogWatch
from lib.routes.examples import examples_route
from lib.routes.headline import headline, reasons_of
from lib.routes.openapi import openapi_routes
from lib.runtime.logs import dropped_lines

log = logging.getLogger(__name__)

SLOWEST_SHOWN = 10
# Seconds for connecting to the model server. On the same machine, a connection takes milliseconds.
REACH_LIMIT_S = 1.0


def public_routes(backend: Backend) -> list[web.RouteDef]:
    """The routes of the public port."""
    return [
        web.get("/ping", _ping),
        web.get("/healthz", _healthz),
        web.get("/readyz", partial(_readyz, backend)),
        web.post("/pyworker/update", partial(_update, backend)),
    ]


def loopback_routes(backend: Backend, routes: Sequence[web.AbstractRouteDef]) -> list[web.RouteDef]:
    """The routes of the loopback port; `/status` lists `routes`, which are the author's."""
    named = [f"{r.method} {r.path}" for r in routes if isinstance(r, web.RouteDef)]
    return [
        *public_routes(backend),
        web.get("/metrics", partial(_metrics, backend)),
        web.get("/status", partial(_status, backend, named)),
        examples_route(backend, routes),
        *openapi_routes(backend, routes),
    ]


def without(routes: Iterable[web.RouteDef], taken: Iterable[web.AbstractRouteDef]) -> list[web.RouteDef]:
    """Return `routes` without those whose method and path are in `taken`."""
    own = {(r.method, r.path) for r in taken if isinstance(r, web.RouteDef)}
    return [r for r in routes if not {(method, r.path) for method in (*_methods(r), "*")} & own]


def _methods(route: web.RouteDef) -> tuple[str, ...]:
    """The methods that adding `route` registers."""
    return ("GET", "HEAD") if route.method == "GET" else (route.method,)


async def _ping(request: web.Request) -> web.Response:
    return web.Response(text="pong")


async def _healthz(request: web.Request) -> web.Response:
    return web.Response(text="alive")


async def _readyz(backend: Backend, request: web.Request) -> web.Response:
    state = backend.running.readiness.state
    return web.Response(text=state.value, status=200 if state is State.READY else 503)


async def _update(backend: Backend, request: web.Request) -> web.Response:
    """Ask `start_server.sh` to fetch the code again at its next start. Only the engine has the token."""
    settings = backend.running.settings
    if not settings.master_token or not hmac.compare_digest(_token(request), settings.master_token.encode()):
        return web.json_response({"error": "the token is not this instance's MASTER_TOKEN"}, status=401)
    try:
        await in_thread(Path(settings.force_update_file).touch)
    except OSError as e:
        log.warning("update requested, but %s can't be written: %s", settings.force_update_file, e)
        return web.json_response({"error": f"{settings.force_update_file}: {e.strerror}"}, status=500)
    log.info("update requested: %s written", settings.force_update_file)
    return web.json_response({"success": True})


def _token(request: web.Request) -> bytes:
    """The token in `Authorization`, with or without the scheme `Bearer`, as it was received."""
    header = request.headers.get("Authorization", "").strip()
    scheme, _, token = header.partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else header).encode(errors="surrogateescape")


async def _metrics(backend: Backend, request: web.Request) -> web.Response:
    prometheus = await in_thread(_import_prometheus)
    process = await in_thread(prometheus.process_exposition)
    body = prometheus.exposition(backend, backend.running.gpu_health) + process
    return web.Response(body=body, headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})


def _import_prometheus() -> ModuleType:
    """Import the module in a thread: its imports are slow, and only this route needs them."""
    from lib.routes import prometheus

    return prometheus


async def _status(backend: Backend, routes: Sequence[str], request: web.Request) -> web.Response:
    return web.json_response({**await _status_now(backend), "routes": list(routes)})


async def readiness_line(backend: Backend) -> str:
    """The worker's state, and what it waits for or what is wrong, as `pyworker status` shows it."""
    return headline(await _status_now(backend))


async def loading_reasons(backend: Backend) -> str:
    """The reasons why the model doesn't count as loaded, as `pyworker status` shows them."""
    return reasons_of(await _status_now(backend))


async def _status_now(backend: Backend) -> dict[str, Any]:
    server = backend.running.server
    reachable = await server.accepts_connections(REACH_LIMIT_S) if server.url else None
    return {**status_of(backend), "model_server": {"url": server.url, "reachable": reachable}}


def status_of(backend: Backend) -> dict[str, Any]:
    """The JSON of `/status`: the state and its history, log rules, requests, the queue, reports."""
    running, ledger = backend.running, backend.metrics
    return {
        "now": backend.clock.wall(),
        "state": running.readiness.state.value,
        "error_msg": running.readiness.error_msg,
        "waiting_for": list(running.readiness.missing),
        "url": running.engine.public_url,
        "loadtime_s": running.readiness.loadtime_s,
        "max_perf": running.readiness.max_perf,
        "benchmark": _benchmark_facts(running.benchmark_keeper),
        "observed": _observed_facts(running.live_capacity),
        "timeline": [
            {"at": c.at, "state": c.state.value, "reason": c.reason} for c in running.readiness.timeline
        ],
        "log": _log_facts(running.log_watch, running.health_override),
        "health": _health_facts(running.health_watch),
        "gpu": None if running.gpu_health is None else running.gpu_health.facts(),
        "requests": {
            "received": ledger.opened,
            "arriving": ledger.arriving,
            "in_flight": ledger.in_flight,
            **{o.name.lower(): ledger.outcomes[o] for o in Outcome},
        },
        "load": {"current": ledger.cur_load, "served": ledger.served_load, "rejected": ledger.rejected_load},
        "queue": {"waiting": running.lanes.waiting, "working": running.lanes.working},
        "bodies": {
            "memory_bytes": running.verified_bodies.held_bytes,
            "memory_limit_bytes": running.verified_bodies.limit_bytes,
        },
        "strangers": {
            "refused_signatures": running.refusals.total,
            "refused_signatures_last_minute": running.refusals.recent(),
            "memory_bytes": running.strangers.held_bytes,
            "evicted": running.strangers.evicted,
        },
        "slowest": [t.facts() for t in backend.timings.slowest(SLOWEST_SHOWN)],
        "reports": [asdict(d) for d in running.engine.deliveries],
        "log_lines_dropped": dropped_lines(),
    }


def _benchmark_facts(keeper: BenchmarkKeeper | None) -> dict[str, Any] | None:
    if keeper is None or keeper.result is None:
        return None
    facts = asdict(keeper.result)
    del facts["workload_per_unit"]
    return {**facts, "is_saved": keeper.is_saved}


def _observed_facts(live: LiveCapacity) -> dict[str, Any] | None:
    observation = live.observation
    return None if observation is None else asdict(observation)


def _log_facts(watch: LogWatch | None, override: HealthOverride | None) -> dict[str, Any] | None:
    if watch is None:
        return None
    return {
        "file": str(watch.path),
        "trouble": watch.trouble,
        "awaiting_connection": watch.awaiting_connection,
        "lines": watch.lines,
        "last_line": watch.last_line,
        "override_problem": "" if override is None else override.problem,
        "rules": [{**asdict(r), "action": r.action.name} for r in watch.rules],
    }


def _health_facts(watch: HealthWatch | None) -> dict[str, Any] | None:
    if watch is None:
        return None
    return {"url": watch.url, "checks": watch.checks, "last_problem": watch.last_problem}
