"""A worker's `/status` for people: what it waits for in a sentence, and the rest as a page.

Owns the words and the layout. What there is to tell is lib/routes/management.py's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import aiohttp

from lib.local.screen import Screen

Facts = Mapping[str, Any]

TIMEOUT_S = 5.0
MAX_CHANGES = 12
MAX_REPORTS = 6
MAX_LINE = 110
_KINDS = {"ModelLoaded": "load", "ModelError": "error", "Info": "info"}


class NoStatus(Exception):
    """Nobody tells; the text says what was tried and what to do."""


async def fetch(url: str) -> dict[str, Any]:
    """What the worker whose loopback port is at `url` tells of itself. Raises `NoStatus`."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{url}/status") as answer:
            body, status = await answer.read(), answer.status
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
        why = "nothing listens there" if isinstance(e, aiohttp.ClientConnectorError) else "it doesn't answer"
        raise NoStatus(
            f"there is no worker at {url}: {why}.\n"
            "Is it running? Its loopback port is WORKER_HTTP_PORT, or WORKER_PORT + 1: give it by --port."
        ) from e
    told = _object(body)
    if status == 404:
        raise NoStatus(
            f"{url} has no /status: it may be the worker's public port. The loopback port, where /status is, "
            "is by default the next: give it by --port."
        )
    if status != 200 or told is None or "timeline" not in told:
        raise NoStatus(f"{url}/status is not a worker's (HTTP {status}): another program has that port")
    return told


def headline(status: Facts) -> str:
    """The state, for how long, and what it waits for or is wrong."""
    since_s = status["now"] - status["timeline"][-1]["at"]
    begin = f"{status['state']} for {duration(since_s)}"
    if status["state"] == "errored":
        return f"{begin}: {status['error_msg']}"
    if status["state"] == "ready":
        return f"{begin}: {status['max_perf']:g} workload/s"
    reasons = list(_reasons(status))
    return f"{begin}; {'; '.join(reasons)}" if reasons else begin


def _reasons(status: Facts) -> Iterator[str]:
    """Why the worker isn't ready yet."""
    waits, log = status["waiting_for"], status["log"]
    server = status["model_server"]
    if server["reachable"] is False:
        yield f"nothing listens at {server['url']}: is the model server running?"
    if "log" in waits and log is not None:
        if log["trouble"]:
            yield f"its log {log['file']} {log['trouble']}"
        elif log["awaiting_connection"]:
            yield "its log says it is loaded, but it accepts no connection"
        elif not log["lines"]:
            yield f"its log {log['file']} is empty"
        else:
            yield f"last log line {_quoted(log['last_line'])}"
            yield f"no load rule has matched {log['lines']:,} lines yet"
    health = status["health"]
    if "health" in waits and health is not None and health["last_problem"] and server["reachable"]:
        yield f"{health['url']}: {health['last_problem']}"
    if "lifecycle" in waits:
        yield "its lifecycle has not been entered yet"
    if waits and waits[0] == "benchmark" and status["state"] == "benchmarking":
        yield "the benchmark runs"
    if waits == ["key"]:
        yield f"the engine has given no public key: {_last_answer(status)}"


def _last_answer(status: Facts) -> str:
    reports = status["reports"]
    return f"{reports[-1]['addr']} said {reports[-1]['answer']!r}" if reports else "it was not heard of yet"


def show(status: Facts, screen: Screen) -> None:
    """The whole page."""
    screen.title(f"{status['url']}: {headline(status)}")
    if status["error_msg"] and status["state"] != "errored":
        screen.item("error", status["error_msg"])
    screen.item("routes", ", ".join(status["routes"]) or "none")
    server = status["model_server"]
    if server["url"]:
        screen.item(
            "model server", f"{server['url']}, {_reach(server['reachable'])}{_health(status['health'])}"
        )
    screen.item("capacity", _capacity(status))
    queue, requests = status["queue"], status["requests"]
    screen.item("queue", f"{queue['waiting']} waiting, {queue['working']} working")
    ends = ("served", "errored", "cancelled", "rejected")
    screen.item(
        "requests", f"{requests['received']} received: " + ", ".join(f"{requests[e]} {e}" for e in ends)
    )
    _show_timeline(status, screen)
    _show_log(status["log"], screen)
    _show_slowest(status["slowest"], screen)
    _show_reports(status, screen)


def _capacity(status: Facts) -> str:
    load, most = status["load"]["current"], status["max_perf"]
    if not most:
        return f"not measured yet; {load:g} workload in flight"
    return f"{most:g} workload/s; {load:g} in flight, {load / most:.1f} s of work"


def _reach(reachable: bool | None) -> str:
    return "it accepts connections" if reachable else "nothing listens there"


def _health(health: Facts | None) -> str:
    if health is None or not health["checks"]:
        return ""
    return f"; {health['last_problem']}" if health["last_problem"] else "; its health check is well"


def _show_timeline(status: Facts, screen: Screen) -> None:
    changes: Sequence[Facts] = status["timeline"]
    _section(screen, "States", len(changes), MAX_CHANGES)
    ends = [*(change["at"] for change in changes[1:]), status["now"]]
    for change, end in list(zip(changes, ends, strict=True))[-MAX_CHANGES:]:
        lasted = duration(end - change["at"])
        screen.item(_clock(change["at"]), f"{change['state']:<13}{lasted:>9}  {_cut(change['reason'])}")


def _show_log(log: Facts | None, screen: Screen) -> None:
    if log is None:
        return
    trouble = f": {log['trouble']}" if log["trouble"] else ""
    _section(screen, f"Log rules on {log['file']}, {log['lines']:,} lines{trouble}")
    for rule in log["rules"]:
        kind, count = _KINDS[rule["action"]], rule["matches"]
        found = f"{count} {'line' if count == 1 else 'lines'}, last {_quoted(rule['last_line'])}"
        screen.item(kind, f"{_quoted(rule['text'])}: {found if count else 'no line yet'}")
    if log["last_line"]:
        screen.item("last line", _cut(log["last_line"]))


def _show_slowest(slowest: Sequence[Facts], screen: Screen) -> None:
    if not slowest:
        return
    _section(screen, "Slowest of the latest requests, in seconds")
    screen.line(f"  {'queue':>9}{'first byte':>12}{'total':>9}  {'status':<22}{'workload':>9}  request")
    for each in slowest:
        first = "-" if each["first_byte_s"] is None else f"{each['first_byte_s']:.3f}"
        how = f"{each['status']} {each['outcome']}"
        screen.line(
            f"  {each['queue_s']:>9.3f}{first:>12}{each['total_s']:>9.3f}  {how:<22}{each['workload']:>9g}  "
            f"{each['route']} {each['id']}"
        )


def _show_reports(status: Facts, screen: Screen) -> None:
    reports: Sequence[Facts] = status["reports"]
    if not reports:
        return
    _section(screen, "Last reports to the engine", len(reports), MAX_REPORTS)
    for report in reports[-MAX_REPORTS:]:
        screen.item(_clock(report["at"]), f"{report['path']:<18}{_said(report['message'])}")
        screen.item("", f"{report['addr']}: {_cut(report['answer'])}")


def _said(message: Facts) -> str:
    if "requests" in message:
        return f"{message['requests']} finished"
    told = " ".join(f"{name}={message[name]:g}" for name in ("new_load", "cur_load", "cur_perf", "max_perf"))
    return f"{told} {_quoted(message['error_msg'])}" if message["error_msg"] else told


def _section(screen: Screen, title: str, there: int = 0, shown: int = 0) -> None:
    screen.title(f"{title} (the last {shown} of {there})" if there > shown else title)


def duration(seconds: float) -> str:
    """`seconds` as people say them: 94 s, 12 min, 3 h 20 min."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"


def _quoted(text: str) -> str:
    return f"“{_cut(text)}”"


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value: object = json.loads(body)
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
