"""What a load test has shown: lines for people, and JSON for programs (docs/load-test.md has its fields)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib.tools.distribution import PERCENTILES, Distribution
from lib.tools.load_tally import LATE, TIMES, Slice, WorkerFigures
from lib.tools.load_test import LoadTest

# So much of an answer is shown, in characters.
MAX_EXCERPT_SHOWN = 100
COLUMNS = (*(f"p{q}" for q in PERCENTILES), "max")


def lines(test: LoadTest, *, interrupted: bool = False) -> list[str]:
    """The summary to be read by people."""
    tally = test.tally
    told = [headline(test, interrupted=interrupted)]
    for kind, count in (("ok", tally.ok), *tally.failures):
        if count:
            told.append(f"  {kind:<26}{count:>8}  {excerpt(test, kind)}".rstrip())
    times = times_of(test)
    if times:
        told.append(f"  {'seconds':<26}" + "".join(f"{c:>10}" for c in COLUMNS))
    told.extend(f"  {name:<26}" + "".join(f"{cell:>10}" for cell in cells(t)) for name, t in times)
    if worst := max((t.error for _, t in times), default=0.0):
        told.append(f"  (of so many requests, percentiles are told to within {worst:.1%})")
    told.append(f"  workers used              {len(tally.workers):>8}")
    width = max(map(len, tally.workers), default=0)
    for url, figures in sorted(tally.workers.items()):
        told.append(f"  {url:<{max(26, width)}}{figures.requests:>8}  {told_failures(figures)}".rstrip())
    return told


def headline(test: LoadTest, *, interrupted: bool = False) -> str:
    """How many, in what time, at which rate."""
    count = test.plan.count
    planned = test.sent if count is None or test.plan.duration_s is not None else count
    interruption = "interrupted: " if interrupted else ""
    unanswered = f" ({test.in_flight} more without an answer)" if interrupted and test.in_flight else ""
    return (
        f"{interruption}{test.tally.ended} of {planned} requests in {test.elapsed_s:.2f} s{unanswered}: "
        f"{ok_per_s(test):.2f} ok/s, {workload_per_s(test):.1f} workload/s"
    )


def ok_per_s(test: LoadTest) -> float:
    return test.tally.ok / test.elapsed_s if test.elapsed_s else 0.0


def workload_per_s(test: LoadTest) -> float:
    return test.tally.workload / test.elapsed_s if test.elapsed_s else 0.0


def times_of(test: LoadTest) -> list[tuple[str, Distribution]]:
    """What was timed, by name; nothing can be late where no time was set for a request to leave."""
    names = (name for name in TIMES if test.plan.rps is not None or name != LATE)
    return [(name, test.tally.times[name]) for name in names if test.tally.times[name].count]


def cells(times: Distribution) -> list[str]:
    """A row of figures, as many as there are COLUMNS."""
    summary = times.summary()
    return [f"{summary[column]:.3f}" for column in COLUMNS]


def excerpt(test: LoadTest, result: str) -> str:
    """What the first answer of this result said, on one line."""
    return " ".join(test.tally.excerpts.get(result, "").split())[:MAX_EXCERPT_SHOWN]


def told_failures(figures: WorkerFigures) -> str:
    """`3 failed: HTTP 429 (2), timed out (1)`, or nothing."""
    if not figures.failures:
        return ""
    kinds = ", ".join(f"{kind} ({count})" for kind, count in figures.failures.most_common())
    return f"{figures.failures.total()} failed: {kinds}"


def document(test: LoadTest, *, interrupted: bool = False) -> dict[str, Any]:
    """The summary as JSON. Fields are added, never renamed."""
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
        "seconds": {name.replace(" ", "_"): _spread(times) for name, times in times_of(test)},
        "errors": [
            {"kind": kind, "count": count, "excerpt": tally.excerpts[kind]} for kind, count in tally.failures
        ],
        "workers": [
            {"url": url, "requests": figures.requests, "errors": dict(figures.failures)}
            for url, figures in sorted(tally.workers.items())
        ],
        "timeline": {"slice_s": tally.slice_s, "slices": _timeline(tally.slices)},
    }


def _spread(times: Distribution) -> dict[str, float]:
    return {"count": times.count, "mean": times.mean, **times.summary(), "error": times.error}


def _timeline(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    return [{"ok": s.ok, "failed": s.failed, "latency_s": s.latency.summary()} for s in slices]
