"""Figures in messages."""

from __future__ import annotations

# From here on, a figure is shown with an exponent.
_LARGE = 1e15
_MAX_DECIMALS = 15


def more_than(value: float, limit: float, unit: str = "") -> str:
    """Format `value` and the `limit` below it, for instance `2.04 s, more than 2 s`.

    They have one decimal, or as many as show that `value` is the larger one.
    """
    texts = repr(value), repr(limit)
    if value < _LARGE:
        for decimals in range(1, _MAX_DECIMALS + 1):
            rounded = _rounded(value, decimals), _rounded(limit, decimals)
            if float(rounded[0]) > float(rounded[1]):
                texts = rounded
                break
    return f"{texts[0]}{unit}, more than {texts[1]}{unit}"


def _rounded(number: float, decimals: int) -> str:
    return f"{number:.{decimals}f}".rstrip("0").rstrip(".")
