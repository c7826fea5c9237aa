"""The limit on open files of this process.

Owns raising it, and how many connections it allows. Workers and load tests use one or two sockets for each
request in flight.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

# Files that a worker needs beside its requests: its log, its ports, the model's log, reports, and threads.
RESERVED_FILES = 48
MIN_CONNECTIONS = 8
# The limit that is tried first where the system names none.
MOST_FILES = 2**20


def raise_file_limit(system: Any = resource) -> None:
    """Raise the soft limit on open files (`RLIMIT_NOFILE`) to the hard limit, or as far as the system allows.

    macOS names no hard limit, and refuses one above a number that it doesn't name either: `MOST_FILES` is
    halved until it takes one. `system` is the module `resource`.
    """
    soft, hard = system.getrlimit(system.RLIMIT_NOFILE)
    if soft == system.RLIM_INFINITY:
        return
    wanted = MOST_FILES if hard == system.RLIM_INFINITY else hard
    while wanted > soft:
        try:
            system.setrlimit(system.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            wanted //= 2
        else:
            return


def max_connections() -> int:
    """The number of clients' connections for each of which another one to the model server can be opened."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(MIN_CONNECTIONS, (soft - RESERVED_FILES) // 2)
