"""Limits of numeric fields, as one line for each field that is outside.

Owns the two checks that handlers, benchmarks and the backend's arguments share. The types of fields are
checked in annotations.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


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
