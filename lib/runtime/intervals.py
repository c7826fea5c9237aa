"""Intervals between lines of the log that say what is waited for.

Owns their lengths. It uses the standard library only.
"""

from __future__ import annotations

FIRST_INTERVAL_S = 30.0
LAST_INTERVAL_S = 3600.0


def interval_s(waited_s: float) -> float:
    """Return the seconds until the next line about something that was waited for `waited_s` seconds.

    They are 30 in the first two minutes, then a quarter of the time waited, and at most an hour.
    """
    return min(max(FIRST_INTERVAL_S, waited_s / 4), LAST_INTERVAL_S)
