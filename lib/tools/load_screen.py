"""The progress of a running load test: a live table on a terminal, elsewhere a line every 10 seconds.

Owns the layout. The figures are collected in lib/tools/load_tally.py and formatted in
lib/tools/load_report.py.
"""

from __future__ import annotations

import math
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lib.client import describe_workers
from lib.runtime.clock import sleep
from lib.tools.load_report import (
    COLUMNS,
    cells,
    excerpt,
    failure_summary,
    ok_per_s,
    recorded_times,
    workload_per_s,
)
from lib.tools.load_test import LoadTest

# Drawing takes a few milliseconds, in which no request is sent, so the table is not redrawn more often.
REFRESH_S = 0.5
LINE_EVERY_S = 10.0
BAR_WIDTH = 40
# A live table that is taller than the terminal would lose its last lines.
MAX_KINDS = 4
MAX_WORKERS = 6


async def show_progress(test: LoadTest, out: TextIO) -> None:
    """Show the progress of `test` on `out` until cancelled; a terminal is restored at the end."""
    console = Console(file=out)
    if out.isatty() and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(progress_table(test), refresh=True)
                await sleep(test.clock, REFRESH_S)
    while True:
        await sleep(test.clock, LINE_EVERY_S)
        print(progress_line(test), file=out, flush=True)


def progress_line(test: LoadTest) -> str:
    """The progress on one line."""
    text = (
        f"{test.elapsed_s:.0f} s: {test.sent} sent, {test.tally.ok} ok, {test.tally.failed} failed, "
        f"{test.in_flight} in flight, {ok_per_s(test):.2f} ok/s"
    )
    return text if test.states is None else f"{text}; no worker is ready: {describe_workers(test.states)}"


def progress_table(test: LoadTest) -> RenderableType:
    """The progress as a table: counts, times, failures and workers."""
    parts: list[RenderableType] = [_progress(test), _counts(test)]
    if test.states is not None:
        parts.append(Text(f"no worker is ready: {describe_workers(test.states)}", style="yellow"))
    if times := recorded_times(test):
        grid = _grid(14, *(9 for _ in COLUMNS))
        grid.add_row("seconds", *COLUMNS, style="cyan")
        for name, distribution in times:
            grid.add_row(name, *cells(distribution))
        parts += ["", grid]
    if failures := test.tally.failures:
        grid = _grid(26, 8)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("failures", style="cyan")
        for kind, count in failures[:MAX_KINDS]:
            grid.add_row(Text(kind, style="red"), f"{count}", Text(excerpt(test, kind)))
        parts += ["", grid, *_more(len(failures) - MAX_KINDS)]
    if workers := test.tally.workers:
        busiest = sorted(workers.items(), key=lambda item: -item[1].requests)[:MAX_WORKERS]
        grid = _grid(26, 8)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("workers", style="cyan")
        for url, figures in busiest:
            grid.add_row(Text(url), f"{figures.requests}", Text(failure_summary(figures), style="red"))
        parts += ["", grid, *_more(len(workers) - MAX_WORKERS)]
    return Group(*parts)


def _progress(test: LoadTest) -> RenderableType:
    done, left_s = progress(test)
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=done, width=BAR_WIDTH)
    grid.add_row(bar, f"{done:.0%}", "" if left_s is None else f"{_clock(left_s)} left")
    return grid


def progress(test: LoadTest) -> tuple[float, float | None]:
    """The fraction of the plan that is done, 0 to 1, and the estimated seconds left; None if unknown."""
    plan, elapsed_s, ended = test.plan, test.elapsed_s, test.tally.ended
    done = 0.0 if plan.count is None else ended / plan.count
    left_s = math.inf
    if plan.count is not None and plan.rps is not None:
        left_s = max(0.0, plan.count / plan.rps - elapsed_s)
    elif plan.count is not None and ended:
        left_s = elapsed_s / ended * (plan.count - ended)
    if plan.duration_s is not None:
        done = max(done, min(1.0, elapsed_s / plan.duration_s))
        left_s = min(left_s, max(0.0, plan.duration_s - elapsed_s))
    return done, None if left_s == math.inf else left_s


def _counts(test: LoadTest) -> RenderableType:
    tally = test.tally
    counts = Text(f"{tally.ok} ok", style="green")
    counts.append(f"   {tally.failed} failed", style="red" if tally.failed else "default")
    counts.append(f"   {test.in_flight} in flight", style="default")
    counts.append(f"   {ok_per_s(test):.2f} ok/s   {workload_per_s(test):.1f} workload/s", style="default")
    return counts


def _grid(*widths: int) -> Table:
    """A table with columns of these minimal widths, so that growing figures don't move the columns."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(min_width=widths[0], no_wrap=True, overflow="ellipsis")
    for width in widths[1:]:
        grid.add_column(min_width=width, justify="right", no_wrap=True)
    return grid


def _more(count: int) -> list[RenderableType]:
    return [Text(f"and {count} more", style="dim")] if count > 0 else []


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
