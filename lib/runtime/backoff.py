"""Delays between tries of something that fails: doubling, with jitter, up to a limit."""

from __future__ import annotations

import random


class Backoff:
    """The delays between tries, in seconds: at most `first_s`, then doubled up to `last_s`.

    Each is shortened at random by up to the share `jitter` of it, so that many that fail together don't try
    again together.
    """

    def __init__(self, first_s: float, last_s: float, jitter: float = 0.5) -> None:
        self._delay_s = first_s
        self._last_s = last_s
        self._jitter = jitter

    def next_s(self) -> float:
        """The delay before the next try."""
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, self._last_s)
        return delay_s * random.uniform(1.0 - self._jitter, 1.0)
