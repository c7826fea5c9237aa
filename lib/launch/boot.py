"""The model server's log of the last boot, which is moved aside once per boot.

Owns when this instance has booted, and whether a log is of this boot. An old "loaded" line must not count in
this boot, and a line of this boot must not be lost.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The largest copy of the log of the last boot.
OLD_MODEL_LOG_BYTES = 64 * 1024 * 1024
# A log that was written later than this before the boot may be of this boot: file systems' clocks are coarse.
BOOT_MARGIN_S = 1.0


@dataclass(frozen=True)
class Boot:
    """A boot of the instance: a text that differs after each, and its Unix time in seconds."""

    id: str
    at: float


def this_boot(proc: Path = Path("/proc"), device: Path = Path("/dev/fd")) -> Boot | None:
    """Return this instance's boot; None where that can't be known.

    In a container, the kernel's boot id and time are the host's, which don't change when the instance
    restarts; the start of the first process does. Its time is counted back from now. If the clock was set
    forward since the boot, files that were written before seem older than that: `device`, which each boot
    makes anew, has the time by the clock of the boot. The earlier one counts.
    """
    try:
        fields = (proc / "1" / "stat").read_text(errors="replace").rpartition(")")[2].split()
        kernel = (proc / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        at = time.time() - age_s
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    with suppress(OSError):
        at = min(at, device.lstat().st_mtime)
    return Boot(f"{kernel} {fields[19]}", at)


def rotate(model_log: Path, marker: Path, boot: Boot | None, say: Callable[[str], None]) -> None:
    """Copy the log of the last boot to `.old` and empty it, unless `marker` says that this boot has done so.

    A log that was written since the boot stays as it is, with the lines that it may have of the last boot.
    The file is emptied, not replaced: the model server may have it open. Another start waits until that is
    done: if both copied the log, the copy could be of the emptied one.
    """
    if boot is None:
        return
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        with open(marker, "a+", errors="replace") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if file.read().strip() == boot.id:
                return
            file.truncate(0)
            file.write(f"{boot.id}\n")
            file.flush()
            _move_aside(model_log, boot, say)
    except OSError:  # a folder that can't be written is reported when the launcher's log is opened
        return


def _move_aside(model_log: Path, boot: Boot, say: Callable[[str], None]) -> None:
    try:
        found = model_log.stat()
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return
    if found.st_mtime >= boot.at - BOOT_MARGIN_S:
        say(f"{model_log} was written in this boot: it stays as it is")
        return
    try:
        with open(f"{model_log}.old", "wb") as old, open(model_log, "rb") as log:
            log.seek(max(0, found.st_size - OLD_MODEL_LOG_BYTES))
            shutil.copyfileobj(log, old)
    except OSError:
        say(f"{model_log}.old could not be written completely: check the free space of its disk")
    _empty(model_log, found, say)


def _empty(model_log: Path, found: os.stat_result, say: Callable[[str], None]) -> None:
    """Empty the log, unless it was written meanwhile."""
    try:
        now = model_log.stat()
        if (now.st_size, now.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
            say(f"{model_log} was written in this boot: it stays as it is")
        else:
            os.truncate(model_log, 0)
    except OSError as e:
        say(f"{model_log} could not be emptied: {e.strerror}")


def find_model_log(model_log: str, code: Path | None, backend: str) -> Path | None:
    """Return `model_log`, or the default in the source of the ready-made worker; None without one.

    A relative path is one in `code`.
    """
    if model_log:
        return Path(code or "", model_log)  # the worker runs in the folder of its code
    if code is None or not backend:
        return None
    found = re.search(r'^MODEL_LOG = "(.+)"$', _text(code / "workers" / backend / "server.py"), re.MULTILINE)
    return Path(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
