"""The management routes: liveness, readiness, metrics, status, update (protocol.md §4).

Owns what operators and the engine ask of a running worker. Routes of the author's own win over these.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from anyio.to_thread import run_sync as in_thread

from lib.backend import Backend
from lib.metrics import Outcome
from lib.model.readiness import State

log = logging.getLogger(__name__)


def public_routes(backend: Backend) -> list[web.RouteDef]:
    """For the public port."""
    return [
        web.get("/ping", _ping),
        web.get("/healthz", _healthz),
        web.get("/readyz", partial(_readyz, backend)),
        web.post("/pyworker/update", partial(_update, backend)),
    ]


def loopback_routes(backend: Backend) -> list[web.RouteDef]:
    """For the loopback port."""
    return [
        *public_routes(backend),
        web.get("/metrics", partial(_metrics, backend)),
        web.get("/status", partial(_status, backend)),
    ]


def without(routes: Iterable[web.RouteDef], taken: Iterable[web.AbstractRouteDef]) -> list[web.RouteDef]:
    """`routes` less those whose method and path `taken` has."""
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
    state = backend.parts.readiness.state
    return web.Response(text=state.value, status=200 if state is State.READY else 503)


async def _update(backend: Backend, request: web.Request) -> web.Response:
    """Ask `start_server.sh` to fetch the code anew; only for the engine."""
    settings = backend.parts.settings
    if not settings.master_token or not hmac.compare_digest(_token(request), settings.master_token.encode()):
        return web.json_response({"error": "the token is not this instance's MASTER_TOKEN"}, status=401)
    try:
        await in_thread(Path(settings.force_update_file).touch)
    except OSError as e:
        log.warning("update asked for, but %s can't be written: %s", settings.force_update_file, e)
        return web.json_response({"error": f"{settings.force_update_file}: {e.strerror}"}, status=500)
    log.info("update asked for: %s written", settings.force_update_file)
    return web.json_response({"success": True})


def _token(request: web.Request) -> bytes:
    """What `Authorization` holds, after its `Bearer` if there is one; bytes as they came."""
    header = request.headers.get("Authorization", "").strip()
    scheme, _, token = header.partition(" ")
    return (token.strip() if scheme.lower() == "bearer" else header).encode(errors="surrogateescape")


async def _metrics(backend: Backend, request: web.Request) -> web.Response:
    # here: only this route needs it
    from prometheus_client import CONTENT_TYPE_LATEST

    from lib.prometheus import exposition

    return web.Response(body=exposition(backend), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _status(backend: Backend, request: web.Request) -> web.Response:
    return web.json_response(status_of(backend))


def status_of(backend: Backend) -> dict[str, Any]:
    """What a person asks of a running worker: state and its history, log rules, reports, the queue."""
    parts, ledger = backend.parts, backend.metrics
    waiting, working = backend.queue_lengths()
    watch = parts.log_watch
    return {
        "state": parts.readiness.state.value,
        "error_msg": parts.readiness.error_msg,
        "url": parts.settings.public_url,
        "loadtime_s": parts.readiness.loadtime_s,
        "max_perf": parts.readiness.max_perf,
        "timeline": [
            {"at": c.at, "state": c.state.value, "reason": c.reason} for c in parts.readiness.timeline
        ],
        "log": None
        if watch is None
        else {
            "file": str(watch.path),
            "lines": watch.lines,
            "last_line": watch.last_line,
            "rules": [{**asdict(r), "action": r.action.name} for r in watch.rules],
        },
        "requests": {
            "received": ledger.received,
            "in_flight": ledger.in_flight,
            **{o.name.lower(): ledger.outcomes[o] for o in Outcome},
        },
        "load": {"current": ledger.cur_load, "served": ledger.served_load, "rejected": ledger.rejected_load},
        "queue": {"waiting": waiting, "working": working},
        "reports": [asdict(d) for d in parts.reporter.deliveries],
    }
