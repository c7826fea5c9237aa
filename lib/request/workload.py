"""How much work a payload is, whatever its author's code does (authoring.md §1)."""

from __future__ import annotations

import logging
import math
from typing import Any

from lib.data_types import DEFAULT_WORKLOAD
from lib.errors import result_or_error

log = logging.getLogger(__name__)


class WorkloadCounter:
    """Counts the workload of one handler's payloads.

    What is not a finite number ≥ 0, a raise included, counts as 100.0 and is logged once.
    """

    def __init__(self, handler_name: str) -> None:
        self._handler_name = handler_name
        self._complained = False

    def count(self, payload: Any) -> float:
        """`payload`'s workload, in the author's unit; a payload that can't tell counts as 100.0."""
        count = getattr(payload, "count_workload", None)
        if count is None:
            return DEFAULT_WORKLOAD
        counted: Any = result_or_error(count)
        usable = isinstance(counted, (int, float)) and not isinstance(counted, bool)
        if usable and 0 <= counted < math.inf:
            workload = result_or_error(lambda: float(counted))
            if isinstance(workload, float):
                return workload
        if not self._complained:
            self._complained = True
            log.warning(
                "%s: count_workload gave %r: counted as %g", self._handler_name, counted, DEFAULT_WORKLOAD
            )
        return DEFAULT_WORKLOAD
