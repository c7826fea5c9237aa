"""A chart made of characters: values against numbers that span magnitudes.

Owns the drawing. It has no colours, so that it looks the same in a terminal, a file and a pipe.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HEIGHT = 12
MIN_WIDTH = 30
MAX_WIDTH = 80
# The least width of the drawing itself: with labels of many digits the chart becomes wider than asked for.
MIN_COLUMNS = 8
# The least number of columns between two labels of the lower axis.
_GAP = 2


@dataclass(frozen=True)
class Symbols:
    """The characters of a chart."""

    point: str
    best: str
    line: str
    left: str
    bottom: str
    corner: str


UNICODE = Symbols(point="●", best="◆", line="·", left="│", bottom="─", corner="└")
ASCII = Symbols(point="o", best="*", line=".", left="|", bottom="-", corner="+")


def draw(points: Sequence[tuple[int, float]], best: int, width: int, encoding: str | None) -> list[str]:
    """Return the lines of a chart of `points`, pairs of a number from 1 on and a value from 0 on, by number.

    The number `best` is marked. The lower axis is logarithmic. `width` is that of the output, in characters;
    `encoding` is the output's, and None if it isn't known.
    """
    symbols = UNICODE if _can_encode(UNICODE, encoding) else ASCII
    highest = max((value for _, value in points), default=0.0) or 1.0
    labels = {0: shown(highest), HEIGHT // 2: shown(highest / 2), HEIGHT: "0"}
    margin = max(map(len, labels.values()))
    columns = max(MIN_COLUMNS, min(max(width, MIN_WIDTH), MAX_WIDTH) - margin - 3)
    at = _columns_of([number for number, _ in points], columns)
    rows = [[" "] * columns for _ in range(HEIGHT + 1)]
    for column, value in _between([(at[number], value) for number, value in points]):
        rows[_row_of(value, highest)][column] = symbols.line
    for number, value in sorted(points, key=lambda point: point[0] == best):
        rows[_row_of(value, highest)][at[number]] = symbols.best if number == best else symbols.point
    lines = [
        f"{labels.get(row, ''):>{margin}} {symbols.left}{''.join(cells)}".rstrip()
        for row, cells in enumerate(rows)
    ]
    axis = f"{'':>{margin}} {symbols.corner}{symbols.bottom * columns}"
    return [*lines, axis, f"{'':>{margin}}  {_axis_labels(at, best, columns)}".rstrip()]


def _can_encode(symbols: Symbols, encoding: str | None) -> bool:
    try:
        "".join(vars(symbols).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _columns_of(numbers: Sequence[int], columns: int) -> dict[int, int]:
    """The column of each number, by its logarithm; the middle one if there is one number only."""
    logs = {number: math.log(max(1, number)) for number in numbers}
    lowest, highest = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    if highest == lowest:
        return dict.fromkeys(numbers, columns // 2)
    return {n: round((columns - 1) * (log - lowest) / (highest - lowest)) for n, log in logs.items()}


def _row_of(value: float, highest: float) -> int:
    return round(HEIGHT * (1 - min(1.0, max(0.0, value / highest))))


def _between(points: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Yield a point in each column between two points, on the line between them."""
    for (left, low), (right, high) in itertools.pairwise(points):
        for column in range(left + 1, right):
            yield column, low + (high - low) * (column - left) / (right - left)


def _axis_labels(at: dict[int, int], best: int, columns: int) -> str:
    """The numbers below their columns: the best first, and others where there is room."""
    line = [" "] * (columns + len(str(max(at, default=0))))
    for number in sorted(at, key=lambda number: (number != best, number)):
        text = str(number)
        begin = min(max(0, at[number] - len(text) // 2), len(line) - len(text))
        around = line[max(0, begin - _GAP) : begin + len(text) + _GAP]
        if set(around) == {" "}:
            line[begin : begin + len(text)] = text
    return "".join(line)


def shown(value: float) -> str:
    """The value with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
