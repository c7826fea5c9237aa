"""The profile of `--profile`: the functions that this worker runs for a request, by package and by name.

cProfile counts each call of a Python function, a frame, exactly. Its times are elapsed time with its own cost
included, so that small functions look more expensive than they are. Compiled functions have no frames, but
their time counts. uvloop's own time is not measured.
"""

from __future__ import annotations

import pstats
import re
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import LoadJob
from benchmarks.loads import Load
from benchmarks.processes import ROOT, ProcessFailed
from benchmarks.rounds import warm_up
from benchmarks.subjects import ThisWorker
from benchmarks.system import running_system

TOP_FUNCTIONS = 40
# Packages that take less than this are not shown, in µs for each request or event.
LEAST_US = 0.05
WRITE_LIMIT_S = 30.0
# Packages of the standard library that are shown by name.
_NAMED = frozenset({"asyncio", "json", "logging", "base64", "email", "ssl", "urllib"})
# Compiled modules, and the package that each belongs to.
_COMPILED = {
    "_json": "json",
    "_asyncio": "asyncio",
    "_socket": "asyncio",
    "aiohttp": "aiohttp",
    "multidict": "aiohttp",
    "yarl": "aiohttp",
    "propcache": "aiohttp",
    "frozenlist": "aiohttp",
    "cryptography": "cryptography",
    "Crypto": "pycryptodome",
    "uvloop": "uvloop",
}
# Packages whose cost is counted under another package.
_PART_OF = {
    "Crypto": "pycryptodome",
    "cffi": "pycryptodome",
    "multidict": "aiohttp",
    "yarl": "aiohttp",
    "propcache": "aiohttp",
    "frozenlist": "aiohttp",
    "aiosignal": "aiohttp",
}
_COMPILED_NAME = re.compile(r"(?:built-in method |of ')([\w]+)[.']")


@dataclass(frozen=True)
class FunctionCost:
    """One function's calls and its own time in a profile; `is_frame`: it is a Python function."""

    package: str
    name: str
    calls: int
    time_s: float
    is_frame: bool


@dataclass(frozen=True)
class Profile:
    """The functions that ran under `load`, the slowest first, and the number of its requests or events."""

    load: Load
    costs: Sequence[FunctionCost]
    units: int

    @property
    def unit(self) -> str:
        return "event" if self.load.events else "request"


async def profile(load: Load) -> Profile:
    """Run this worker under cProfile with `load`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        subject = ThisWorker(path)
        async with running_system() as system, subject.running(system.around) as running:
            assert running.process is not None
            await warm_up(running, system)
            job = LoadJob.of(load, running.port, running.url, subject.form_of(load))
            await system.generator.prepare(job)
            running.process.send_signal(signal.SIGUSR1)
            result = await system.generator.send(job)
            running.process.send_signal(signal.SIGUSR2)
            await system.generator.close()
            await _written(path)
        requests = result.answered or load.count
        return Profile(load, read_costs(path), requests * (load.events or 1))


async def _written(path: Path) -> None:
    """Wait until the profile is there. Raises `ProcessFailed` after 30 s."""
    with anyio.move_on_after(WRITE_LIMIT_S):
        while True:
            if await anyio.Path(path).exists():
                return
            await anyio.sleep(0.1)
    raise ProcessFailed("the worker has written no profile")


def read_costs(path: Path) -> list[FunctionCost]:
    """The functions of a profile, those that took longest first."""
    stats: Mapping[tuple[str, int, str], tuple[int, int, float, float, Any]] = vars(pstats.Stats(str(path)))[
        "stats"
    ]
    costs = [
        FunctionCost(package_of(file, name), _shown(file, line, name), calls, own_s, file != "~")
        for (file, line, name), (_, calls, own_s, _, _) in stats.items()
    ]
    return sorted(costs, key=lambda cost: cost.time_s, reverse=True)


def package_of(file: str, name: str) -> str:
    """The package that a function's cost is counted under; `file` "~": the function is compiled."""
    if file == "~":
        found = _COMPILED_NAME.search(name)
        return _COMPILED.get(found[1], "compiled") if found else "compiled"
    path = Path(file)
    if path.is_relative_to(ROOT) and ".venv" not in path.parts and "site-packages" not in path.parts:
        return "pyworker"
    parts = path.with_suffix("").parts
    if "site-packages" in parts:
        top = parts[parts.index("site-packages") + 1]
        return _PART_OF.get(top, top)
    named = [part for part in parts if part in _NAMED]
    return named[-1] if named else "standard library"


def print_profile(profile: Profile, console: Console) -> None:
    """Print frames and time for each request or event, by package and then by function."""
    units, unit = profile.units, profile.unit
    calls: Counter[str] = Counter()
    times_s: defaultdict[str, float] = defaultdict(float)
    for cost in profile.costs:
        times_s[cost.package] += cost.time_s
        calls[cost.package] += cost.calls if cost.is_frame else 0
    console.print(f"{profile.load.title}, under cProfile: {units} {unit}s")
    packages = _table("By package", "package", f"frames, per {unit}", f"time, µs per {unit}")
    for package, time_s in sorted(times_s.items(), key=itemgetter(1), reverse=True):
        if time_s / units * 1e6 >= LEAST_US:
            packages.add_row(package, f"{calls[package] / units:.1f}", f"{time_s / units * 1e6:.1f}")
    packages.add_section()
    total_s = sum(times_s.values())
    packages.add_row("all", f"{sum(calls.values()) / units:.1f}", f"{total_s / units * 1e6:.1f}")
    console.print(packages)
    functions = _table("By function", "function", f"calls, per {unit}", f"time, µs per {unit}")
    for cost in profile.costs[:TOP_FUNCTIONS]:
        functions.add_row(cost.name, f"{cost.calls / units:.1f}", f"{cost.time_s / units * 1e6:.1f}")
    console.print(functions)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _shown(file: str, line: int, name: str) -> str:
    if file == "~":
        return name
    parts = Path(file).parts
    if "site-packages" in parts:
        return f"{'/'.join(parts[parts.index('site-packages') + 1 :])}:{line} {name}"
    path = Path(file)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else '/'.join(parts[-2:])}:{line} {name}"
