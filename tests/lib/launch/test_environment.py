"""The worker's environment: one whose making was interrupted is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.launch.commands import Commands
from lib.launch.environment import Environment
from lib.launch.log import LaunchLog

pytestmark = pytest.mark.process


def environment_in(folder: Path) -> Environment:
    """Return the environment of a framework that needs no packages, on a machine without uv."""
    code = folder / "code"
    (code / "lib").mkdir(parents=True, exist_ok=True)
    (code / "lib" / "server.py").touch()
    log = LaunchLog()
    commands = Commands(log, {"PATH": str(folder / "none"), "HOME": os.environ.get("HOME", "")})
    return Environment(folder / "venv", code, code, commands, log, is_update=False)


@pytest.mark.parametrize("missing", ["pip", "pip/_vendor/urllib3"])
def test_an_environment_whose_pip_is_incomplete_is_made_again(tmp_path: Path, missing: str) -> None:
    environment = environment_in(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    shutil.rmtree(packages / missing)
    environment.make()
    assert (packages / missing).is_dir()
    (tmp_path / "venv" / "mark").touch()
    (tmp_path / "venv" / "installed").unlink()
    environment.make()
    assert (tmp_path / "venv" / "mark").exists()  # a complete one is kept
