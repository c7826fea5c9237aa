"""The report of `pyworker benchmark`: as text with an optional chart, or as JSON.

Owns wording and layout. The figures are made in lib/tools/benchmark_run.py.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

from lib.model.benchmark import UNSURE_FROM
from lib.model.benchmark_keeper import OFF_BY
from lib.runtime.excerpt import excerpt
from lib.tools.benchmark_run import BenchmarkReport
from lib.tools.text_chart import draw, shown

# The width of a chart where the output is no terminal.
WIDTH = 72
MAX_MESSAGE = 200


def print_report(report: BenchmarkReport, *, as_json: bool, with_plot: bool) -> None:
    """Print the report to standard output; with `as_json`, a plot goes to standard error."""
    if as_json:
        print(json.dumps(facts(report), indent=2))
    else:
        _print(_headline(report), "", *_table(report))
    if with_plot:
        out = sys.stderr if as_json else sys.stdout
        _print("", "workload/s", *chart_lines(report, out), "requests in flight", out=out)
    if not as_json:
        _print("", *conclusions(report))


def facts(report: BenchmarkReport) -> dict[str, Any]:
    """The report as JSON."""
    measured, saved = report.measured, report.saved
    return {
        "worker": report.worker,
        "handler": report.inputs.handler,
        "endpoint": report.inputs.endpoint,
        "model_server": report.inputs.model_url,
        "model_name": report.inputs.model_name,
        "served_model": report.result.served_model,
        "gpus": list(report.inputs.gpus),
        "max_perf": measured.perf,
        "spread": measured.spread,
        "concurrency": measured.concurrency,
        "duration_s": measured.duration_s,
        "is_cut": measured.is_cut,
        "is_unsure": measured.is_unsure,
        "doubts": list(doubts(report)),
        "levels": [asdict(level) for level in measured.levels],
        "requests": {
            "succeeded": measured.succeeded,
            "failed": measured.failed,
            "last_message": excerpt(measured.last_message, MAX_MESSAGE),
        },
        "measured_at": report.result.measured_at,
        "saved": None if saved is None else {"max_perf": saved.perf, "measured_at": saved.measured_at},
        "is_saved": report.is_saved,
        "versions": dict(report.result.versions),
    }


def chart_lines(report: BenchmarkReport, out: TextIO) -> list[str]:
    """The lines of the chart of throughput against the number of requests in flight, for `out`."""
    measured = report.measured
    points = [(level.concurrency, level.perf) for level in measured.levels]
    width = shutil.get_terminal_size((WIDTH, 0)).columns if out.isatty() else WIDTH
    return draw(points, measured.concurrency, width, out.encoding)


def _headline(report: BenchmarkReport) -> str:
    inputs, measured = report.inputs, report.measured
    where = f" at {inputs.model_url}{inputs.endpoint or ''}" if inputs.model_url else ""
    return (
        f"{report.worker}{where}: measured for {measured.duration_s:.1f} s, "
        f"{measured.succeeded} requests succeeded, {measured.failed or 'none'} failed"
    )


def _table(report: BenchmarkReport) -> Iterator[str]:
    """Yield a line for each level; the lowest that is as good as the best is marked."""
    measured = report.measured
    yield f"{'in flight':>12}{'workload/s':>14}"
    for level in measured.levels:
        is_warm_up = level.concurrency == 1 and len(measured.levels) > 1
        spread = "one request alone" if is_warm_up else _spread(level.spread)
        mark = "  best" if level.concurrency == measured.concurrency else ""
        yield f"{level.concurrency:>12,}{shown(level.perf):>14}  {spread}{mark}"


def conclusions(report: BenchmarkReport) -> Iterator[str]:
    """Yield what the worker would report, the doubts, and what is saved, a sentence each."""
    measured = report.measured
    yield (
        f"max_perf to report: {measured.perf:,.6g} workload/s ({_spread(measured.spread)}), "
        f"with {measured.concurrency} in flight."
    )
    yield from doubts(report)
    yield _of_saved(report)


def doubts(report: BenchmarkReport) -> Iterator[str]:
    """Yield the reasons why the result may be wrong, in words."""
    measured, settings = report.measured, report.settings
    longer = f"Set BENCHMARK_TARGET_S higher than {settings.benchmark_target_s:g} s to measure for longer."
    if measured.is_cut:
        yield (
            f"It is cut: BENCHMARK_TIME_LIMIT_S, {settings.benchmark_time_limit_s:g} s, ended the benchmark. "
            "A worker measures it anew when it has no requests."
        )
    if measured.spread >= 1:
        yield f"It is unsure: it rests on too few requests. {longer}"
    elif measured.spread > UNSURE_FROM:
        yield f"It is unsure: it is known to {_spread(measured.spread)} and should be to ± 10 %. {longer}"
    elif measured.is_unsure:
        yield f"It is unsure: there was no time to try another number in flight that may give more. {longer}"
    if measured.failed:
        total = measured.succeeded + measured.failed
        last = excerpt(measured.last_message, MAX_MESSAGE)
        yield f"{measured.failed} of {total} requests failed, the last with: {last}"


def _of_saved(report: BenchmarkReport) -> str:
    """The sentence about what the worker's next start reports."""
    if report.is_saved:
        return f"It is saved in {report.directory}: the worker's next start reports it."
    saved = report.saved
    if saved is None:
        return "No result is saved: the worker's next start measures anew. --save would save this one."
    when = time.strftime(" of %Y-%m-%d %H:%M", time.localtime(saved.measured_at)) if saved.measured_at else ""
    difference = saved.perf / report.measured.perf - 1
    if abs(difference) <= OFF_BY:
        verdict = "which this confirms."
    elif saved.concurrency is None:
        verdict = "which it does not verify."
    else:
        verdict = "and measures anew once it has no requests, as that is off by more than 25 %."
    return (
        f"The worker's next start reports the saved result{when}, {saved.perf:,.6g} workload/s "
        f"({100 * difference:+.1f} %), {verdict} --save would replace it."
    )


def _spread(spread: float) -> str:
    return f"± {100 * spread:.1f} %"


def _print(*lines: str, out: TextIO | None = None) -> None:
    """Print the lines to `out`, by default standard output, with `?` for characters that it can't encode."""
    file = out or sys.stdout
    encoding = file.encoding or "ascii"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding), file=file)
