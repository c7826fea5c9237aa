"""The memory that this process may use.

Owns reading the limits of Linux's control groups, by which containers are limited: what the machine has is
not what a container may use.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """The machine's memory in bytes, or the lowest limit of a control group that this process is in.

    `root` is the folder that has `proc` and `sys`.
    """
    return min((psutil.virtual_memory().total, *_group_limits(root)))


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of the process's control groups, and of the groups around them: versions 2 and 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = top.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
        for folder in (group, *group.parents):
            limit = _text(folder / name).strip()
            if limit.isdecimal():  # and not "max"
                yield int(limit)
            if folder == top:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):  # there is no such group here
        return ""
