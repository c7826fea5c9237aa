"""The process that has the worker's port, if any has."""

from __future__ import annotations

import os
from pathlib import Path

# A socket that listens, in /proc/net/tcp.
_LISTENS = "0A"


def holder_of(port: int, proc: Path = Path("/proc")) -> str | None:
    """Describe the process that listens on `port`, as far as this user may see it; None if none does."""
    inode = _listening_socket(port, proc)
    return None if inode is None else _process_with(inode, proc)


def _listening_socket(port: int, proc: Path) -> str | None:
    """The inode of the socket that listens on the port."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()
        except OSError:
            continue
        for fields in map(str.split, lines[1:]):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                return fields[9]
    return None


def _process_with(inode: str, proc: Path) -> str:
    for folder in proc.glob("[0-9]*/fd"):
        try:
            if any(os.readlink(each) == f"socket:[{inode}]" for each in folder.iterdir()):
                command = (folder.parent / "cmdline").read_bytes().replace(b"\0", b" ")
                return f"process {folder.parent.name} ({command.decode(errors='replace').strip()})"
        except OSError:  # another user's, or it has ended
            continue
    return "a process of another user"
