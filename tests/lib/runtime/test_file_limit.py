from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from lib.runtime.file_limit import raise_file_limit

PROGRAM = """
import resource
from lib.runtime.file_limit import raise_file_limit

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
raise_file_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""


def test_the_soft_limit_becomes_the_hard_limit() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


@dataclass
class Limits:
    """The module `resource` of a system that refuses a soft limit of more than `most`."""

    soft: int
    hard: int
    most: int
    RLIMIT_NOFILE = 7
    RLIM_INFINITY = 2**63 - 1

    def getrlimit(self, which: int) -> tuple[int, int]:
        return self.soft, self.hard

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        if limits[0] > min(self.most, self.hard):
            raise ValueError("current limit exceeds maximum limit")
        self.soft, self.hard = limits


NO_LIMIT = Limits.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "soft"),
    [
        (Limits(256, NO_LIMIT, 61_440), 2**15),  # macOS
        (Limits(256, NO_LIMIT, 10_240), 2**13),
        (Limits(256, 524_288, 122_880), 65_536),
        (Limits(1024, 4096, 2**20), 4096),
        (Limits(20_000, NO_LIMIT, 20_000), 20_000),
        (Limits(NO_LIMIT, NO_LIMIT, 2**20), NO_LIMIT),
        (Limits(256, NO_LIMIT, 0), 256),
    ],
)
def test_the_limit_is_raised_as_far_as_the_system_allows(limits: Limits, soft: int) -> None:
    hard = limits.hard
    raise_file_limit(limits)
    assert (limits.soft, limits.hard) == (soft, hard)
