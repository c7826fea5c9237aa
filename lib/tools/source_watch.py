"""The changes of an author's Python files, for `pyworker run --reload`.

Owns which files are watched and how a change is noticed. It looks at them at intervals: that needs no
package and works on every file system. Files that no run has imported yet are watched too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from anyio.to_thread import run_sync as in_thread

from lib.runtime.clock import Clock, sleep

# Seconds between two looks.
INTERVAL_S = 0.5
# Folders with code of others, or with none. A virtual environment is recognized by its file.
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_VENV_FILE = "pyvenv.cfg"

# The time of change in nanoseconds and the size of each file.
_Snapshot = Mapping[Path, tuple[int, int]]


class SourceWatch:
    """Watches the Python files in and below `folder`, without hidden folders and virtual environments."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._seen = _snapshot(folder)

    async def changed(self) -> list[str]:
        """Wait until files have changed since the last call or the start; return their paths, sorted.

        It waits until an interval passes without a further change, as several files may be saved together.
        """
        before = last = now = self._seen
        while now == before or now != last:
            last = now
            await sleep(self._clock, INTERVAL_S)
            now = await in_thread(_snapshot, self._folder)
        self._seen = now  # only here: a call that is cancelled leaves its change to the next one
        paths = before.keys() | now.keys()
        return sorted(str(p.relative_to(self._folder)) for p in paths if before.get(p) != now.get(p))


def _snapshot(folder: Path) -> _Snapshot:
    found: dict[Path, tuple[int, int]] = {}
    for place, folders, files in os.walk(folder):
        if _VENV_FILE in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for path in (Path(place, name) for name in files if name.endswith(".py")):
            try:
                status = path.stat()
            except OSError:  # it was removed meanwhile
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
    return found
