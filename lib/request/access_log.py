"""The access log: one line for each request that a handler serves (docs/operating.md, "Logs").

Owns the format of the line, which never contains payloads, tokens or signatures. It does not configure
logging: that is lib/runtime/logs.py.
"""

from __future__ import annotations

import logging

from lib.request.exchange import Exchange
from lib.request.observers import Observer

log = logging.getLogger("lib.access")


class AccessLog(Observer):
    """Logs each request at its end: id, method, path, status, outcome, workload and durations in seconds."""

    def ended(self, exchange: Exchange) -> None:
        if not log.isEnabledFor(logging.INFO):  # else each request would gather what nobody reads
            return
        outcome = exchange.outcome
        log.info(
            "%s %s %s %d %s workload=%g queue_s=%.3f total_s=%.3f",
            exchange.id,
            exchange.method,
            exchange.path,
            exchange.status,
            outcome.name.lower() if outcome is not None else "refused",
            exchange.workload,
            exchange.queue_s,
            exchange.total_s,
        )
