"""Delays between retries: exponential, with jitter, up to a limit.

Owns their lengths. It does not wait or retry: callers do.
"""

from __future__ import annotations

import random


class Backoff:
    """The delays between retries: at most `first_s` seconds, then doubled each time, up to `last_s`.

    Each delay is shortened at random by up to the share `jitter` of it, 0 to 1, so that those that fail
    together don't retry together.
    """

    def __init__(self, first_s: float, last_s: float, jitter: float = 0.5) -> None:
        self._delay_s = first_s
        self._last_s = last_s
        self._jitter = jitter

    def next_s(self) -> float:
        """Return the delay before the next retry, in seconds."""
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, self._last_s)
        return delay_s * random.uniform(1.0 - self._jitter, 1.0)
