"""The worker's environment: when it is made again, and when its packages are installed again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib.launch.checkout import Checkout
from lib.launch.commands import Commands
from lib.launch.environment import Environment
from lib.launch.log import LaunchLog

pytestmark = pytest.mark.process

# An installer that notes its arguments.
NOTING_UV = '#!/bin/sh\necho "$*" >>"$TEST_CALLS"\n'


def environment_in(folder: Path, *, with_uv: bool = False, requirement: str | None = None) -> Environment:
    """Return the environment of a framework that needs no packages, by default on a machine without uv.

    With `requirement`, the framework is the package that it names.
    """
    code = folder / "code"
    (code / "lib").mkdir(parents=True, exist_ok=True)
    (code / "lib" / "server.py").touch()
    log = LaunchLog()
    variables = {"PATH": str(folder / "bin"), "TEST_CALLS": str(folder / "calls")}
    if with_uv:
        (folder / "bin").mkdir()
        (folder / "bin" / "uv").write_text(NOTING_UV)
        (folder / "bin" / "uv").chmod(0o755)
        (folder / "venv" / "bin").mkdir(parents=True)
        (folder / "venv" / "bin" / "python").symlink_to(sys.executable)
    commands = Commands(log, variables)
    framework = Checkout(code, requirement or "", "", "PYWORKER_FRAMEWORK", requirement is not None)
    return Environment(folder / "venv", code, framework, commands, log, is_update=False)


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


@pytest.mark.parametrize(
    "line",
    [
        *("-r more/base.txt", "-rmore/base.txt", "  -c  more/base.txt", "--requirement more/base.txt"),
        *("--requirement=more/base.txt", "--constraint more/base.txt", "--constraint=more/base.txt  # why"),
    ],
)
def test_packages_are_installed_again_if_an_included_file_has_changed(tmp_path: Path, line: str) -> None:
    environment = environment_in(tmp_path, with_uv=True)
    code, calls = tmp_path / "code", tmp_path / "calls"
    (code / "more").mkdir()
    (code / "requirements.txt").write_text(f"one\n{line}\n-r requirements.txt\n-r none.txt\n")
    (code / "more" / "base.txt").write_text("-c ../limits.txt\n")
    for count, limits in ((1, "two==1"), (1, "two==1"), (2, "two==2"), (2, "two==2")):
        (code / "limits.txt").write_text(limits)
        environment.make()
        assert len(calls.read_text().splitlines()) == count


def test_a_required_framework_is_installed_together_with_the_codes_requirements(tmp_path: Path) -> None:
    environment = environment_in(tmp_path, with_uv=True, requirement="pyworker>=1")
    pip = f"pip install -q --python {tmp_path}/venv/bin/python"
    environment.make()
    (tmp_path / "code" / "requirements.txt").write_text("one\n")
    environment.make()
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"{pip} pyworker>=1",
        f"{pip} -r {tmp_path}/code/requirements.txt pyworker>=1",
    ]
