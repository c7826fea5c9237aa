"""A worker's state and its reason in one line, made from the JSON of `/status`.

Owns the wording, for `pyworker status` and for the worker's log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lib.runtime.excerpt import excerpt

# The JSON of `/status`, or an object in it (docs/operating.md, "`/status`").
Status = Mapping[str, Any]

MAX_LINE = 110  # characters of a line of the model server's log


def headline(status: Status) -> str:
    """The state, its duration, and what the worker waits for or what is wrong."""
    since_s = status["now"] - status["timeline"][-1]["at"]
    start = f"{status['state']} for {duration(since_s)}"
    if status["state"] == "errored":
        return f"{start}: {status['error_msg']}"
    if status["state"] == "ready":
        return f"{start}: {status['max_perf']:g} workload/s"
    reasons = reasons_of(status)
    return f"{start}; {reasons}" if reasons else start


def reasons_of(status: Status) -> str:
    """The reasons why the worker isn't ready yet, separated by semicolons."""
    return "; ".join(_reasons(status))


def _reasons(status: Status) -> Iterator[str]:
    waits, log = status["waiting_for"], status["log"]
    server = status["model_server"]
    if server["reachable"] is False:
        yield f"nothing listens at {server['url']}: is the model server running?"
    if "log" in waits and log is not None:
        if log["trouble"]:
            yield f"its log {log['file']} {log['trouble']}"
        elif log["awaiting_connection"]:
            yield "its log says that the model is loaded, but the model server accepts no connection"
        elif not log["lines"]:
            yield f"its log {log['file']} is empty"
        else:
            yield f"last log line “{excerpt(log['last_line'], MAX_LINE)}”"
            yield f"no load rule has matched {log['lines']:,} lines yet"
        if log["override_problem"]:
            yield log["override_problem"]
    health = status["health"]
    if "health" in waits and health is not None and health["last_problem"] and server["reachable"]:
        yield f"{health['url']}: {health['last_problem']}"
    if "handlers" in waits:
        yield "what its handlers run has not started yet (EndpointHandler.running)"
    if "lifecycle" in waits:
        yield "its lifecycle has not been entered yet"
    if waits and waits[0] == "benchmark" and status["state"] == "benchmarking":
        yield "the benchmark is running"
    if waits == ["key"]:
        yield f"the engine has not sent its public key: {_last_answer(status)}"


def _last_answer(status: Status) -> str:
    reports = status["reports"]
    return f"{reports[-1]['addr']} answered {reports[-1]['answer']!r}" if reports else "no answer yet"


def duration(seconds: float) -> str:
    """Format `seconds`, for instance as 94 s, 12 min or 3 h 20 min."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
