"""The markers `process` and `carrier`: found in the code. A test that needs `process` fails without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.command import done
from tests.process_marker import CodeSearch, starts_process, uses_carrier
from tests.system import PortLease, with_worker_process, with_worker_task

CONFTEST = """
from tests import process_marker

def pytest_configure(config):
    process_marker.install(config)
"""
UNMARKED = """
import os, subprocess, sys

run = getattr(subprocess, "r" + "un")

def test_a_raised_error():
    run([sys.executable, "-V"], check=True)

def test_a_caught_error():
    try:
        os.system("true")
    except RuntimeError:
        pass

def test_an_allowed_command():
    try:
        run(["nvidia-smi"], check=False)
    except FileNotFoundError:
        pass
"""


def starts_python() -> None:
    subprocess.run([sys.executable, "-V"], check=True)


class Starter:
    def start(self) -> None:
        starts_python()


def names_a_class() -> object:
    return Starter


async def uses_a_process(tmp_path: Path) -> None:
    async with with_worker_process(tmp_path):
        pass


async def uses_a_task(tmp_path: Path) -> None:
    async with with_worker_task(tmp_path):
        PortLease().close()


@pytest.mark.parametrize("function", [starts_python, names_a_class, uses_a_process, with_worker_process])
def test_a_function_that_leads_to_a_process_is_found(function: object) -> None:
    assert CodeSearch(starts_process).finds(function)


@pytest.mark.parametrize("function", [uses_a_task, with_worker_task])
def test_a_worker_task_is_no_process(function: object) -> None:
    assert not CodeSearch(starts_process).finds(function)
    assert CodeSearch(uses_carrier).finds(function)


@pytest.mark.parametrize("function", [starts_python, names_a_class])
def test_what_starts_no_worker_has_no_carrier(function: object) -> None:
    assert not CodeSearch(uses_carrier).finds(function)


@pytest.mark.one_python
async def test_a_test_that_starts_a_process_without_the_marker_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_unmarked.py").write_text(UNMARKED)
    words = (
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--strict-markers",
        "-o",
        "markers=process",
    )
    ended = await done(*words, cwd=tmp_path, env={"PYTEST_ADDOPTS": ""})
    assert ended.status == 1
    assert "2 failed, 1 passed" in ended.output
    assert ended.output.count("without the marker `process`") >= 2
