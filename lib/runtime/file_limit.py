"""The limit on open files of this process.

Owns raising it. Workers and load tests use one or two sockets for each request in flight.
"""

from __future__ import annotations

import resource


def raise_file_limit() -> None:
    """Raise the soft limit on open files (`RLIMIT_NOFILE`) to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
