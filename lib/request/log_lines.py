"""The formats of a request's log lines: of its end, and of its failures (docs/operating.md, "Logs").

Owns their texts and the names of their fields in JSON.
"""

from __future__ import annotations

import logging

from lib.metrics import Outcome
from lib.runtime.logs import LineFormat

# The outcomes by their names in the log. None is that of a request that was not authenticated.
OUTCOMES = {None: "refused", **{outcome: outcome.name.lower() for outcome in Outcome}}

# Where it is off, nothing is gathered for its lines.
ACCESS_LOG = logging.getLogger("lib.access")
ENDED = LineFormat(
    "%s %s %s %d %s workload=%g queue_s=%.3f total_s=%.3f%.0s%.0s",
    *("request_id", "method", "path", "status", "outcome", "workload", "queue_s", "total_s"),
    *("route", "message"),
)
# The same of a request that the worker has refused, with the reason.
REFUSED = LineFormat(
    "%s %s %s %d %s workload=%g queue_s=%.3f total_s=%.3f refused: %s%.0s%.0s",
    *(*ENDED.names[:8], "reason", "route", "message"),
)
# Of what is no request that a route could serve.
NO_REQUEST = LineFormat("- - - %d refused: %s%.0s", "status", "message", "outcome")
# Of a request that no route takes.
UNROUTED = LineFormat("- %s %s %d refused: %s%.0s", "method", "path", "status", "message", "outcome")
# A failure before the request's end has no status and no outcome yet, and a later one has both.
FAILED = LineFormat(
    "request %s: %s%.0s%.0s%.0s%.0s%.0s%.0s%.0s",
    *("request_id", "message", "method", "path", "route", "status", "outcome", "queue_s", "total_s"),
)
