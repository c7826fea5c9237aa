"""The folder of a new worker, copied from lib/tools/template/, which is a working worker itself."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("template")
# The worker's name in the template's files.
PLACEHOLDER = "my_model"
# A folder of one of these names would hide a module that Python or PyWorker imports.
_RESERVED = {*sys.stdlib_module_names, "lib", "workers", "tests", "aiohttp", "anyio", "pytest", "pyworker"}


class CannotMake(Exception):
    """The folder can't be made; the text says why and what to do."""


def make_worker(name: str, parent: Path) -> list[Path]:
    """Make the folder `name` in `parent`, and return the files in it. Raises `CannotMake`."""
    if problem := name_problem(name):
        raise CannotMake(problem)
    folder = parent / name
    try:
        folder.mkdir()
    except FileExistsError as e:
        raise CannotMake(f"{name} exists already: choose another name, or remove it") from e
    except OSError as e:
        raise CannotMake(f"{folder} can't be made: {e.strerror}") from e
    made: list[Path] = []
    for source in sorted(p for p in TEMPLATE.iterdir() if p.is_file()):
        target = folder / source.name
        target.write_text(source.read_text(encoding="utf-8").replace(PLACEHOLDER, name), encoding="utf-8")
        made.append(target)
    return made


def name_problem(name: str) -> str | None:
    """The reason why a worker can't have this name, or None."""
    if not _is_identifier(name):
        suggestion = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        hint = (
            f", for instance {suggestion}"
            if _is_identifier(suggestion) and suggestion not in _RESERVED
            else ""
        )
        return f"{name!r} is not a Python module name: use letters, digits and _, and no digit first{hint}"
    if keyword.iskeyword(name):
        return f"{name!r} is a keyword of Python: choose another name"
    if name in _RESERVED:
        return f"{name!r} is a module that Python or PyWorker imports: choose another name"
    return None


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and name.isascii()
