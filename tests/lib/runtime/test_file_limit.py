from __future__ import annotations

import subprocess
import sys

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
