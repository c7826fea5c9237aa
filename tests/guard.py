"""The time limit of every wait in a test."""

from __future__ import annotations

# Seconds of real time. It only costs time when something is broken, so it is long enough for a busy machine.
GUARD_S = 60.0
