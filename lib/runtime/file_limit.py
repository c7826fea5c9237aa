"""The limit on open files of this process.

Owns raising it, and how many connections it allows. Workers and load tests use one or two sockets for each
request in flight.
"""

from __future__ import annotations

import resource
import sys

# Files that a worker needs beside its requests: its log, its ports, the model's log, reports, and threads.
RESERVED_FILES = 48
MIN_CONNECTIONS = 8


def raise_file_limit() -> None:
    """Raise the soft limit on open files (`RLIMIT_NOFILE`) to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def max_connections() -> int:
    """The number of clients' connections for each of which another one to the model server can be opened."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(MIN_CONNECTIONS, (soft - RESERVED_FILES) // 2)
