"""The worker in the code: its module, and the variables that it needs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path


def module_of(code: Path, backend: str) -> str | None:
    """Return the name of the worker's Python module; None if the code has none for `backend`."""
    if os.path.isfile(code / "worker.py"):
        return "worker"
    for name in ("worker", "server") if backend else ():
        if os.path.isfile(code / "workers" / backend / f"{name}.py"):
            return f"workers.{backend}.{name}"
    return None


def workers_in(code: Path) -> str:
    """Return the names of all workers in the code."""
    files = [*code.glob("workers/*/worker.py"), *code.glob("workers/*/server.py")]
    return ", ".join(sorted({file.parent.name for file in files}))


def missing_variables(code: Path, module: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each unset variable that the worker's README has as `required` in a table."""
    readme = code.joinpath(*module.split(".")[:-1]) / "README.md"
    try:
        lines = readme.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")]
        name = re.search(r"`([A-Z][A-Z0-9_]*)`", cells[1]) if len(cells) > 3 else None
        if name and cells[2] == "required" and not environ.get(name[1]):
            yield f"{name[1]}: missing: set it ({cells[3]})"
    # It has two default workflows, and needs neither if the author gives a workflow for the benchmark.
    if module.startswith("workers.comfyui.") and not (
        environ.get("COMFY_MODEL")
        or environ.get("BENCHMARK_JSON_PATH")
        or os.path.isfile(code / "workers" / "comfyui" / "misc" / "benchmark.json")
    ):
        yield "COMFY_MODEL: missing: set the default workflow, flux or sd3"
