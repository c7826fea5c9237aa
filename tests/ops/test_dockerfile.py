"""ops/Dockerfile: what it installs from its build context is a complete package, and its command exists.

hadolint checks the file itself (.ci/run). No image is built here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lib.server import EXIT_SETTINGS
from tests.ops.queries import OPS
from tests.system import ROOT

pytestmark = pytest.mark.one_python

RUN = "import sys; import lib; print(lib.__file__); from lib.tools.cli import main; sys.exit(main())"


def build_context(folder: Path) -> Path:
    """Copy what Dockerfile.dockerignore leaves of the repository."""
    lines = (OPS / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert (rules[0], rules[-1]) == ("*", "**/__pycache__")
    for rule in rules[1:-1]:
        source = ROOT / rule.removeprefix("!")
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder)
    return folder


def test_the_package_of_its_context_has_the_worker_of_its_command(tmp_path: Path) -> None:
    context, package = build_context(tmp_path / "context"), tmp_path / "package"
    # As the Dockerfile installs it, but for the isolation, which would fetch the build's requirements.
    command = [
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        tmp_path,
        context,
    ]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(package)
    (words,) = re.findall(r"^CMD (\[.*\])$", (OPS / "Dockerfile").read_text(), re.MULTILINE)
    program, *arguments = json.loads(words)
    assert f"{program} = lib.tools.cli:main" in next(package.glob("*.dist-info/entry_points.txt")).read_text()
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{package}/lib/__init__.py")
    assert done.returncode == EXIT_SETTINGS, done.stderr
    assert "CONTAINER_ID: missing" in done.stderr
