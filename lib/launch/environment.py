"""The worker's Python environment and its packages."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lib.launch.checkout import Checkout
from lib.launch.commands import Commands
from lib.launch.errors import CannotStart
from lib.launch.log import LaunchLog
from lib.launch.packages import has_uv, install_command
from lib.runtime.exit_status import EXIT_FAILED

MIN_PYTHON = "3.10"
# The files that a file of requirements includes.
_INCLUDED = re.compile(rb"^\s*(?:-[rc]|--(?:requirement|constraint)\b)[\s=]*(\S+)", re.MULTILINE)


class Environment:
    """The environment in `folder`, with the requirements of `code` and with the framework.

    `is_update`: packages are installed again, in their newest versions.
    """

    def __init__(
        self,
        folder: Path,
        code: Path,
        framework: Checkout,
        commands: Commands,
        log: LaunchLog,
        is_update: bool,
    ) -> None:
        self.python = folder / "bin" / "python"
        self._folder, self._code, self._framework = folder, code, framework.folder
        self._requirement = framework.url if framework.is_package else ""
        self._commands = commands
        self._log = log
        self._is_update = is_update
        self._has_uv = has_uv(commands)

    def make(self) -> None:
        """Make the environment and install the packages, unless that is done. Raises `CannotStart`."""
        done = self._folder / "installed"
        if not self._is_update and _content(done).decode(errors="replace") == self._packages():
            return
        self._log.begin(f"installing into {self._folder}")
        done.unlink(missing_ok=True)
        if not self._is_whole() and not self._commands.attempt(self._make_venv):
            text = (
                f"no Python environment could be made in {self._folder}: install uv or Python's venv module"
            )
            raise CannotStart(EXIT_FAILED, text, has_lines=True)
        if not self._commands.attempt(self._install):
            text = f"packages could not be installed: check the network, and the requirements in {self._code}"
            raise CannotStart(EXIT_FAILED, text, has_lines=True)
        with suppress(OSError):  # then the next start installs again
            done.write_text(self._packages())

    def _packages(self) -> str:
        """A digest of everything that determines the environment's packages."""
        version = (self._commands.output(self.python, "-VV") or "") if os.path.exists(self.python) else ""
        digest = hashlib.sha256(
            f"{self._code}\n{self._framework}\n{version}".encode(errors="surrogateescape")
        )
        for content in _requirements(self._code / "requirements.txt", set()):
            digest.update(content)
        for folder in (self._code, self._framework):
            digest.update(_content(folder / "pyproject.toml"))
        return digest.hexdigest()

    def _is_whole(self) -> bool:
        """Whether packages can be installed: an interrupted start may have left a Python without pip."""
        # The help of `pip install` imports all that an installation needs; `pip --version` does not.
        command = ("-c", "") if self._has_uv else ("-m", "pip", "install", "--help")
        return self._commands.output(self.python, *command) is not None

    def _make_venv(self) -> bool:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._has_uv:
            return self._commands.run("uv", "venv", "-q", "--python", f">={MIN_PYTHON}", self._folder)
        return self._commands.run(sys.executable, "-m", "venv", self._folder)

    def _install(self) -> bool:
        """Install the code's requirements, and the framework if they don't include it.

        A requirement for the framework is installed together with the code's: both must be met.
        """
        own: tuple[str | Path, ...] = ()
        if os.path.isfile(self._code / "requirements.txt"):
            own = ("-r", self._code / "requirements.txt")
        elif os.path.isfile(self._code / "pyproject.toml"):
            own = ("-e", self._code)
        if self._requirement:
            return self._add(*own, self._requirement)
        if own and not self._add(*own):
            return False
        return not self._needs_framework() or self._add("-e", self._framework)

    def _needs_framework(self) -> bool:
        """Whether the framework is missing, or was installed beside other code and may have changed."""
        command = "import lib.server; print(lib.server.__file__)"
        found = self._commands.output(self.python, "-c", command, cwd=self._code)
        if found is None:
            return True
        return self._code != self._framework and Path(found.strip()).is_relative_to(self._framework)

    def _add(self, *packages: str | Path) -> bool:
        upgrade = ("--upgrade",) if self._is_update else ()
        return self._commands.run(*install_command(self._commands, self.python), *upgrade, *packages)


def _requirements(file: Path, seen: set[Path]) -> Iterator[bytes]:
    """Yield the contents of a file of requirements and of all that it includes; skip those in `seen`."""
    file = Path(os.path.normpath(file))
    if file in seen:
        return
    seen.add(file)
    content = _content(file)
    yield content
    for name in _INCLUDED.findall(content):
        yield from _requirements(file.parent / os.fsdecode(name), seen)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
