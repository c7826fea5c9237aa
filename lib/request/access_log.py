"""The access log: one line for each request that a handler serves (docs/operating.md, "Logs").

Owns when it is logged. The line, which never contains payloads, tokens or signatures, is in log_lines.py.
"""

from __future__ import annotations

import logging

from lib.request.exchange import Exchange
from lib.request.log_lines import ACCESS_LOG, ENDED, OUTCOMES, REFUSED
from lib.request.observers import Observer


class AccessLog(Observer):
    """Logs each request at its end: id, method, path, status, outcome, workload and durations in seconds.

    The line of one that the worker has refused with a 4xx has the reason, too.
    """

    def ended(self, exchange: Exchange) -> None:
        if not ACCESS_LOG.isEnabledFor(logging.INFO):  # else each request would gather what nobody reads
            return
        if exchange.refusal is not None:
            _log_refused(exchange)
            return
        ACCESS_LOG.info(
            ENDED,
            exchange.id,
            exchange.method,
            exchange.path,
            exchange.status,
            OUTCOMES[exchange.outcome],
            exchange.workload,
            exchange.queue_s,
            exchange.total_s,
            exchange.route,
            "request ended",
        )


def _log_refused(exchange: Exchange) -> None:
    """Log the end of a request with the reason of its refusal; apart, so that it costs others nothing."""
    head = (exchange.id, exchange.method, exchange.path, exchange.status, OUTCOMES[exchange.outcome])
    times = (exchange.workload, exchange.queue_s, exchange.total_s)
    ACCESS_LOG.info(REFUSED, *head, *times, exchange.refusal, exchange.route, "request ended")
