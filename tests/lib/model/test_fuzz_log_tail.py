"""Random bytes in a log that is rotated and truncated (tests/endurance/fuzz_log_tail.py): some of them."""

from __future__ import annotations

from tests.endurance.fuzz_log_tail import play_logs


def test_the_lines_seen_are_the_lines_written() -> None:
    assert play_logs(60, seed=1) > 60
