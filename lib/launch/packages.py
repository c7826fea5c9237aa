"""Python packages: how the framework's is named, and the command that installs them.

That is uv's, if the machine has it, or else pip's.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from lib.launch.commands import Commands

# A package and its version, such as `pyworker==1.2`: a mistyped folder's name has none. `start_server.sh` has
# the same pattern.
REQUIREMENT = r"^[A-Za-z0-9][A-Za-z0-9._-]*( *\[[^]#]*\])? *([=~!<>]=|[<>])[^#]*$"


def is_requirement(text: str) -> bool:
    """Whether `text` names a package with its version, and neither an option nor a reference."""
    return re.search(REQUIREMENT, text) is not None


def has_uv(commands: Commands) -> bool:
    """Whether uv is installed, for processes that `commands` starts."""
    return shutil.which("uv", path=commands.environ.get("PATH")) is not None


def install_command(commands: Commands, python: str | Path) -> tuple[str | Path, ...]:
    """The beginning of a command that installs packages for `python`; requirements and options follow it."""
    if has_uv(commands):
        return ("uv", "pip", "install", "-q", "--python", python)
    return (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input")
