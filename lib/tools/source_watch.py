"""The changes of an author's Python files, for `pyworker run --reload`.

Owns which files are watched, how a change is noticed, and which files are ignored because the worker writes
them. It looks at them at intervals: that needs no package and works on every file system. Files that no run
has imported yet are watched too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from anyio.to_thread import run_sync as in_thread

from lib.runtime.clock import Clock, sleep

# Seconds between two looks.
INTERVAL_S = 0.5
# Folders with code of others, or with none. A virtual environment is recognized by its file.
_SKIPPED = ("*cache*", "node_modules", "site-packages", "build", ".*")
_VENV_FILE = "pyvenv.cfg"
# After so many changes in a row, each within so many seconds of a start, the worker itself writes the files.
QUICK_CHANGES = 5
QUICK_S = 10.0

# The time of change in nanoseconds and the size of each file.
_Snapshot = Mapping[Path, tuple[int, int]]


class SourceWatch:
    """Watches the Python files in and below `folder`, without hidden folders, caches and environments."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._seen = _snapshot(folder)
        self._ignored: set[Path] = set()
        self._started_s = clock.monotonic()
        self._quick_changes = 0

    def worker_started(self) -> None:
        """Note the time of a start of the worker, for `ignores`."""
        self._started_s = self._clock.monotonic()

    async def changed(self) -> list[str]:
        """Wait until files have changed since the last call or the start; return their paths, sorted.

        It waits until an interval passes without a further change, as several files may be saved together.
        """
        before = last = now = self._seen
        while now == before or now != last:
            last = now
            await sleep(self._clock, INTERVAL_S)
            now = await in_thread(_snapshot, self._folder, self._ignored)
        self._seen = now  # only here: a call that is cancelled leaves its change to the next one
        paths = before.keys() | now.keys()
        return sorted(str(p.relative_to(self._folder)) for p in paths if before.get(p) != now.get(p))

    def ignores(self, changed: Iterable[str]) -> bool:
        """Whether the worker seems to write the files that `changed()` returned; if so, ignore them from now.

        That is after `QUICK_CHANGES` in a row, each within `QUICK_S` of the last start: each change would
        lead to the next one.
        """
        is_quick = self._clock.monotonic() - self._started_s < QUICK_S
        self._quick_changes = self._quick_changes + 1 if is_quick else 0
        if self._quick_changes < QUICK_CHANGES:
            return False
        self._quick_changes = 0
        self._ignored |= {self._folder / name for name in changed}
        self._seen = {path: seen for path, seen in self._seen.items() if path not in self._ignored}
        return True


def _snapshot(folder: Path, ignored: Collection[Path] = ()) -> _Snapshot:
    found: dict[Path, tuple[int, int]] = {}
    for place, folders, files in os.walk(folder):
        if _VENV_FILE in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not any(fnmatch(name, skipped) for skipped in _SKIPPED)]
        for path in (Path(place, name) for name in files if name.endswith(".py")):
            if path in ignored:
                continue
            try:
                status = path.stat()
            except OSError:  # it was removed meanwhile
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
    return found
