"""The results as tables: on the terminal, and as the Markdown of `--write`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import ADDED, FIGURES, Figure
from benchmarks.results import Results, Spread
from benchmarks.subjects import SUBJECTS
from benchmarks.targets import SpeedTarget, targets

RESULTS_FILE = Path(__file__).with_name("RESULTS.md")
COMMAND = "python -m benchmarks --write"
NONE = "-"
_TITLES = {subject.name: subject.title for subject in SUBJECTS}

_NOTES = """\
Each figure is the median of the rounds, with the lowest and the highest in brackets. Ratios are formed round
by round.

- CPU is the time, user and system, of all processes of a subject.
- Both workers log at WARNING. The official worker is the PyPI package vastai. It knows the `url`
  form only: where others get requests in the `full` form, it gets the `url` form, and verifies every one.
- nginx has one worker process, keep-alive to the model server and no buffering. Neither nginx nor the model
  server checks signatures.
- Memory a stream is the growth of resident memory, divided by the number of streams that clients hold open.
  Where fewer streams have begun, the others wait in the subject.
- For 32 MiB, memory is the highest resident memory above that before the first such request.
"""


def print_report(results: Results, console: Console) -> None:
    """Print the figures and, if this worker was measured, the targets."""
    _print("Figures", _header(results), _rows(results), console)
    if "worker" in results.subjects:
        _print("Targets", TARGETS_HEADER, (_target_row(target) for target in targets(results)), console)
    for line in _absent(results):
        console.print(line)


def markdown(results: Results) -> str:
    """The text of the results file."""
    machine = "\n".join(f"| {name} | {value} |" for name, value in results.machine.items())
    parts = [
        "# Results of the benchmarks",
        f"Written by `{COMMAND}`. Rounds: {results.rounds}.",
        f"| | |\n| --- | --- |\n{machine}",
        "## Targets",
        _markdown_table(TARGETS_HEADER, (_target_row(target) for target in targets(results))),
        "## Figures",
        _markdown_table(_header(results), _rows(results)),
        _NOTES.strip(),
        "\n".join(f"- {line}" for line in _absent(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


TARGETS_HEADER = ("load", "figure", "at most", "measured", "met")


def _header(results: Results) -> list[str]:
    others = [name for name in results.subjects if name != "worker"]
    ratios = [f"worker ÷ {name}" for name in others] if "worker" in results.subjects else []
    return ["load", "figure", *(_TITLES.get(name, name) for name in results.subjects), *ratios]


def _rows(results: Results) -> Iterator[list[str]]:
    """A row for each load and figure, and one for the latency that is added to direct.

    The loads of the plot are left out.
    """
    others = [name for name in results.subjects if name != "worker"]
    compared = others if "worker" in results.subjects else []
    for load in results.loads:
        title = load.title
        for name in results.figures(load.name) if load.group != "curve" else ():
            figure = FIGURES[name]
            values = [results.spread(load.name, name, subject) for subject in results.subjects]
            ratios = [
                results.ratio(load.name, name, "worker", other) if figure.is_compared else None
                for other in compared
            ]
            yield _row(title, figure, values, ratios)
            title = ""
            if name == "p50_us" and values[0] and results.subjects[0] == "direct":
                added = [
                    Spread.of(list(results.added(load.name, name, subject).values()))
                    for subject in results.subjects[1:]
                ]
                yield _row("", ADDED, [None, *added], [None] * len(compared))


def _row(
    title: str, figure: Figure, values: Sequence[Spread | None], ratios: Sequence[Spread | None]
) -> list[str]:
    return [
        title,
        figure.title,
        *(_text(value, figure.digits) for value in values),
        *(_text(value, 3 if value and value.median < 1 else 2) for value in ratios),
    ]


def _target_row(target: SpeedTarget) -> list[str]:
    met = {True: "yes", False: "no", None: NONE}[target.met]
    digits = 3 if target.limit < 2 else 1
    return [target.load, target.figure, target.limit_text, _text(target.value, digits), met]


def _text(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return NONE
    median, low, high = (f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return median if len(spread.rounds) == 1 else f"{median} ({low} to {high})"


def _absent(results: Results) -> Iterator[str]:
    """A line for every subject that was skipped and every load that has failed."""
    for subject, reason in results.skipped.items():
        yield f"{_TITLES.get(subject, subject)} was skipped: {reason}."
    for (load, subject), reason in results.failed.items():
        yield f"{load} on {_TITLES.get(subject, subject)} has failed: {reason}"


def _print(title: str, header: Sequence[str], rows: Iterator[list[str]], console: Console) -> None:
    table = Table(title=title)
    for index, column in enumerate(header):
        table.add_column(column, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _markdown_table(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
