"""Limits of numeric fields, as one line for each field that is outside, and finite numbers.

Owns the checks that handlers, benchmarks, the backend's arguments and requests share. The types of fields are
checked in annotations.py.
"""

from __future__ import annotations

import decimal
import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

_FINITE = frozenset({str, int, bool, type(None)})


def below_minimum(fields: Any, minimum: float, *names: str) -> Iterator[str]:
    """Yield a line for each attribute of `fields` in `names` that is less than `minimum`; None passes."""
    for name in names:
        value = getattr(fields, name)
        if value is not None and value < minimum:
            yield f"{name} is {value}, less than {minimum}"


def invalid_durations(fields: Any, *names: str) -> Iterator[str]:
    """Yield a line for each attribute of `fields` in `names` that is no number of seconds; None passes."""
    for name in names:
        value = getattr(fields, name)
        if value is not None and not 0 <= value < math.inf:
            yield f"{name} is {value}, not a finite number of seconds ≥ 0"


def is_finite(root: Any) -> bool:
    """Whether `root` contains neither NaN nor infinity, at any depth."""
    if type(root) in _FINITE:
        return True
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, (float, decimal.Decimal)):
            if not math.isfinite(value):
                return False
        elif isinstance(value, dict):
            pending.extend(cast("dict[Any, Any]", value).values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending.extend(cast("Iterable[Any]", value))
    return True
