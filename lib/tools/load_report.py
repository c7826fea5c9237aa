"""The summary of a load test: text for people, JSON for programs.

Owns both formats (docs/load-test.md, "Summary as JSON"). The figures are collected in
lib/tools/load_tally.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.tools.distribution import EXACT, PERCENTILES, Distribution
from lib.tools.load_tally import LATE, TIMES, Slice, WorkerFigures
from lib.tools.load_test import LoadTest

# How much of an answer is printed, in characters.
MAX_EXCERPT_SHOWN = 100
COLUMNS = (*(f"p{q}" for q in PERCENTILES), "max")


def summary_lines(test: LoadTest, *, interrupted: bool = False) -> list[str]:
    """The summary as text, one string per line."""
    tally = test.tally
    summary = [headline(test, interrupted=interrupted)]
    for kind, count in (("ok", tally.ok), *tally.failures):
        if count:
            summary.append(f"  {kind:<26}{count:>8}  {excerpt(test, kind)}".rstrip())
    times = recorded_times(test)
    if times:
        summary.append(f"  {'seconds':<26}" + "".join(f"{c:>10}" for c in COLUMNS))
    summary.extend(f"  {name:<26}" + "".join(f"{cell:>10}" for cell in cells(t)) for name, t in times)
    if worst := max((t.error for _, t in times), default=0.0):
        summary.append(f"  (above {EXACT:,} values, percentiles are approximate, to within {worst:.1%})")
    summary.append(f"  workers used              {len(tally.workers):>8}")
    width = max(map(len, tally.workers), default=0)
    for url, figures in sorted(tally.workers.items()):
        summary.append(f"  {url:<{max(26, width)}}{figures.requests:>8}  {failure_summary(figures)}".rstrip())
    return summary


def headline(test: LoadTest, *, interrupted: bool = False) -> str:
    """The first line: the number of requests, the duration in seconds, and the throughput."""
    count = test.plan.count
    planned = test.sent if count is None or test.plan.duration_s is not None else count
    interruption = "interrupted: " if interrupted else ""
    unanswered = f" ({test.in_flight} more were in flight)" if interrupted and test.in_flight else ""
    return (
        f"{interruption}{test.tally.ended} of {planned} requests in {test.elapsed_s:.2f} s{unanswered}: "
        f"{ok_per_s(test):.2f} ok/s, {workload_per_s(test):.1f} workload/s"
    )


def ok_per_s(test: LoadTest) -> float:
    """Successful requests per second; 0.0 before the test has begun."""
    return test.tally.ok / test.elapsed_s if test.elapsed_s else 0.0


def workload_per_s(test: LoadTest) -> float:
    """Workload of successful requests per second, in the worker's unit; 0.0 before the test has begun."""
    return test.tally.workload / test.elapsed_s if test.elapsed_s else 0.0


def recorded_times(test: LoadTest) -> list[tuple[str, Distribution]]:
    """The times that have values, by name; lateness only at a rate, where requests have a due time."""
    names = (name for name in TIMES if test.plan.rps is not None or name != LATE)
    return [(name, test.tally.times[name]) for name in names if test.tally.times[name].count]


def cells(times: Distribution) -> list[str]:
    """The table cells of `times`, in seconds, one for each of COLUMNS."""
    summary = times.summary()
    return [f"{summary[column]:.3f}" for column in COLUMNS]


def excerpt(test: LoadTest, result: str) -> str:
    """The beginning of the first answer with this result, on one line."""
    return " ".join(test.tally.excerpts.get(result, "").split())[:MAX_EXCERPT_SHOWN]


def failure_summary(figures: WorkerFigures) -> str:
    """The failures of a worker as `3 failed: HTTP 429 (2), timed out (1)`; "" if there are none."""
    if not figures.failures:
        return ""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in figures.failures.most_common())
    return f"{figures.failures.total()} failed: {kinds}"


def summary_json(test: LoadTest, *, interrupted: bool = False) -> dict[str, Any]:
    """The summary as a JSON object (docs/load-test.md, "Summary as JSON").

    Fields may be added, never renamed.
    """
    plan, tally = test.plan, test.tally
    return {
        "plan": {
            "engine": plan.target.engine_url,
            "endpoint": plan.target.endpoint,
            "route": plan.path,
            "requests": plan.count,
            "rps": plan.rps,
            "concurrency": plan.concurrency,
            "duration_s": plan.duration_s,
            "timeout_s": plan.timeout_s,
        },
        "interrupted": interrupted,
        "elapsed_s": test.elapsed_s,
        "sent": test.sent,
        "ended": tally.ended,
        "ok": tally.ok,
        "failed": tally.failed,
        "ok_per_s": ok_per_s(test),
        "workload_per_s": workload_per_s(test),
        "seconds": {
            name.replace(" ", "_"): _distribution_json(times) for name, times in recorded_times(test)
        },
        "errors": [
            {"kind": kind, "count": count, "excerpt": tally.excerpts[kind]} for kind, count in tally.failures
        ],
        "workers": [
            {"url": url, "requests": figures.requests, "errors": dict(figures.failures)}
            for url, figures in sorted(tally.workers.items())
        ],
        "timeline": {"slice_s": tally.slice_s, "slices": _timeline_json(tally.slices)},
    }


def _distribution_json(times: Distribution) -> dict[str, float]:
    return {"count": times.count, "mean": times.mean, **times.summary(), "error": times.error}


def _timeline_json(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    return [{"ok": s.ok, "failed": s.failed, "latency_s": s.latency.summary()} for s in slices]
