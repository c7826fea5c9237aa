"""A worker's `/status` as a page of text.

Owns wording and layout. The content of `/status` is made in lib/routes/management.py, and the line with the
state and its reason in lib/routes/headline.py.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import aiohttp

from lib.local.screen import Screen
from lib.routes.headline import Status, duration, headline
from lib.runtime.settings import GIB
from lib.tools.one_line import shorten

TIMEOUT_S = 5.0
# How many state changes and reports are shown, the last ones, and how much of a text, in characters.
MAX_CHANGES = 12
MAX_REPORTS = 6
MAX_LINE = 110
_KINDS = {"ModelLoaded": "load", "ModelError": "error", "Info": "info"}


class NoStatus(Exception):
    """No worker answered; the text says what was tried and what to do."""


async def fetch(url: str) -> dict[str, Any]:
    """Return the `/status` of the worker whose loopback port is at `url`. Raises `NoStatus`."""
    status, answered = await _get(url, "/status")
    if status == 404:
        raise NoStatus(
            f"{url} has no /status: it may be the worker's public port. Name the loopback port with --port: "
            "it is WORKER_HTTP_PORT, or else WORKER_PORT + 1."
        )
    if status != 200 or not isinstance(answered, dict) or "timeline" not in answered:
        raise NoStatus(
            f"{url}/status is not a worker's (HTTP {status}): another program has that port. Name the "
            "worker's loopback port with --port."
        )
    return cast("dict[str, Any]", answered)


async def fetch_examples(url: str) -> list[Mapping[str, Any]]:
    """Return the `/examples` of the worker whose loopback port is at `url`. Raises `NoStatus`."""
    status, answered = await _get(url, "/examples")
    return cast("list[Mapping[str, Any]]", answered) if status == 200 else []


async def _get(url: str, path: str) -> tuple[int, object]:
    """The status, and the JSON or else None. Raises `NoStatus` if no worker answers."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, http.get(url + path) as answer:
            body, status = await answer.read(), answer.status
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as e:
        refused = isinstance(e, aiohttp.ClientConnectorError)
        problem = "nothing listens there" if refused else "it doesn't answer"
        raise NoStatus(
            f"there is no worker at {url}: {problem}.\n"
            "Start one (`pyworker run WORKER --local`), or name the loopback port of the one that runs with "
            "--port: it is WORKER_HTTP_PORT, or else WORKER_PORT + 1."
        ) from e
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


def show(status: Status, screen: Screen) -> None:
    """Print the whole page on `screen`."""
    screen.title(f"{status['url']}: {headline(status)}")
    if status["error_msg"] and status["state"] != "errored":
        screen.item("error", status["error_msg"])
    screen.item("routes", ", ".join(status["routes"]) or "none")
    server = status["model_server"]
    if server["url"]:
        screen.item(
            "model server", f"{server['url']}, {_reach(server['reachable'])}{_health(status['health'])}"
        )
    _show_gpus(status.get("gpu"), status["now"], screen)
    screen.item("capacity", _capacity(status))
    if (observed := status["observed"]) is not None:
        screen.item("", _observed(observed, status["now"]))
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


def _show_gpus(gpu: Status | None, now: float, screen: Screen) -> None:
    if gpu is None:
        return
    for each in gpu["gpus"]:
        screen.item(f"GPU {each['index']}", _gpu_line(each))
    for found in gpu["findings"]:
        count = "" if found["count"] == 1 else f", {found['count']} times"
        when = f"{duration(now - found['at'])} ago{count}{', over now' if found['is_over'] else ''}"
        screen.item("", f"{found['severity']} {when}: {found['text']}")


def _gpu_line(gpu: Status) -> str:
    parts = [gpu["name"]]
    if gpu["utilization"] is not None:
        parts.append(f"{gpu['utilization']:.0%} busy")
    if gpu["memory_used_bytes"] is not None:
        used, total = (gpu[f"memory_{which}_bytes"] / GIB for which in ("used", "total"))
        parts.append(f"{used:.1f} of {total:.1f} GiB")
    return ", ".join([*parts, *gpu["slowdowns"]])


def _capacity(status: Status) -> str:
    load, most = status["load"]["current"], status["max_perf"]
    if not most:
        return f"not measured yet; {load:g} workload in flight"
    return f"{most:g} workload/s; {load:g} in flight, {load / most:.1f} s of work"


def _observed(observed: Status, now: float) -> str:
    shown = f"requests show {observed['workload_per_second']:.4g} workload/s"
    ago = now - observed["at"]
    when = "now" if ago < 1 else f"until {duration(ago)} ago"
    return f"{shown}, over {duration(observed['saturated_s'])} of saturation, {when}"


def _reach(reachable: bool | None) -> str:
    return "accepts connections" if reachable else "nothing listens there"


def _health(health: Status | None) -> str:
    if health is None or not health["checks"]:
        return ""
    return f"; {health['last_problem']}" if health["last_problem"] else "; healthy"


def _show_timeline(status: Status, screen: Screen) -> None:
    changes: Sequence[Status] = status["timeline"]
    _section(screen, "States", len(changes), MAX_CHANGES)
    ends = [*(change["at"] for change in changes[1:]), status["now"]]
    for change, end in list(zip(changes, ends, strict=True))[-MAX_CHANGES:]:
        lasted = duration(end - change["at"])
        screen.item(
            _clock(change["at"]), f"{change['state']:<13}{lasted:>9}  {shorten(change['reason'], MAX_LINE)}"
        )


def _show_log(log: Status | None, screen: Screen) -> None:
    if log is None:
        return
    trouble = f": {log['trouble']}" if log["trouble"] else ""
    _section(screen, f"Log rules on {log['file']}, {log['lines']:,} lines{trouble}")
    for rule in log["rules"]:
        kind, count = _KINDS[rule["action"]], rule["matches"]
        matches = f"{count} {'match' if count == 1 else 'matches'}, last {_quoted(rule['last_line'])}"
        screen.item(kind, f"{_quoted(rule['text'])}: {matches if count else 'no match yet'}")
    if log["last_line"]:
        screen.item("last line", shorten(log["last_line"], MAX_LINE))


def _show_slowest(slowest: Sequence[Status], screen: Screen) -> None:
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


def _show_reports(status: Status, screen: Screen) -> None:
    reports: Sequence[Status] = status["reports"]
    if not reports:
        return
    _section(screen, "Last reports to the engine", len(reports), MAX_REPORTS)
    for report in reports[-MAX_REPORTS:]:
        screen.item(_clock(report["at"]), f"{report['path']:<18}{_summary(report['message'])}")
        screen.item("", f"{report['addr']}: {shorten(report['answer'], MAX_LINE)}")


def _summary(message: Status) -> str:
    """A report to the engine on one line."""
    if "requests" in message:
        return f"{message['requests']} finished"
    loads = " ".join(f"{name}={message[name]:g}" for name in ("new_load", "cur_load", "cur_perf", "max_perf"))
    return f"{loads} {_quoted(message['error_msg'])}" if message["error_msg"] else loads


def _section(screen: Screen, title: str, count: int = 0, shown: int = 0) -> None:
    screen.title(f"{title} (the last {shown} of {count})" if count > shown else title)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _quoted(text: str) -> str:
    return f"“{shorten(text, MAX_LINE)}”"
