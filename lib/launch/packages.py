"""The command that installs Python packages: uv's, if the machine has it, or else pip's."""

from __future__ import annotations

import shutil
from pathlib import Path

from lib.launch.commands import Commands


def has_uv(commands: Commands) -> bool:
    """Whether uv is installed, for processes that `commands` starts."""
    return shutil.which("uv", path=commands.environ.get("PATH")) is not None


def install_command(commands: Commands, python: str | Path) -> tuple[str | Path, ...]:
    """The beginning of a command that installs packages for `python`; requirements and options follow it."""
    if has_uv(commands):
        return ("uv", "pip", "install", "-q", "--python", python)
    return (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input")
