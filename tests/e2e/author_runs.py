"""What the tests of authors' repositories share: writing and running them, and the sums at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.command import done
from tests.system import System

_QUIET = re.compile(r"\d{4}-\d\d-\d\d \S+ INFO ")


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files`, a text by its path in `folder`."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))


async def output_of(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Run `pyworker words` (or `python …`) in `folder`; return its output once it has ended with status 0."""
    ended = await done(*words, cwd=folder, env=env)
    assert ended.status == 0, ended.output + ended.errors
    return ended.output


def loud_lines(log: str) -> list[str]:
    """The lines of a worker's output that are no log lines at INFO: warnings, errors, tracebacks, prints."""
    return [line for line in log.splitlines() if not _QUIET.match(line)]


async def assert_totals(system: System, served: float, errored: float = 0.0, **statuses: int) -> None:
    """Wait until the worker has reported `served` and as many requests as `statuses`; compare all sums.

    `errored` is the workload of requests that failed after they were accepted. `statuses` are the numbers of
    the finished requests by their status on the wire. No other work may have been accepted, rejected or left
    in flight.
    """
    await system.engine.wait_for(lambda: len(system.engine.finished) >= sum(statuses.values()))
    await system.reported(served=served)
    assert Counter(f.request.status for f in system.engine.finished) == statuses
    totals, last = system.totals, system.last_report
    assert (totals.new_load, totals.cur_perf, totals.rej_load) == (served + errored, served, 0.0)
    assert (last.cur_load, last.working_request_idxs, len(system.engine.open_requests)) == (0.0, (), 0)
