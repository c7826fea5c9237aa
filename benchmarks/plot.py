"""The plot of `--plot`: latency against concurrency, with matplotlib (the extra `plot`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.loads import CURVE_CONCURRENCY
from benchmarks.results import Results


def draw(results: Results, path: Path) -> None:
    """Write the plot to `path`, whose suffix names the format. Raises `ImportError` without matplotlib."""
    pyplot: Any = importlib.import_module("matplotlib.figure")
    figure = pyplot.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, subject in enumerate(results.subjects):
        color = f"C{index}"
        for name, style in (("p50_us", "-"), ("p99_us", ":")):
            spreads = {n: results.spread(f"curve-{n}", name, subject) for n in CURVE_CONCURRENCY}
            points = {n: spread for n, spread in spreads.items() if spread}
            axes.plot(
                list(points),
                [spread.median / 1e3 for spread in points.values()],
                style + "o",
                color=color,
                markersize=3,
                label=f"{subject}, {name.removesuffix('_us')}",
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="requests in flight",
        ylabel="latency, ms",
        title=f"Plain requests (rounds: {results.rounds})",
    )
    axes.set_xticks(CURVE_CONCURRENCY, [str(n) for n in CURVE_CONCURRENCY])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
