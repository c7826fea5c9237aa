"""A new worker's folder, from the files in template/, which are a worker themselves."""

from __future__ import annotations

import keyword
import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).with_name("template")
# What the template calls its worker.
PLACEHOLDER = "my_model"
# Imports of these must not find the new folder.
_TAKEN = {*sys.stdlib_module_names, "lib", "workers", "tests", "aiohttp", "anyio", "pytest", "pyworker"}


class CannotMake(Exception):
    """The folder can't be made; the text says why."""


def make_worker(name: str, parent: Path) -> list[Path]:
    """Make the folder `name` in `parent`; gives the files in it. Raises `CannotMake`."""
    if problem := wrong_name(name):
        raise CannotMake(problem)
    folder = parent / name
    try:
        folder.mkdir()
    except FileExistsError as e:
        raise CannotMake(f"{name} is there already: choose another name, or remove it") from e
    except OSError as e:
        raise CannotMake(f"{folder} can't be made: {e.strerror}") from e
    made: list[Path] = []
    for source in sorted(p for p in TEMPLATE.iterdir() if p.is_file()):
        target = folder / source.name
        target.write_text(source.read_text(encoding="utf-8").replace(PLACEHOLDER, name), encoding="utf-8")
        made.append(target)
    return made


def wrong_name(name: str) -> str | None:
    """What is wrong with `name` for a worker, or None."""
    if not _is_identifier(name):
        better = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        hint = f": {better}, for instance" if _is_identifier(better) and better not in _TAKEN else ""
        return f"{name!r} is no name for Python: letters, digits and _, and no digit first{hint}"
    if keyword.iskeyword(name):
        return f"{name!r} is a word of Python's own: choose another name"
    if name in _TAKEN:
        return f"{name!r} is the name of a module that Python or PyWorker imports: choose another"
    return None


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and name.isascii()
