"""Takes away from a Python process what only Linux has, and makes it behave as macOS does where that differs.

Python imports it at the start if this folder is on PYTHONPATH (documentation of the module `site`). Processes
that it starts have it too.
"""

from __future__ import annotations

import os
import resource
import select
import selectors
import signal
import socket
import sys
from types import ModuleType
from typing import Any

_LINUX_ONLY: dict[ModuleType, tuple[str, ...]] = {
    socket: ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_INFO", "TCP_QUICKACK", "SO_BINDTODEVICE", "AF_NETLINK"),
    os: ("pidfd_open", "sched_getaffinity", "sched_setaffinity", "posix_fadvise", "memfd_create", "eventfd"),
    select: ("epoll",),
    signal: ("sigtimedwait", "sigwaitinfo", "SIGRTMIN", "SIGRTMAX"),
}
# macOS names no limit, and refuses one of more than this (`kern.maxfilesperproc`).
_MAX_FILES = 61_440
_NO_LIMIT = 2**63 - 1


def _take_away() -> None:
    for module, names in _LINUX_ONLY.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    selectors.DefaultSelector = selectors.PollSelector  # type: ignore[misc] - it was chosen already
    if hasattr(os, "process_cpu_count"):  # of Python 3.13, which chose how it counts when `os` was imported
        os.process_cpu_count = os.cpu_count  # type: ignore[attr-defined]


def _limit_files() -> None:
    get, put = resource.getrlimit, resource.setrlimit

    def getrlimit(which: int) -> tuple[int, int]:
        soft, hard = get(which)
        return (soft, _NO_LIMIT) if which == resource.RLIMIT_NOFILE else (soft, hard)

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        soft, hard = limits
        if which == resource.RLIMIT_NOFILE:
            if soft > _MAX_FILES:
                raise ValueError("current limit exceeds maximum limit")
            hard = get(which)[1]
        put(which, (soft, hard))

    resource.RLIM_INFINITY = _NO_LIMIT  # type: ignore[misc]
    resource.getrlimit, resource.setrlimit = getrlimit, setrlimit


def _bind_once() -> None:
    """Refuse a port that another socket is bound to: SO_REUSEADDR allows that on Linux only."""
    bind = socket.socket.bind

    def bind_once(self: socket.socket, address: Any) -> None:
        if (
            self.type == socket.SOCK_STREAM
            and self.family in (socket.AF_INET, socket.AF_INET6)
            and address[1]
        ):
            with socket.socket(self.family, self.type) as other:
                if self.family == socket.AF_INET6:
                    only = self.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                    other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
                bind(other, address)
        bind(self, address)

    socket.socket.bind = bind_once  # type: ignore[method-assign]


_take_away()
_limit_files()
_bind_once()
sys.modules["uvloop"] = None  # type: ignore[assignment] - as if it were not installed
