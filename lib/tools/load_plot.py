"""The plot of a load test: throughput and latency over time, and the distribution of times.

matplotlib comes with the extra `plot`. It is imported only when a plot is asked for.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from lib.tools.distribution import SMALLEST
from lib.tools.load_report import headline
from lib.tools.load_tally import BETWEEN_CHUNKS, FIRST_BYTE, LATENCY
from lib.tools.load_test import LoadTest

KINDS = (".pdf", ".png", ".svg")
SIZE_INCHES = (9.0, 10.0)
DPI = 120

_OK, _FAILED, _MEDIAN = "tab:green", "tab:red", "tab:blue"


class CannotPlot(Exception):
    """No plot can be made; the text says why, and what to do."""


def check_plot(path: Path) -> None:
    """Import matplotlib; raise `CannotPlot` if that fails or if no plot can be written to `path`."""
    if path.suffix.lower() not in KINDS:
        raise CannotPlot(f"{path} must end in one of {', '.join(KINDS)}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise CannotPlot(f"{path} cannot be written: it is a folder, or its folder is missing or read-only")
    _figure_class()


def save_plot(test: LoadTest, path: Path, *, interrupted: bool = False) -> None:
    """Write the plot of `test` to `path`, in the format of its suffix. Raises `CannotPlot`."""
    figure: Any = _figure_class()(figsize=SIZE_INCHES, layout="constrained")
    figure.suptitle(
        f"{test.plan.path}, {_pace(test)}\n{headline(test, interrupted=interrupted)}", fontsize=10
    )
    throughput, latency, distributions = figure.subplots(3, 1)
    latency.sharex(throughput)
    _plot_throughput(throughput, test)
    _plot_latency(latency, test)
    _plot_distributions(distributions, test)
    for axes in (throughput, latency, distributions):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=DPI)
    except OSError as e:
        raise CannotPlot(f"{path} cannot be written: {e.strerror or e}") from e


def _pace(test: LoadTest) -> str:
    plan = test.plan
    return f"{plan.concurrency} in flight" if plan.rps is None else f"{plan.rps:g} requests per second"


def _plot_throughput(axes: Any, test: LoadTest) -> None:
    slice_s, slices = test.tally.slice_s, test.tally.slices
    edges_s = [index * slice_s for index in range(len(slices) + 1)]
    if slices:
        # Only the last slice may be shorter than the others.
        lengths_s = [min(slice_s, max(test.elapsed_s - at_s, slice_s / 10)) for at_s in edges_s[:-1]]
        ok = [s.ok / length_s for s, length_s in zip(slices, lengths_s, strict=True)]
        failed = [s.failed / length_s for s, length_s in zip(slices, lengths_s, strict=True)]
        axes.stairs(ok, edges_s, color=_OK, label="ok")
        if any(failed):
            axes.stairs(failed, edges_s, color=_FAILED, label="failed")
        axes.legend()
    axes.set(ylabel="answers per second", ylim=(0, None))


def _plot_latency(axes: Any, test: LoadTest) -> None:
    slice_s = test.tally.slice_s
    slices = [((i + 0.5) * slice_s, s.latency) for i, s in enumerate(test.tally.slices) if s.latency.count]
    at_s = [middle_s for middle_s, _ in slices]
    if slices:
        for percent, colour in ((50, _MEDIAN), (99, "tab:orange")):
            values = [latency.percentile(percent) for _, latency in slices]
            axes.plot(at_s, values, color=colour, marker=".", label=f"p{percent}")
        axes.legend()
    axes.set(ylabel="latency in seconds", xlabel="seconds since the start", ylim=(0, None))


def _plot_distributions(axes: Any, test: LoadTest) -> None:
    """Draw the cumulative distribution of each time, on a logarithmic axis, as times span magnitudes."""
    times = [(name, test.tally.times[name]) for name in (FIRST_BYTE, LATENCY, BETWEEN_CHUNKS)]
    curves = [(name, distribution.cumulative()) for name, distribution in times if distribution.count]
    for name, curve in curves:
        values = [max(value, SMALLEST) for value, _ in curve]
        axes.plot(values, [100 * fraction for _, fraction in curve], label=name)
    if curves:
        axes.legend()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="seconds", ylabel="percent within this time", ylim=(0, 101))


def _figure_class() -> Any:
    """matplotlib's class of figures, which needs no display. Raises `CannotPlot` if it is not installed."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as e:
        raise CannotPlot("matplotlib is not installed: pip install 'pyworker[plot]'") from e
