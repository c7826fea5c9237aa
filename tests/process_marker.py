"""The markers `process` and `carrier`: set on each test that can start a process, or a worker as a task.

They are found in the code: a test is marked if its function, its fixtures, or the helpers in tests/ that they
name (directly or through other helpers) name a function that starts a process, or the carrier of the workers
under test. Other tests that start a process are marked by hand. The guard fails every test that starts a
process without the marker, so none is missed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Set
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

_ROOT = Path(__file__).parents[1]
# Files whose functions are searched.
_SEARCHED = tuple(
    str(_ROOT / path)
    for path in ("tests/", "lib/local/processes.py", "lib/local/hello_world.py", "lib/testing.py")
)
# Names of functions that start a process.
_STARTERS = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "async_playwright"}
# The same, as attributes of the module `subprocess`.
_SUBPROCESS_STARTERS = {"run", "call", "check_call", "check_output"}
# The carrier of a worker that is a task (tests/system.py).
_CARRIER = "CARRIER"
# Audit events of Python that come before a process is started.
_EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
# Questions about the machine, which libraries ask as well: for GPUs (benchmarks), the processor (`platform`),
# fonts (matplotlib), and shared libraries (`ctypes.util`).
_ALLOWED = {"nvidia-smi", "uname", "fc-list", "system_profiler", "ldconfig", "gcc", "cc", "ld", "objdump"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that can start a process, or a worker as a task."""
    searches = {"process": CodeSearch(starts_process), "carrier": CodeSearch(uses_carrier)}
    for item in items:
        if isinstance(item, pytest.Function):
            for marker, search in searches.items():
                if any(map(search.finds, _functions(item))):
                    item.add_marker(marker)


def _functions(item: pytest.Function) -> Iterator[Callable[..., Any]]:
    """The test's function and those of its fixtures."""
    yield item.function  # pyright: ignore[reportUnknownMemberType]
    for name in item.fixturenames:
        for fixture in item.session._fixturemanager.getfixturedefs(name, item) or ():  # pyright: ignore[reportPrivateUsage]
            yield fixture.func


def starts_process(names: Set[str]) -> bool:
    """Whether code that uses `names` starts a process."""
    return bool(names & _STARTERS or ("subprocess" in names and names & _SUBPROCESS_STARTERS))


def uses_carrier(names: Set[str]) -> bool:
    """Whether code that uses `names` starts a worker as a task, which has the carrier under test."""
    return _CARRIER in names


class CodeSearch:
    """Searches functions for code whose names are `wanted`; remembers what it has found."""

    def __init__(self, wanted: Callable[[Set[str]], bool]) -> None:
        self._wanted = wanted
        self._known: dict[object, bool] = {}

    def finds(self, function: object) -> bool:
        """Whether the code of `function`, or of a class's method, or of what it names, is wanted."""
        function = getattr(function, "__wrapped__", function)
        if function not in self._known:
            self._known[function] = False  # ends the search of functions that call each other
            self._known[function] = any(map(self._finds_in, _own_functions(function)))
        return self._known[function]

    def _finds_in(self, function: FunctionType) -> bool:
        names = set(_names(function.__code__))
        if self._wanted(names):
            return True
        named = (function.__globals__.get(name) for name in names)
        return any(self.finds(each) for each in named if _is_searched(each))


def _own_functions(function: object) -> Iterator[FunctionType]:
    """`function` itself, or the methods of a class."""
    if isinstance(function, FunctionType):
        yield function
    elif isinstance(function, type):
        for member in vars(function).values():
            inner = getattr(member, "__wrapped__", member)
            if isinstance(inner, property):
                inner = inner.fget
            if isinstance(inner, FunctionType):
                yield inner


def _names(code: CodeType) -> Iterator[str]:
    """The names used in `code` and in the functions defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_searched(named: object) -> bool:
    """Whether `named` is a function or a class of a file that is searched."""
    named = getattr(named, "__wrapped__", named)
    return any(function.__code__.co_filename.startswith(_SEARCHED) for function in _own_functions(named))


class _Guard:
    """Fails tests that start a process without the marker."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None
        self._started: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _EVENTS or self._item is None or self._item.get_closest_marker("process"):
            return
        command = str(args[0]) if args else event
        if os.path.basename(command) in _ALLOWED:
            return
        self._started.append(command)
        raise RuntimeError(f"{command} was started by a test without the marker `process`")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._item = item
        self._started.clear()
        try:
            return (yield)
        finally:
            self._item = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail the test even if its code has caught the guard's error."""
        report = yield
        if self._started and report.passed:
            report.outcome = "failed"
            report.longrepr = f"started without the marker `process`: {self._started} (tests/README.md)"
        return report


def install(config: pytest.Config) -> None:
    """Set and check the marker in this run."""
    config.pluginmanager.register(sys.modules[__name__], "process marker")
    config.pluginmanager.register(_Guard(), "process guard")
